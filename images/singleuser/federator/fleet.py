"""A node's connection to the gateway: signed requests of Flower's Fleet API and of its two bulk paths, over the Hub's
one origin. What a path carries stands in the service's `gateway/gateway.py`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import secrets
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TypeVar
from urllib.request import getproxies, proxy_bypass

import aiohttp
from aiohttp.connector import AddrInfoType
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.date import now
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.runtime_version_compatibility import RuntimeVersionMetadata
from google.protobuf.message import Message as Protobuf

from federator.contract import (
    FLEET_BLOBS_HEADER,
    FLEET_BODY_LIMIT_HEADER,
    FLEET_LETTERS_HEADER,
    FLEET_PREFIX,
    FLEET_WAITING_HEADER,
)
from federator.framing import BadFrame, Data, Reader, framed, pack, size_of
from federator.logs import REQUEST_ID_HEADER

_CALL_TIMEOUT_S = 60.0
_CONNECT_TIMEOUT_S = 10.0
_LATE_S = 2.0  # an answer's poll that brings nothing for so long after its end was lost
_KEPT_OPEN_S = 4.0  # the Hub's proxy closes a connection that was idle for 5 s
# What is written lies in the machine's buffers for minutes where the link is slow. Whether it is dead, TCP tells: it
# gives up a connection over which nothing was confirmed for a minute (tcp(7)).
_SLOW_S = 3600.0
_ALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 20),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 60_000),
)
_FIRST_RETRY_S, _LONGEST_RETRY_S = 0.2, 5.0
_LONGEST_TOLD_S = 60  # of a Retry-After that is heeded
_CLOCK_TOLERANCE_S = 4.0  # Flower takes no time that is five seconds ahead; a Date has whole seconds
_MEDIA_TYPE = "application/protobuf"
# 404: the Hub's proxy while the service restarts; 408: the link was silent in the middle of a body.
_AGAIN = frozenset({404, 408, 429, 500, 502, 503, 504, 507})
_LARGEST_PART = 64 * 1024**3  # bytes; what the Hub sends is limited where it comes from
_PIECE = 1024 * 1024  # bytes that are handed to the connection, or taken from it, at once
_PROXY_SCHEMES = frozenset({"http", "https"})
_NAMED_AT_MOST = 100  # blobs in a header, which proxies limit

NO_ANSWER = (aiohttp.ClientError, TimeoutError)
"""What `FleetConnection.send` raises where none comes."""

_Message = TypeVar("_Message", bound=Protobuf)


class KeyRefused(Exception):
    """401: the service does not know this node's key, or no longer."""


class RunEnded(Exception):
    """403: the run that a message belonged to does not run any more."""


class NodeUnknown(Exception):
    """409: the aggregator knows this key by another node id than before."""


class FleetError(Exception):
    """The gateway refused a request for good; the text says why."""


