"""What runs a project's SuperLink and its ServerApp. One implementation a way of running processes.

Called by `hub_service.reconciler` only. `tests/contract/test_aggregator.py` holds every implementation to this text.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
from federator.contract import OutagePolicy

from hub_service.aggregators.run_folder import remove_tree
from hub_service.aggregators.serverapp_log import LogPiece, read_log
from hub_service.domain.projects import GRACE_S

# Aggregators are spoken to in plain HTTP. A client that loads the certificates of the web for that costs 15 ms.
_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
_LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=20)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a project's SuperLink listens: plain HTTP, on loopback or a Unix socket. Each start has its own endpoint.

    Attributes:
        host, port: where its ServerApp reaches it.
        socket: the Unix socket by which the service reaches it, where the two share a file system and no network.
            None: by host and port.
    """

    host: str
    port: int
    socket: Path | None = None

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    def client(self, *, timeout: httpx.Timeout, limits: httpx.Limits = _LIMITS) -> httpx.AsyncClient:
        """A client whose paths are the SuperLink's. Close it.

        Raises httpx.ConnectError where the socket's folder is gone.
        """
        transport: httpx.AsyncBaseTransport
        if self.socket is None:
            transport = httpx.AsyncHTTPTransport(verify=_NO_TLS, trust_env=False, limits=limits)
        else:
            transport = _SocketTransport(self.socket, limits)
        return httpx.AsyncClient(
            base_url=f"http://{self.address}", transport=transport, timeout=timeout, trust_env=False
        )


class _SocketTransport(httpx.AsyncBaseTransport):
    """Connects to a Unix socket wherever it lies: `short_name` says how."""

    def __init__(self, path: Path, limits: httpx.Limits) -> None:
        try:
            self._folder = open_folder(path)
        except OSError as error:
            raise httpx.ConnectError(f"{path.parent}: {error.strerror}") from error
        short = short_name(self._folder, path)
        self._connections = httpx.AsyncHTTPTransport(uds=short, verify=_NO_TLS, trust_env=False, limits=limits)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self._connections.handle_async_request(request)

    async def aclose(self) -> None:
        await self._connections.aclose()
        os.close(self._folder)


def open_folder(socket: Path) -> int:
    """The descriptor of the socket's folder, for `short_name`; close it. Raises OSError where the folder is gone."""
    return os.open(socket.parent, os.O_PATH | os.O_DIRECTORY)


def short_name(folder: int, socket: Path) -> str:
    """A path of this socket that the system takes: 107 bytes are the most, and state folders are longer.

    Args:
        folder: from `open_folder`; the path leads there for as long as it is open.
    """
    return f"/proc/self/fd/{folder}/{socket.name}"


@dataclass(frozen=True, slots=True)
class ServerAppSpec:
    """What one ServerApp process must do.

    Attributes:
        run_id: our run's id; names the run folder.
        flower_run_id: the SuperLink's id of the run, from `superlink.start_run`.
        node_ids: the nodes that take part; the ServerApp waits for them and sees no others.
        compare: train each node alone too, and score every model on every node.
        wait_s: how long to wait for the nodes before the first round, in seconds.
        on_outage, grace_s: what becomes of a node that falls silent later; see `outages.py`.
    """

    run_id: str
    flower_run_id: int
    node_ids: tuple[int, ...]
    rounds: int
    compare: bool
    wait_s: float
    on_outage: OutagePolicy = OutagePolicy.WAIT
    grace_s: float = GRACE_S


@dataclass(frozen=True, slots=True)
class Limits:
    """What one run's ServerApp may use, and one project's SuperLink, each for itself. Not every backend can hold to it.

    Attributes:
        memory_bytes: RAM, that of files on /tmp included; there is no swap beside it.
        cpus: processors' worth of time.
        disk_bytes: of everything in the run folder, and of each single file.
        hours: how long a ServerApp may run.

    Raises ValueError for what is not a number above 0.
    """

    memory_bytes: int = 8 * 1024**3
    cpus: float = 2.0
    disk_bytes: int = 20 * 1024**3
    hours: float = 72.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise ValueError(f"{name} is {value!r}, not a number above 0")


class AggregatorBackend(ABC):
    """Starts and stops aggregators, one for each project. Every method is idempotent."""

    @abstractmethod
    def warm_up(self) -> None:
        """Somebody may ask for a run soon: begin what makes a start faster, if there is anything. Returns at once.

        Called whenever a client comes or a run is asked for. What was begun ends by itself when nothing follows.
        """

    @abstractmethod
    async def start(self, project_id: str, run_id: str | None = None) -> Endpoint:
        """Start the project's SuperLink, or find the running one; return once its API answers.

        Its nodes' ids are kept in the project's folder, so they stay the same from run to run.
        Raises Unavailable with the last lines of its log where it does not come up.

        Args:
            run_id: a run that `start_serverapp` will be called for: its process starts beside the SuperLink, and
                waits for what it is to do.
        """

    @abstractmethod
    async def start_serverapp(self, project_id: str, spec: ServerAppSpec) -> None:
        """Let the ServerApp process of a run that the SuperLink already knows begin; start it where `start` did not.

        Returns once it was told what to do.
        """

    @abstractmethod
    async def serverapp_exit(self, project_id: str, run_id: str) -> int | None:
        """The ServerApp's exit status, or None while it and its SuperLink run. A lost process counts as LOST.

        Called several times a second while a run is in flight. What ended it stands in the last line of its log.
        """

    async def serverapp_log(self, project_id: str, run_id: str, after: int) -> LogPiece:
        """What the ServerApp has printed behind the byte `after`: whole lines, the last ones where there are many.

        The same places hold for as long as the log is not cut, at its limit or when its run ends.
        """
        return await asyncio.to_thread(read_log, self.run_folder(project_id, run_id), after)

    @abstractmethod
    async def stop(self, project_id: str) -> None:
        """End the ServerApp and the SuperLink; return when nothing of them is left."""

    @abstractmethod
    async def check(self) -> None:
        """Raise Unavailable where no aggregator could be started now. Called by `hub_service.readiness`."""

    async def forget(self, project_id: str) -> None:
        """Remove all that is left of a project that was deleted: its runs' folders, and its nodes' ids.

        Raises Unavailable where the disk refuses.
        """
        await self.stop(project_id)
        await asyncio.to_thread(remove_tree, self.project_folder(project_id))

    @abstractmethod
    async def running(self) -> Sequence[str]:
        """Ids of the projects whose SuperLink runs now, those of an earlier service process included.

        The first call after a start: from then on `endpoint` knows them too.
        """

    @abstractmethod
    def endpoint(self, project_id: str) -> Endpoint | None:
        """Where the project's SuperLink listens, or None. No I/O; called for each Fleet request."""

    @abstractmethod
    def project_folder(self, project_id: str) -> Path:
        """Where all of a project's run folders are, and what the backend keeps of it besides."""

    @abstractmethod
    def run_folder(self, project_id: str, run_id: str) -> Path:
        """Where the ServerApp writes `events.jsonl`, `model.safetensors` and `serverapp.log`."""

    @abstractmethod
    def newest_run_folder(self, project_id: str) -> Path | None:
        """The run folder of the ServerApp that was started last, or None. No I/O; called for each message."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of what the backend itself holds, such as connections. What runs goes on. Called once, at the end."""
