"""The Docker engines of the sites: one client and one pool of threads each, so that one that hangs delays no other.

Every call returns or raises within `CALL_TIMEOUT_S`, but for those that are known to take long. After an engine did
not answer, nobody waits for it again for `REST_S`: who asks meanwhile is told at once.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import MappingProxyType
from typing import Any

import requests
from docker import tls
from docker.api.client import APIClient
from docker.errors import TLSParameterError

from spawner.sites import TLS_FILES, ContainerSite

CALL_TIMEOUT_S = 20.0
REST_S = 10.0
LONG_CALLS: Mapping[str, float] = MappingProxyType({"pull": 1800.0, "stop": 60.0})
"""Seconds; a pull brings gigabytes, and a stop waits for the container to end."""

SILENCE_S = 300.0
"""How long an engine that fetches an image may say nothing."""

_MARGIN_S = 2.0  # docker-py's own timeout comes first, with a better reason
_THREADS = 4
_OLDEST_API = "1.40"  # Docker 19.03, the first that knows GPUs


class EngineUnavailable(Exception):
    """The engine does not answer, or not to us. The text says what was seen."""


class Engine:
    """One engine. Use `engine_of` to get it.

    Args:
        address: tcp://host:port or unix:///path.
        tls_dir: the Hub's certificate and key for it, and the authority that signed the engine's.
        call_timeout_s: how long an ordinary call may take, in seconds.
        clock: seconds, from any zero that stays.
    """

    def __init__(
        self,
        address: str,
        tls_dir: Path | None,
        *,
        call_timeout_s: float = CALL_TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.address = address
        self._tls_dir = tls_dir
        self._call_timeout_s = call_timeout_s
        self._clock = clock
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="engine")
        self._pull_threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="pull")
        self._pulls: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._connecting = asyncio.Lock()
        self._client: APIClient | None = None
        self._silent_until = 0.0
        self._last_failure = ""

    @property
    def client(self) -> APIClient:
        """The client, once `connect` has made it. For what asks the engine nothing."""
        if self._client is None:
            raise EngineUnavailable("the Hub has not reached it yet")
        return self._client

    async def connect(self) -> None:
        """Make the client: the engine is asked which version of its API it speaks.

        Raises:
            EngineUnavailable: it does not answer, or refuses the Hub's certificate.
        """
        async with self._connecting:
            if self._client is None:
                self._client = await self._in_thread(self._threads, self._new_client, self._call_timeout_s)

    async def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of `docker.APIClient`.

        Raises:
            EngineUnavailable: no answer in time.
            docker.errors.APIError: the engine refused.
        """
        await self.connect()
        return await self._in_thread(
            self._threads,
            functools.partial(getattr(self.client, method), *args, **kwargs),
            LONG_CALLS.get(method, self._call_timeout_s),
        )

    async def pull(self, repository: str, tag: str) -> None:
        """Fetch an image. Whoever wants one that is being fetched waits for the same fetch, and may cease to wait.

        Raises:
            EngineUnavailable: no answer in time.
            docker.errors.APIError: the engine refused at once. What goes wrong later is no error to docker-py.
        """
        image = repository, tag
        if image not in self._pulls:
            self._pulls[image] = asyncio.create_task(self._pull(repository, tag))
            self._pulls[image].add_done_callback(lambda _: self._pulls.pop(image))
        await asyncio.shield(self._pulls[image])

    async def _pull(self, repository: str, tag: str) -> None:
        await self.connect()
        work = functools.partial(self.client.pull, repository, tag=tag)
        await self._in_thread(self._pull_threads, work, LONG_CALLS["pull"])

    async def _in_thread(self, threads: ThreadPoolExecutor, work: Callable[[], Any], timeout_s: float) -> Any:
        if self._clock() < self._silent_until:
            raise EngineUnavailable(self._last_failure)
        try:
            async with asyncio.timeout(timeout_s + _MARGIN_S):
                return await asyncio.get_running_loop().run_in_executor(threads, work)
        except TimeoutError:
            raise self._failed(f"it did not answer within {timeout_s:.0f} s") from None
        except requests.exceptions.SSLError as error:
            raise self._failed(f"the TLS connection failed: {_innermost(error)}") from error
        except (requests.exceptions.ConnectionError, requests.exceptions.Timeout) as error:
            raise self._failed(self._reason(error)) from error

    def _failed(self, reason: str) -> EngineUnavailable:
        self._silent_until = self._clock() + REST_S
        self._last_failure = reason
        return EngineUnavailable(reason)

    def _reason(self, error: requests.exceptions.RequestException) -> str:
        if isinstance(error, requests.exceptions.ConnectTimeout):
            return "it cannot be reached: no answer to the connection"
        if isinstance(error, requests.exceptions.Timeout) or "timed out" in str(error):
            return f"it did not answer within {self._call_timeout_s:.0f} s"
        return f"it cannot be reached: {_innermost(error)}"

    def _new_client(self) -> APIClient:
        speak = functools.partial(
            _Client,
            base_url=self.address.replace("tcp://", "https://") if self._tls_dir else self.address,
            tls=self._tls() or False,
            timeout=self._call_timeout_s,
        )
        with closing(_without_environment(speak(version=_OLDEST_API))) as asking:
            answer: dict[str, str] = asking.version(api_version=False)
        return _without_environment(speak(version=answer["ApiVersion"]))

    def _tls(self) -> tls.TLSConfig | None:
        if self._tls_dir is None:
            return None
        ca, cert, key = (str(self._tls_dir / name) for name in TLS_FILES)
        try:
            return tls.TLSConfig(client_cert=(cert, key), ca_cert=ca, verify=True)
        except TLSParameterError as error:
            raise EngineUnavailable(f"its certificates cannot be used: {error.msg}") from error


class _Client(APIClient):
    def _set_request_timeout(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """docker-py fetches an image without one: an engine that says nothing more would keep the thread for ever."""
        if kwargs.setdefault("timeout", self.timeout) is None:
            kwargs["timeout"] = SILENCE_S
        return kwargs


def _without_environment(client: APIClient) -> APIClient:
    """REQUESTS_CA_BUNDLE in the Hub's environment would replace the engine's own authority."""
    client.trust_env = False
    return client


def _innermost(error: BaseException) -> str:
    """The text of the first cause: the others repeat it inside their own reprs."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return str(error)


@functools.cache
def _engine(address: str, tls_dir: Path | None) -> Engine:
    return Engine(address, tls_dir)


def engine_of(site: ContainerSite) -> Engine:
    """The engine of a site; the same one at each call."""
    return _engine(site.engine, site.tls_dir)