@dataclass(frozen=True, slots=True)
class Received:
    """What a poll for a message brought.

    Attributes:
        parts: of the body; none: there is no message yet.
        body_limit: bytes that the answer may have.
    """

    parts: list[bytes]
    body_limit: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What the Hub said.

    Attributes:
        headers: by names in whatever case.
        content: the body; of a success that is a message, nothing.
    """

    status: int
    headers: Mapping[str, str]
    content: bytes = b""

    @property
    def ok(self) -> bool:
        return _is_success(self.status)


_Attempt = Callable[["float | None"], Awaitable[Answer]]


def _is_success(status: int) -> bool:
    """A redirect is none: the gateway sends nobody elsewhere."""
    return status < HTTPStatus.MULTIPLE_CHOICES


class FleetConnection:
    """Signed Fleet calls over one pool of connections. Waits out a Hub that is away.

    Each method but `send` asks until there is an answer, and raises KeyRefused, RunEnded, NodeUnknown or FleetError.

    Requests are signed with a time, which the Hub takes for a few minutes around its own. Where this site's clock is
    further off, the time is taken from the Hub's answers (RFC 9110, Date) and the request sent again.

    Args:
        address: host:port of the Hub.
        root_certificates: PEM of the authority that signed the Hub's certificate; None for the system's.
        on_trouble: told when an attempt failed and another follows: what is the matter, for people, and the reason.
        on_clock: told when this site's clock is found to be wrong: seconds that it is behind the Hub's; negative where
            it is ahead.
    """

    def __init__(
        self,
        address: str,
        *,
        tls: bool,
        root_certificates: bytes | None,
        private_key: ec.EllipticCurvePrivateKey,
        on_trouble: Callable[[str, str], None],
        on_clock: Callable[[float], None],
    ) -> None:
        self._private_key = private_key
        self.public_key: bytes = public_key_to_bytes(private_key.public_key())
        self._on_trouble = on_trouble
        self._on_clock = on_clock
        self._behind_s = 0.0  # this site's clock, of the Hub's
        # The trust of the whole process (SSL_CERT_FILE, the system's store).
        authority = root_certificates.decode("ascii") if root_certificates else None
        self._http = aiohttp.ClientSession(
            base_url=f"{'https' if tls else 'http'}://{address}{FLEET_PREFIX}",
            proxy=_proxy_to(address, tls=tls),
            connector=aiohttp.TCPConnector(
                ssl=ssl.create_default_context(cadata=authority) if tls else True,
                keepalive_timeout=_KEPT_OPEN_S,
                socket_factory=_watched_socket,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept-Encoding"),
            read_bufsize=_PIECE,
            headers={
                "content-type": _MEDIA_TYPE,
                "accept": _MEDIA_TYPE,
                FLEET_LETTERS_HEADER: "1",
                FLEET_HTTP_PUBLIC_KEY_HEADER: base64.b64encode(self.public_key).decode("ascii"),
                **dict(RuntimeVersionMetadata.from_local_component("SuperNode").as_metadata()),
            },
        )

    async def close(self) -> None:
        await self._http.close()

    async def call(self, operation: str, request: Protobuf, answer_type: type[_Message]) -> _Message:
        """Flower's own operations."""
        answer: _Message = answer_type()
        answer.ParseFromString(await self.exchange(operation, request.SerializeToString()))
        return answer

    async def exchange(self, operation: str, content: bytes, wait: float | None = None) -> bytes:
        """As `call`, with the bodies as they are. An empty answer to a poll: nothing yet, ask again.

        Args:
            wait: how long the gateway may hold a poll, in seconds.
        """
        answer = await self._answered(lambda wait: self.send(operation, content, wait), wait)
        return b"" if answer.headers.get(FLEET_WAITING_HEADER) else answer.content

    async def pull(self, request: Protobuf, had: Iterable[str], wait: float, on_begin: Callable[[], None]) -> Received:
        """The next message.

        Args:
            request: Flower's PullMessagesRequest.
            had: names of the blobs that need not be sent.
            wait: how long the gateway may hold the poll, in seconds.
            on_begin: told when a message begins to come in, which may take long.
        """
        body = pack([request.SerializeToString(), json.dumps(list(had)).encode()], {})
        parts: list[bytes] = []

        async def attempt(wait: float | None) -> Answer:
            parts.clear()
            async with self._post("bulk-pull", body, self._headers(wait)) as response:
                if not _is_success(response.status):
                    return await _whole(response)
                async for arrived in _arriving(response):
                    on_begin()
                    parts.extend(arrived)
                return Answer(response.status, response.headers)

        return _received(parts, await self._answered(attempt, wait))

    async def push(
        self,
        parts: list[Data],
        had: Sequence[str],
        wait: float,
        on_taken: Callable[[], None],
        on_begin: Callable[[], None],
    ) -> Received:
        """Answer a message, and wait for the next one, as `pull` does.

        A proxy between may keep silent when the service ends behind the receipt; so `wait` is to be short.

        Args:
            parts: are not copied. They are as large as a model, and let go of when the answer has been taken.
            on_taken: told when it has been.
        """
        headers = {"content-length": str(size_of(parts))}
        if len(had) <= _NAMED_AT_MOST:  # else the next message is asked for with `pull`
            headers[FLEET_BLOBS_HEADER] = json.dumps(had)
        following = _Following(parts, wait + _LATE_S, on_taken, on_begin)

        async def attempt(wait: float | None) -> Answer:
            async with self._post("bulk-push", _pieces(parts), self._headers(wait) | headers, _SLOW_S) as response:
                if not _is_success(response.status):
                    return await _whole(response)
                await following.take(response)
                return Answer(response.status, response.headers)

        return _received(following.parts, await self._answered(attempt, wait))

    async def send(self, operation: str, content: bytes, wait: float | None = None) -> Answer:
        """One attempt. `wait`: how long the gateway may hold it, in seconds; None leaves that to the gateway.

        Raises one of NO_ANSWER.
        """
        async with self._post(operation, content, self._headers(wait)) as response:
            return await _whole(response)

    def _post(
        self,
        operation: str,
        body: bytes | AsyncIterator[Data],
        headers: Mapping[str, str],
        silence_s: float = _CALL_TIMEOUT_S,
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        timeout = _timeout(silence_s)
        return self._http.post(operation, data=body, headers=headers, timeout=timeout, allow_redirects=False)

    def _headers(self, wait: float | None) -> dict[str, str]:
        timestamp = (now() + timedelta(seconds=self._behind_s)).isoformat()
        signature = sign_message(self._private_key, timestamp.encode("ascii"))
        headers = {
            TIMESTAMP_HEADER: timestamp,
            FLEET_HTTP_SIGNATURE_HEADER: base64.b64encode(signature).decode("ascii"),
            REQUEST_ID_HEADER: secrets.token_hex(8),
        }
        return headers if wait is None else headers | {"prefer": f"wait={wait:g}"}

    async def _answered(self, attempt: _Attempt, wait: float | None) -> Answer:
        """The first answer that is one."""
        delay = _FIRST_RETRY_S
        while True:
            matter = "The Hub does not answer"
            try:
                answer = await attempt(wait)
            except NO_ANSWER as error:
                reason, told_s = f"{type(error).__name__} {error}".strip(), 0.0
            else:
                if answer.status == HTTPStatus.UNAUTHORIZED and self._learns_time(answer):
                    continue
                if answer.headers.get(FLEET_WAITING_HEADER) or not _is_trouble(answer):
                    return _granted(answer)
                reason = f"HTTP {answer.status}, request {answer.headers.get(REQUEST_ID_HEADER, 'unknown')}"
                told_s = _retry_after_s(answer)
                if answer.status == HTTPStatus.INSUFFICIENT_STORAGE:
                    matter = _detail(answer).rstrip(".")
            self._on_trouble(matter, reason)
            if wait is not None:
                wait = 0.0  # the first answer after trouble is news by itself
            spread = random.uniform(0.5, 1.0)  # noqa: S311 - spreads nodes, guards nothing
            await asyncio.sleep(told_s + delay * spread)
            delay = min(2 * delay, _LONGEST_RETRY_S)

    def _learns_time(self, refusal: Answer) -> bool:
        """Whether the refusal says another time than its request was signed with."""
        try:
            behind_s = (parsedate_to_datetime(refusal.headers["date"]) - now()).total_seconds()
        except (KeyError, ValueError, TypeError):  # none, or one that is none
            return False
        if abs(behind_s - self._behind_s) < _CLOCK_TOLERANCE_S:
            return False
        self._behind_s = behind_s
        self._on_clock(behind_s)
        return True


def _timeout(silence_s: float) -> aiohttp.ClientTimeout:
    """For requests in which the Hub may say nothing for so many seconds."""
    return aiohttp.ClientTimeout(sock_connect=_CONNECT_TIMEOUT_S, sock_read=silence_s)


def _watched_socket(address: AddrInfoType) -> socket.socket:
    """A socket whose connection TCP watches. Raises OSError."""
    family, kind, protocol, _, _ = address
    one = socket.socket(family, kind, protocol)
    try:
        for option in _ALIVE:
            one.setsockopt(*option)
    except OSError:
        one.close()
        raise
    return one


def _proxy_to(address: str, *, tls: bool) -> str | None:
    """The site's proxy on the way to the Hub, as the environment says. It is not left to aiohttp's `trust_env`, which
    would read passwords from a .netrc file too.

    Raises FleetError for one that is no HTTP proxy.
    """
    proxies = getproxies()
    proxy = proxies.get("https" if tls else "http") or proxies.get("all")
    if not proxy or proxy_bypass(address):
        return None
    if "://" not in proxy:
        return f"http://{proxy}"
    scheme = proxy.partition("://")[0].lower()
    if scheme not in _PROXY_SCHEMES:
        raise FleetError(f"The site's proxy speaks {scheme}: ask the site to name an HTTP proxy for this server.")
    return proxy


def _is_trouble(answer: Answer) -> bool:
    """Whether to ask again: for what passes by itself, and for a refusal that is not the gateway's.

    A proxy that was started anew sends everything to the Hub until it knows its routes; the Hub refuses it.
    """
    return not answer.ok and (answer.status in _AGAIN or REQUEST_ID_HEADER not in answer.headers)


def _retry_after_s(answer: Answer) -> float:
    """What a busy service asks for, in seconds; 0 where it asks for nothing, or as a date."""
    told = answer.headers.get("retry-after", "")
    return float(min(int(told), _LONGEST_TOLD_S)) if told.isdecimal() else 0.0


def _granted(answer: Answer) -> Answer:
    if answer.ok or answer.headers.get(FLEET_WAITING_HEADER):
        return answer
    raise {401: KeyRefused, 403: RunEnded, 409: NodeUnknown}.get(answer.status, FleetError)(_detail(answer))


def _detail(answer: Answer) -> str:
    try:
        return str(json.loads(answer.content)["detail"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {answer.status}"


async def _whole(response: aiohttp.ClientResponse) -> Answer:
    return Answer(response.status, response.headers, await response.read())


class _Following:
    """The message that comes behind the receipt of an answer.

    Args:
        answer: let go of with the receipt.
        patience_s: how long, after the receipt, something may take to follow it.
        on_taken, on_begin: told of the receipt, and when something follows it.

    Attributes:
        parts: the message's; none where none has come.
    """

    def __init__(
        self, answer: list[Data], patience_s: float, on_taken: Callable[[], None], on_begin: Callable[[], None]
    ) -> None:
        self.parts: list[bytes] = []
        self._answer = answer
        self._silence_s = patience_s
        self._on_taken = on_taken
        self._on_begin = on_begin
        self._taken = False

    async def take(self, response: aiohttp.ClientResponse) -> None:
        """Raises one of NO_ANSWER where the receipt is lost. A message that is lost behind it can be asked for."""
        try:
            async with asyncio.timeout(None) as patience:
                async for arrived in _arriving(response):
                    self._take(arrived)
                    patience.reschedule(asyncio.get_running_loop().time() + self._silence_s)
        except NO_ANSWER:
            if not self._taken:
                raise
            self.parts.clear()
        self._note_taken()

    def _take(self, arrived: list[bytes]) -> None:
        if self._taken:
            self._silence_s = _CALL_TIMEOUT_S
            self._on_begin()
            self.parts += arrived
        elif arrived:
            self._note_taken()
            if message := arrived[1:]:
                self._take(message)

    def _note_taken(self) -> None:
        if not self._taken:
            self._taken = True
            self._answer.clear()
            self._on_taken()


def _received(parts: list[bytes], answer: Answer) -> Received:
    return Received(parts, int(answer.headers.get(FLEET_BODY_LIMIT_HEADER, 0)))


async def _arriving(response: aiohttp.ClientResponse) -> AsyncIterator[list[bytes]]:
    """The body's parts, joined as they come in: a model is in memory once. Whenever something comes, the parts that are
    whole with it.

    Raises one of NO_ANSWER.
    """
    reader = Reader(_LARGEST_PART)
    try:
        async for chunk in response.content.iter_any():
            yield reader.feed(chunk)
        reader.end()
    except BadFrame as error:
        raise aiohttp.ClientPayloadError(str(error)) from error


async def _pieces(parts: Sequence[Data]) -> AsyncIterator[Data]:
    """The body in pieces: small parts together, large ones cut, not copied."""
    gathered = bytearray()
    for part in framed(parts):
        if len(gathered) + len(part) <= _PIECE:
            gathered += part
            continue
        if gathered:
            yield bytes(gathered)
            gathered.clear()
        for start in range(0, len(part), _PIECE):
            yield memoryview(part)[start : start + _PIECE]
    if gathered:
        yield bytes(gathered)
