"""Between nodes and aggregators. A node knows the Hub's address and its own key; the key says which project it is in.

What the gateway adds to Flower's Fleet API:

    register-node, unregister-node      refused: keys are registered through the service
    activate-node                       waits until the project's aggregator runs, and brings the node online there
    pull-messages                       long poll; an empty answer means "nothing yet". A message is handed out again
                                        until it is confirmed or answered, so that a lost connection loses no message
    send-node-heartbeat                 answered here while no aggregator runs. With `Prefer: wait` it is a long poll,
                                        which a node at work keeps open: it hears at once that its right has ended, and
                                        its own end is noticed at once
    bulk-pull                           ours: [PullMessagesRequest, names of the blobs that the node has]
                                        -> [PullMessagesResponse, GetRunResponse, letter] and the blobs it lacks
    bulk-push                           ours: [PushMessagesRequest], and the letter and blobs of an answer with content.
                                        With the names of the blobs that the node has in a header it is a long poll:
                                        -> [nothing] as soon as the answer is taken, and then what bulk-pull brings
    all others                          forwarded as they are

Bodies of ours are in the frames of `federator.framing`, letters and blobs as in `federator.parcel`. Model data go from
the run's files to the node and from the node to the run's files (`aggregators.mail`); the aggregator sees the rest.

Refusals are statuses that Flower's nodes know: 401 the key opens nothing, 403 the run does not run, 429 and 503 try
again; 429 says when, in Retry-After.
Ours are 409, the aggregator has this key under another node id: activate again; and 507, the service's disk is full.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import aiohttp
from federator import logs
from federator.contract import FLEET_LETTERS_HEADER, FLEET_WAITING_HEADER
from federator.framing import BadFrame, pack, split
from federator.parcel import Letter
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from flwr.proto.node_pb2 import Node
from google.protobuf.message import DecodeError, Message

from hub_service.aggregators.base import AggregatorBackend, Endpoint
from hub_service.aggregators.mail import NoSuchMail, open_mail
from hub_service.aggregators.sessions import open_session
from hub_service.aggregators.superlink import SuperLink
from hub_service.domain.errors import DatabaseUnavailable, Unavailable
from hub_service.domain.projects import NodeGrant
from hub_service.gateway.signature import SIGNATURE_HEADERS, ClockOff, NotSigned, signing_key
from hub_service.rate_limits import Counted, RateLimits
from hub_service.site_stages import Stage
from hub_service.turns import Turns

log = logging.getLogger(__name__)

POLL_S = 20.0  # how long a poll is held that does not say how long it waits
LONGEST_POLL_S = 50.0
BODY_LIMIT = 2 * 1024**3  # bytes
LONGEST_SILENCE_S = 60.0  # of a node in the middle of a request; a lost one asks anew

MEDIA_TYPE = "application/protobuf"
_FORWARDED_HEADERS = (*SIGNATURE_HEADERS, "content-type", "accept", "content-length")
_VERSION_HEADER_PREFIX = "flwr-"
_BACK_WITHIN_S = 2.0  # a node whose only poll was cut off and that is there has another by then
_GRANT_AGE_S = 0.5  # how long a waiting poll goes on without asking whether its key is still good
# A pull keeps the node online at the aggregator, should its own heartbeats fail. Flower counts a node as lost that has
# missed two intervals; a stock node names its own.
_ONLINE_AGE_S, _ONLINE_INTERVAL_S = 8.0, 15
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 0.25
_HANDED_AT_MOST = 3
_LOOK_S = 10.0  # how long the aggregator holds one look for a message; it answers at once when one comes
_TIMEOUT = aiohttp.ClientTimeout(sock_connect=5.0, sock_read=60.0)
_BULK_PATHS = {"bulk-online": "/v1/bulk/online", "bulk-pull": "/v1/bulk/pull", "bulk-push": "/v1/bulk/push"}

_Request = TypeVar("_Request", bound=Message)
_Told = TypeVar("_Told")


class Refusal(Exception):
    """A request that is answered with an error status. The text is for the node's log."""

    def __init__(self, status: int, text: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.headers = dict(headers or {})


class KeyUnknown(Refusal):
    def __init__(self) -> None:
        super().__init__(401, "This node's key opens no project here.")


class WrongTime(Refusal):
    """A stock SuperNode logs this; a client of ours reads the time from the answer and asks again."""

    def __init__(self, age_s: float) -> None:
        way = "behind" if age_s > 0 else "ahead of"
        super().__init__(
            401, f"The clock of this site is {abs(age_s):.0f} s {way} the Hub's: set it right. No request of it counts."
        )


class NotNow(Refusal):
    """The aggregator, or the service's own disk, does not do what it should; that may pass."""

    def __init__(self) -> None:
        super().__init__(503, "The project's aggregator does not answer; try again.")


class NobodyKnows(Refusal):
    """Whether the key is good stands in the database."""

    def __init__(self) -> None:
        super().__init__(503, "The service's database does not answer; try again.")


class NoRun(Refusal):
    def __init__(self) -> None:
        super().__init__(403, "The run does not run any more.")


class DiskFull(Refusal):
    """A node sends its answer again, and again: whoever makes room loses no round."""

    def __init__(self) -> None:
        text = "The service's disk is full: it could not take this site's answer."
        super().__init__(507, text, {"Retry-After": "5"})


class TooOften(Refusal):
    """Over a limit of `hub_service.rate_limits`."""

    def __init__(self, wait_s: int) -> None:
        super().__init__(429, "This node, or this site, asks too often.", {"Retry-After": str(wait_s)})


class TooMuch(Refusal):
    """What the site's data steward lets out in one message is less than this."""

    def __init__(self, limit: int) -> None:
        super().__init__(413, f"This site's data steward lets {limit:,} bytes leave in one message; this one has more.")


class AnotherNode(Refusal):
    def __init__(self) -> None:
        super().__init__(409, "The aggregator has this key under another node id; activate again.")


@dataclass(slots=True)
class Traffic:
    """Bytes of bodies, as the gateway saw them."""

    from_node: int = 0
    to_node: int = 0


@dataclass(slots=True)
class _Handed:
    """A message whose receipt is not confirmed yet, without its objects: Flower's PullMessagesResponse."""

    body: bytes
    message_id: str
    times: int = 0


@dataclass(slots=True)
class _Session:
    """What is remembered of a node between its requests.

    Lost with the service, and found again at the next request: but for what a stock node was handed, which it asks for
    again only if it never got it.
    """

    endpoint: Endpoint | None = None  # where the node was brought online
    node_id: int = 0
    online_at: float = 0.0
    polls: int = 0  # that are open
    opened: int = 0  # polls so far
    working: bool = False
    handed: _Handed | None = None
    pushed: int = 0  # bytes of the answer that a stock node sends in pieces
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(frozen=True, slots=True)
class Caller:
    """A node whose signature and grant were checked for this request."""

    public_key: bytes
    grant: NodeGrant
    headers: dict[str, str]  # to forward
    takes_letters: bool


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message for a node, and the open files that follow it. Whoever has it closes them."""

    head: bytes
    files: list[BinaryIO]

    def close(self) -> None:
        for file in self.files:
            file.close()


_Look = Callable[[Caller, _Session, Endpoint, bytes, float], Awaitable[bytes]]


class Gateway:
    """Forwards Fleet requests to the aggregator of the node's project.

    Args:
        grants: what a public key (PEM) opens now, or None. Called for each request and while a poll waits.
        backend: where the aggregators are.
        seen: told of each sign of life of a participation's node, and whether it works on a message.
        cut_off: told of a participation whose node's only poll has lost its connection.
        clock: now, in UTC.
        moved: told how far a participation's present message has come, each time that it comes further.
        longest_poll_s: how long a poll is held at most, in seconds.
        body_limit: bytes of one request's body.
        longest_silence_s: how long a node may send nothing in the middle of a request, in seconds.
        rate_limits: how often nodes may ask; those of `hub_service.rate_limits` where none are given.
        turns: whose turn it is in the service's thread.
    """

    def __init__(
        self,
        *,
        grants: Callable[[bytes], NodeGrant | None],
        backend: AggregatorBackend,
        seen: Callable[[str, bool], None],
        cut_off: Callable[[str], None],
        clock: Callable[[], datetime],
        moved: Callable[[str, Stage], None] = lambda *_: None,
        longest_poll_s: float = LONGEST_POLL_S,
        body_limit: int = BODY_LIMIT,
        longest_silence_s: float = LONGEST_SILENCE_S,
        rate_limits: RateLimits | None = None,
        turns: Turns | None = None,
    ) -> None:
        self._grants = grants
        self._backend = backend
        self._seen = _when_there_is_a_database(seen)
        self._cut_off = cut_off
        self._clock = clock
        self._moved = _when_there_is_a_database(moved)
        self._longest_poll_s = longest_poll_s
        self.body_limit = body_limit
        self.longest_silence_s = longest_silence_s
        self._rate_limits = rate_limits or RateLimits()
        self.turns = turns or Turns()
        self.traffic: dict[str, Traffic] = {}  # by participation
        self._sessions: dict[bytes, _Session] = {}
        self._closed = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._clients: dict[Endpoint, tuple[str, aiohttp.ClientSession]] = {}  # with the project whose endpoint it is

    async def close(self) -> None:
        """Ask no aggregator any more. Who still calls is told to try again."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        clients, self._clients = self._clients, {}
        for _, client in clients.values():
            await client.close()

    def admit(self, headers: Mapping[str, str], address: str) -> Caller:
        """Check signature, grant and how often was asked.

        Raises KeyUnknown, with one text for all reasons, TooOften, or WrongTime for whoever signed well, but not now.
        """
        try:
            public_key = signing_key(headers, self._clock())
            grant = self._grant(public_key)
        except (NotSigned, KeyUnknown) as error:
            _require_patience(self._rate_limits.wait_s(Counted.UNKNOWN_KEY, address))
            raise (WrongTime(error.age_s) if isinstance(error, ClockOff) else KeyUnknown()) from error
        _require_patience(self._rate_limits.wait_s(Counted.NODE, grant.participation_id))
        if grant.site:
            _require_patience(self._rate_limits.wait_s(Counted.SITE_NODES, grant.site))
        kept = {
            name.lower(): value
            for name, value in headers.items()
            if name.lower() in _FORWARDED_HEADERS or name.lower().startswith(_VERSION_HEADER_PREFIX)
        }
        return Caller(public_key, grant, kept | logs.request_headers(), FLEET_LETTERS_HEADER in headers)

    def poll_s(self, prefer: str, unasked_s: float = POLL_S) -> float:
        """How long to hold a poll: what a `Prefer: wait=N` header asks for, within the limit."""
        name, _, value = prefer.partition("=")
        asked = name.strip() == "wait" and value.strip().replace(".", "", 1).isdecimal()
        return min(float(value) if asked else unasked_s, self._longest_poll_s)

    def limit_of(self, caller: Caller) -> int:
        """Bytes that the node's answer to one message may have, envelope included."""
        largest = caller.grant.largest_message
        return self.body_limit if largest is None else min(largest, self.body_limit)

    def count_pushed(self, caller: Caller, size: int) -> None:
        """A piece of a stock node's answer, which began with `push_messages`. Raises TooMuch."""
        session = self._session(caller)
        session.pushed += size
        if session.pushed > self.limit_of(caller):
            raise TooMuch(self.limit_of(caller))

    def count(self, caller: Caller, *, from_node: int = 0, to_node: int = 0) -> None:
        traffic = self.traffic.setdefault(caller.grant.participation_id, Traffic())
        traffic.from_node += from_node
        traffic.to_node += to_node

    def moved(self, caller: Caller, stage: Stage) -> None:
        """Tell how far the node's present message has come."""
        self._moved(caller.grant.participation_id, stage)

    # --- operations that are answered here

    async def activate(self, caller: Caller, body: bytes, poll_s: float) -> bytes:
        """Bring the node online at its project's aggregator, waiting for that to run and to know the key."""
        request = _parsed(ActivateNodeRequest, body)
        if request.public_key != caller.public_key:
            raise KeyUnknown
        session = self._session(caller)
        session.endpoint = None  # a node that activates has forgotten everything: so do we
        session.handed = None
        with self._open_poll(caller):
            async for _ in self._attempts(caller, poll_s):
                if await self._online(caller, session) is not None:
                    return bytes(ActivateNodeResponse(node_id=session.node_id).SerializeToString())
        raise Refusal(503, "No aggregator runs for this project now; ask again.", {FLEET_WAITING_HEADER: "1"})

    async def pull(self, caller: Caller, body: bytes, poll_s: float) -> bytes:
        """The node's next message, or nothing when the poll ends."""
        with self._open_poll(caller):
            return await self._pull(caller, body, poll_s, self._next_message)

    async def bulk_pull(self, caller: Caller, body: bytes, poll_s: float) -> Delivery | None:
        """The node's next message with its run, its letter and the blobs it lacks; None when the poll ends."""
        try:
            request, had = split(body)
        except ValueError as error:
            raise Refusal(400, f"The body is not what this path takes: {error}") from error
        return await self._delivery(caller, request, blob_names(had), poll_s)

    async def pull_after_push(self, caller: Caller, node: Node, had: frozenset[str], poll_s: float) -> Delivery | None:
        """As `bulk_pull`, for a node whose answer was taken. What is refused now, it hears when it asks by itself."""
        request = PullMessagesRequest(node=node).SerializeToString()
        with suppress(Refusal):
            return await self._delivery(caller, request, had, poll_s)
        return None

    async def _delivery(self, caller: Caller, request: bytes, had: frozenset[str], poll_s: float) -> Delivery | None:
        with self._open_poll(caller):
            answer = await self._pull(caller, request, poll_s, self._next_letter)
        if not answer:
            return None
        envelope, run, letter = split(answer)
        try:
            files = self._blobs(caller, Letter.unpacked(letter), had)
        except (NoSuchMail, BadFrame) as error:
            log.warning("project %s: a message has lost its model data: %s", caller.grant.project_id, error)
            return None
        except OSError as error:
            log.warning("project %s: a message's model data cannot be read: %s", caller.grant.project_id, error)
            raise NotNow from error
        return Delivery(pack([envelope, run, letter], {}), files)

    def _blobs(self, caller: Caller, letter: Letter, had: frozenset[str]) -> list[BinaryIO]:
        """The files that the letter names and the node lacks, each once. Raises NoSuchMail, and OSError."""
        folder = self._backend.newest_run_folder(caller.grant.project_id)
        files: list[BinaryIO] = []
        try:
            for name in dict.fromkeys(letter.blobs):
                if name not in had:
                    if folder is None:
                        raise NoSuchMail(name)
                    files.append(open_mail(folder, name))
        except (NoSuchMail, OSError):
            Delivery(b"", files).close()
            raise
        return files

    async def _pull(self, caller: Caller, body: bytes, poll_s: float, look: _Look) -> bytes:
        request = _parsed(PullMessagesRequest, body)
        session = self._session(caller)
        async for left_s in self._attempts(caller, poll_s):
            endpoint = await self._online(caller, session)
            if endpoint is None:
                continue
            if request.node.node_id != session.node_id:
                raise AnotherNode
            try:
                answer = await self._while_granted(caller, endpoint, look(caller, session, endpoint, body, left_s))
            except NotNow:
                if self._closed:
                    raise
                # The aggregator was ended while it was asked, or is gone and will be begun anew: that is no news.
                if session.endpoint == endpoint:
                    session.endpoint = None
                continue
            if answer:
                session.working = True
                self._seen(caller.grant.participation_id, True)
                self.moved(caller, Stage.RECEIVING)
                return answer
        return b""

    async def _while_granted(self, caller: Caller, endpoint: Endpoint, look: Awaitable[bytes]) -> bytes:
        """What the look finds. Raises KeyUnknown when the grant is withdrawn meanwhile.

        The look goes on when this caller has just gone: a message that the SuperLink has handed out is kept.
        """
        looking = asyncio.ensure_future(look)
        looking.add_done_callback(_heard)
        while not (await asyncio.wait({looking}, timeout=_GRANT_AGE_S))[0]:
            try:
                self._require_still_granted(caller)
            except KeyUnknown:
                looking.cancel()
                raise
            if self._backend.endpoint(caller.grant.project_id) != endpoint:
                await self._close_clients_of_the_gone()
        return looking.result()

    async def heartbeat(self, caller: Caller, body: bytes, held_s: float = 0.0) -> bytes:
        """Note that the node is there, and answer after `held_s`, or as soon as its right ends: KeyUnknown."""
        with self._open_poll(caller):
            answer = await self._heartbeat(caller, body)
            ends = time.monotonic() + held_s
            while (left_s := ends - time.monotonic()) > 0:
                await asyncio.sleep(min(left_s, _GRANT_AGE_S))
                self._require_still_granted(caller)
                session = self._session(caller)
                if session.endpoint != self._backend.endpoint(caller.grant.project_id):
                    await self._online(caller, session)  # an aggregator that was begun anew waits for nobody who works
        return answer

    async def _heartbeat(self, caller: Caller, body: bytes) -> bytes:
        session = self._session(caller)
        self._seen(caller.grant.participation_id, session.working)
        endpoint = self._backend.endpoint(caller.grant.project_id)
        if endpoint is None:
            return bytes(SendNodeHeartbeatResponse(success=True).SerializeToString())
        # It may be the first that an aggregator hears of the node, and how to send it messages depends on this.
        operation = "bulk-online" if caller.takes_letters else "send-node-heartbeat"
        return await self._ask(caller, endpoint, operation, body)

    async def deactivate(self, caller: Caller, body: bytes) -> bytes:
        """Take the node offline. One that is not online is no error."""
        session = self._session(caller)
        endpoint, session.endpoint = session.endpoint, None
        session.handed = None
        if endpoint is not None and endpoint == self._backend.endpoint(caller.grant.project_id):
            try:
                await self._ask(caller, endpoint, "deactivate-node", body)
            except Refusal:
                return b""
        return b""

    async def push_messages(self, caller: Caller, body: bytes) -> bytes:
        """Forward a reply's envelope, if the node speaks for itself."""
        request = _parsed(PushMessagesRequest, body)
        if any(message.metadata.src_node_id != request.node.node_id for message in request.messages_list):
            raise Refusal(400, "A node answers in its own name only.")
        self._session(caller).pushed = 0
        self.count_pushed(caller, len(body))
        answer = await self._ask(caller, self._running(caller), "push-messages", body)
        self.moved(caller, Stage.SENDING)  # what the answer holds follows
        for message in request.messages_list:
            self._received(caller, message.metadata.reply_to_message_id)
        return answer

    async def confirm(self, caller: Caller, body: bytes) -> bytes:
        """Forward the receipt of a message; it is not handed out again."""
        request = _parsed(ConfirmMessageReceivedRequest, body)
        answer = await self._ask(caller, self._running(caller), "confirm-message-received", body)
        self.moved(caller, Stage.COMPUTING)
        self._received(caller, request.message_object_id)
        return answer

    async def bulk_push(self, caller: Caller, request: bytes, file: str) -> bool:
        """Hand on a node's answer whose content lies in a file of the run's mail; whether the file will be read.

        Raises KeyUnknown when the grant was withdrawn while the answer came in.
        """
        self._require_still_granted(caller)
        body = pack([request, file.encode("ascii")], {})
        (kept,) = split(await self._ask(caller, self._running(caller), "bulk-push", body))
        return bool(kept)

    def mail_of(self, caller: Caller) -> Path:
        """The run folder for a node's answers. Raises NoRun."""
        folder = self._backend.newest_run_folder(caller.grant.project_id)
        if folder is None:
            raise NoRun
        return folder

    # --- operations that are forwarded

    async def forward(self, caller: Caller, operation: str, body: AsyncIterator[bytes]) -> aiohttp.ClientResponse:
        """Send the request on as it comes in; the answer's body is still to be read, and the answer to be closed."""
        endpoint = self._running(caller)
        try:
            client = await self._client(caller, endpoint)
            response = await client.post(_path(operation), data=body, headers=caller.headers, allow_redirects=False)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise NotNow from error
        try:
            self._note_status(caller, response.status)
        except Refusal:
            response.close()
            raise
        return response

    # --- steps

    def _grant(self, public_key: bytes) -> NodeGrant:
        try:
            grant = self._grants(public_key)
        except DatabaseUnavailable as error:
            raise NobodyKnows from error
        if grant is None:
            self._sessions.pop(public_key, None)
            raise KeyUnknown
        return grant

    def _require_still_granted(self, caller: Caller) -> None:
        """Raises KeyUnknown once the grant is withdrawn. While nobody can ask the database, nobody can withdraw it."""
        with suppress(NobodyKnows):
            self._grant(caller.public_key)

    def _session(self, caller: Caller) -> _Session:
        return self._sessions.setdefault(caller.public_key, _Session())

    @contextmanager
    def _open_poll(self, caller: Caller) -> Iterator[None]:
        """While a poll waits. One that is cancelled has lost its connection; the node may have another by then."""
        session = self._session(caller)
        session.polls += 1
        session.opened += 1
        try:
            yield
        except asyncio.CancelledError:
            if session.polls == 1:
                self._cut_off(caller.grant.participation_id)
                self._in_background(self._lose(caller, session, session.opened))
            raise
        finally:
            session.polls -= 1

    async def _lose(self, caller: Caller, session: _Session, opened: int) -> None:
        """Let the aggregator know that the node is gone, unless it opens another poll soon. Its heartbeat undoes it.

        The node's own signature serves, as for `_online`.
        """
        await asyncio.sleep(_BACK_WITHIN_S)
        endpoint = self._backend.endpoint(caller.grant.project_id)
        if session.opened != opened or session.endpoint is None or session.endpoint != endpoint:
            return
        farewell = DeactivateNodeRequest(node_id=session.node_id)
        session.endpoint = None  # it must be brought online again
        with suppress(Refusal):
            await self._ask(caller, endpoint, "deactivate-node", farewell.SerializeToString())

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _attempts(self, caller: Caller, poll_s: float) -> AsyncIterator[float]:
        """Once now, and again, ever less often, until the poll ends: the seconds that are left of it.

        Raises KeyUnknown once the grant is withdrawn.
        """
        started = checked = time.monotonic()
        self._seen(caller.grant.participation_id, False)
        self.moved(caller, Stage.ANSWERED)  # a node that asks for a message has none
        self._session(caller).working = False
        while True:
            begun = time.monotonic()
            yield max(0.0, poll_s - (begun - started))
            ended = time.monotonic()
            waited = ended - started
            if waited >= poll_s:
                return
            # A look that was held at the aggregator has been the pause itself.
            pause = max(_SHORTEST_PAUSE_S, min(_LONGEST_PAUSE_S, waited / 4)) - (ended - begun)
            await asyncio.sleep(max(0.0, min(pause, poll_s - waited)))
            if time.monotonic() - checked > _GRANT_AGE_S:
                self._require_still_granted(caller)
                checked = time.monotonic()

    def _running(self, caller: Caller) -> Endpoint:
        endpoint = self._backend.endpoint(caller.grant.project_id)
        if endpoint is None:
            raise NoRun
        return endpoint

    async def _online(self, caller: Caller, session: _Session) -> Endpoint | None:
        """The aggregator at which the node is online now; None where none runs, answers, or knows the key.

        The node's own signature serves for the heartbeat: it covers no more than the timestamp.
        """
        endpoint = self._backend.endpoint(caller.grant.project_id)
        if endpoint is None:
            session.endpoint = session.handed = None
            await self._close_clients_of_the_gone()
            return None
        async with session.lock:
            if session.endpoint == endpoint and time.monotonic() - session.online_at < _ONLINE_AGE_S:
                return endpoint
            try:
                if session.endpoint != endpoint:
                    node_id = await SuperLink(endpoint).node_id(caller.public_key)
                    if node_id is None:
                        return None
                    session.node_id, session.handed = node_id, None
                interval = _ONLINE_INTERVAL_S if caller.takes_letters else HEARTBEAT_DEFAULT_INTERVAL
                heartbeat = SendNodeHeartbeatRequest(node=Node(node_id=session.node_id), heartbeat_interval=interval)
                operation = "bulk-online" if caller.takes_letters else "send-node-heartbeat"
                await self._ask(caller, endpoint, operation, heartbeat.SerializeToString())
            except (Refusal, Unavailable):
                session.endpoint = None
                return None
            session.endpoint, session.online_at = endpoint, time.monotonic()
            return endpoint

    def _received(self, caller: Caller, message_id: str) -> None:
        session = self._session(caller)
        if session.handed is not None and session.handed.message_id == message_id:
            session.handed = None

    async def _next_message(
        self, caller: Caller, session: _Session, endpoint: Endpoint, body: bytes, _: float
    ) -> bytes:
        async with session.lock:
            if session.handed is None:
                answer = await self._ask(caller, endpoint, "pull-messages", body)
                message_id = _message_id(answer)
                if not message_id:
                    return b""
                session.handed = _Handed(answer, message_id)
            body = session.handed.body
            self._count_handing(session, session.handed)
            return body

    async def _next_letter(self, caller: Caller, _: _Session, endpoint: Endpoint, body: bytes, left_s: float) -> bytes:
        """The next message's envelope, run and letter. The aggregator hands it out until the node has answered."""
        return await self._ask(caller, endpoint, "bulk-pull", pack([body], {}), min(left_s, _LOOK_S))

    def _count_handing(self, session: _Session, handed: _Handed) -> None:
        handed.times += 1
        if handed.times >= _HANDED_AT_MOST:
            session.handed = None

    async def _ask(self, caller: Caller, endpoint: Endpoint, operation: str, body: bytes, wait_s: float = 0.0) -> bytes:
        headers = {**caller.headers, "content-type": MEDIA_TYPE, "accept": MEDIA_TYPE, "prefer": f"wait={wait_s:g}"}
        headers.pop("content-length", None)
        try:
            client = await self._client(caller, endpoint)
            async with client.post(_path(operation), data=body, headers=headers, allow_redirects=False) as response:
                answer = await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise NotNow from error
        self._note_status(caller, response.status)
        if not response.ok:
            raise Refusal(response.status, answer.decode("utf-8", errors="replace"))
        return answer

    async def _client(self, caller: Caller, endpoint: Endpoint) -> aiohttp.ClientSession:
        """The one client of this aggregator, whose connections all its nodes share. Raises NotNow after `close`."""
        if endpoint not in self._clients:
            await self._close_clients_of_the_gone()
        if self._closed:
            raise NotNow
        if endpoint not in self._clients:
            client = open_session(endpoint, timeout=_TIMEOUT)
            self._clients[endpoint] = (caller.grant.project_id, client)
        return self._clients[endpoint][1]

    async def _close_clients_of_the_gone(self) -> None:
        """What is still asked there ends as where an aggregator does not answer."""
        gone = [one for one, (project_id, _) in self._clients.items() if one != self._backend.endpoint(project_id)]
        for _, client in [self._clients.pop(endpoint) for endpoint in gone]:
            await client.close()

    def _note_status(self, caller: Caller, status: int) -> None:
        """What an aggregator's refusal tells. The signature was checked here: its 401 means another node id."""
        session = self._session(caller)
        if status == HTTPStatus.FORBIDDEN:
            session.handed = None
        if status == HTTPStatus.UNAUTHORIZED:
            session.endpoint = None
            raise AnotherNode


def blob_names(text: str | bytes) -> frozenset[str]:
    """The blobs that a node says it has. Raises Refusal."""
    try:
        return frozenset(json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise Refusal(400, f"The names of blobs are none: {error}") from error


def _require_patience(wait_s: int) -> None:
    if wait_s:
        raise TooOften(wait_s)


def _when_there_is_a_database(tell: Callable[[str, _Told], None]) -> Callable[[str, _Told], None]:
    """What cannot be told now is told at the node's next sign of life: its work is not held up."""

    def tell_if_possible(participation_id: str, what: _Told) -> None:
        try:
            tell(participation_id, what)
        except DatabaseUnavailable as error:
            log.debug("participation %s: %s", participation_id, error.message)

    return tell_if_possible


def _heard(looking: asyncio.Future[bytes]) -> None:
    """What became of a look whose caller has gone is of no interest."""
    if not looking.cancelled():
        looking.exception()


def _path(operation: str) -> str:
    return _BULK_PATHS.get(operation, f"/v1/fleet/{operation}")


def _message_id(envelope: bytes) -> str:
    """Id of the message in Flower's PullMessagesResponse; "" where it has none."""
    messages = _parsed(PullMessagesResponse, envelope).messages_list
    return messages[0].metadata.message_id if messages else ""


def _parsed(kind: type[_Request], body: bytes) -> _Request:
    request: _Request = kind()
    try:
        request.ParseFromString(body)
    except DecodeError as error:
        raise Refusal(400, "The body is not the message that this path takes.") from error
    return request
