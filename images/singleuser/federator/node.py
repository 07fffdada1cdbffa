"""The Flower node of a client kernel: takes messages from the project's aggregator and runs the ClientApp right here.

It speaks Flower's Fleet API, as a stock `flower-supernode` does, through the Hub's one origin. What differs: a message
and its answer travel whole, in one request each (`federator.framing`); the app runs in this warm process instead of a
new one for each message; an app that is not approved here is refused before it is unpacked; nothing that the network or
the app does ends the process.

    thread "federator-node"   an event loop: long poll, heartbeat, objects of a message
    thread "federator-work"   one for each message: unpack, import, run, pack the answer
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import ctypes
import fcntl
import hashlib
import json
import logging
import os
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar, cast

from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array, Context, Error, Message, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.cli.install import install_from_fab
from flwr.clientapp import ClientApp
from flwr.common.config import get_fused_config_from_fab, get_project_config
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL, ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto, run_from_proto
from flwr.common.serde_utils import metadata_from_proto
from flwr.proto.fab_pb2 import GetFabRequest, GetFabResponse
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node as NodeProto
from flwr.proto.run_pb2 import GetRunResponse
from flwr.supercore.inflatable.inflatable_object import get_object_tree, no_object_id_recompute
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from google.protobuf.message import Message as Protobuf

from federator import allocator, logs
from federator import service_client as api
from federator.app_import import forget, import_attribute, import_for_first_use, own_line
from federator.approvals import ApprovalCheck, FetchApproved, NobodyAnswers, NotApproved, RoundCheck
from federator.contexts import Ask, RunContexts
from federator.contract import Assignment, ClientState, Conditions, DeclaredOutput, Env
from federator.delay import Delay
from federator.fleet import NO_ANSWER, FleetConnection, FleetError, KeyRefused, NodeUnknown, Received, RunEnded
from federator.framing import Data, size_of
from federator.outputs import NotDeclared, outputs_of, require_declared
from federator.parcel import Letter, content_of, halved, letter_of, may_halve, plain_array

_log = logging.getLogger(__name__)

OnState = Callable[[ClientState, str], None]
NodeConfig = Mapping[str, str | int | float | bool]
FetchApp = Callable[[str], bytes]

POLL_S = 50.0  # how long the gateway may hold a poll; proxies often cut one off after a minute
_FOLLOWING_S = 2.0  # how long an answer waits for the next message, which then costs no request of its own
_NO_POLL_S = 0.2  # the shortest pause after an answer that came at once and was none
# While a message is worked on; else the open poll says that the node is there. Flower counts a node as lost that has
# missed two of the intervals that it names.
_HEARTBEAT_S, _HEARTBEAT_INTERVAL_S = 10.0, 15
_WATCH_AFTER_S = 1.0  # a message that takes longer is watched over: the gateway tells when this node's right ends
_FAREWELL_S = 0.4
_FOLDER = "flower-app-"  # a node's folder begins with this
# Characters of an error answer, of the exception's own words in it, of its kind and of its place. A longer answer would
# be refused, and the site would be asked for the same again and again.
_LONGEST_REASON, _LONGEST_WORDS, _LONGEST_PLACE = 2000, 1500, 200

_Answer = TypeVar("_Answer", bound=Protobuf)
_Result = TypeVar("_Result")


class AppNotLoaded(Exception):
    """The app could not be unpacked or imported, for the reason that it was raised from."""


class AnsweredWithError(Exception):
    """The app made an error answer itself, with this reason."""


class Interrupted(BaseException):
    """Put into the working thread by `Node.interrupt` and `Node.stop`."""


def _parsed(content: bytes, answer_type: type[_Answer]) -> _Answer:
    answer: _Answer = answer_type()
    answer.ParseFromString(content)
    return answer


@dataclass(frozen=True, slots=True)
class _Loaded:
    """The app that is imported now."""

    fab_hash: str
    folder: Path
    app: ClientApp


@dataclass(frozen=True, slots=True)
class _Packed:
    """An answer ready to be sent.

    Attributes:
        proto: the message without its content.
        tree: Flower's tree of the objects of that.
        parts: its letter and the data of its arrays; none for an error. Let go of when it is sent.
        seconds: the app's own time.
    """

    proto: MessageProto
    tree: ObjectTree
    parts: list[Data]
    seconds: float


@dataclass(frozen=True, slots=True)
class _Task:
    """A message with all that is needed to run it.

    Attributes:
        proto: without its content.
        data: of the arrays that came along; those of blobs that this node had are not among them.
    """

    proto: MessageProto
    letter: Letter
    data: Sequence[bytes]
    run: Run


class Node:
    """One node, from `start()` to `stop()`. Not to be started again.

    Args:
        fleet_address: host:port of the Hub.
        tls: whether the Hub speaks https.
        root_certificates: PEM of the authority that signed the Hub's certificate; None for the system's.
        private_key: the node's key; its public half is registered with the service.
        approvals: returns the hashes of the FABs that may run here now, each with the steward's conditions; called
            from a thread of the node.
        fetch_app: returns the FAB of a hash, or raises ServiceError; called from a thread of the node.
        node_config: what the app reads as `context.node_config`.
        on_state: told of each change, with a text for the researcher; called from a thread of the node.
        work_folder: the app is unpacked in a private folder below it; None for the system's temporary folder.
    """

    def __init__(
        self,
        fleet_address: str,
        *,
        tls: bool,
        root_certificates: bytes | None,
        private_key: ec.EllipticCurvePrivateKey,
        approvals: FetchApproved,
        fetch_app: FetchApp,
        node_config: NodeConfig,
        on_state: OnState,
        work_folder: Path | None = None,
    ) -> None:
        self.refused = False  # whether it ended because the service did not accept its key any more
        self._connect: Callable[[], FleetConnection] = partial(
            FleetConnection,
            fleet_address,
            tls=tls,
            root_certificates=root_certificates,
            private_key=private_key,
            on_trouble=self._trouble,
            on_clock=self._clock_is_off,
        )
        self._approvals = ApprovalCheck(approvals, time.monotonic)
        self._rounds = RoundCheck()
        self._fetch_app = fetch_app
        self._node_config = dict(node_config)
        self._on_state = on_state
        self._state: tuple[ClientState, str] | None = None
        self._work_folder = work_folder
        self._folder = Path()  # private, for all apps of this node
        self._app_folder = Path()  # of the newest app
        self._loaded: _Loaded | None = None
        self._outputs: tuple[DeclaredOutput, ...] = ()  # of the newest app
        self._contexts = RunContexts()
        self._blobs: dict[str, tuple[bytes, ...]] = {}  # of the last message, by name
        self._fabs: dict[str, bytes] = {}
        self._wanted = ""  # hash of the app that is to be loaded before a message asks for it
        self._app_trouble = ""  # why it is not
        self._clock_trouble = ""
        self._news = asyncio.Event()  # it may be another one than is loaded
        self._between_runs = asyncio.Event()
        self._between_runs.set()
        self._busy = asyncio.Event()
        self._process = asyncio.Lock()  # held by whoever loads or runs an app in this process
        self._worker_lock = threading.Lock()
        self._worker_ident: int | None = None
        self._thread = threading.Thread(target=self._main, name="federator-node", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._serving: asyncio.Task[None] | None = None
        self._stopped = threading.Event()
        self._node_id = 0

    def start(self) -> None:
        """Begin to join; returns at once. `on_state` tells how it goes."""
        self._report(ClientState.STARTING, "Connecting to the Hub.")
        self._thread.start()

    def prepare(self, fab_hash: str) -> None:
        """Load this app as soon as no run is under way here, so that its first message is answered at once.

        Returns at once. Only an approved app is loaded; one that cannot be is told in the state. Called by
        `federator.client`, before `start()` and when another version has been approved.
        """
        self._wanted = fab_hash
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._news.set)

    def interrupt(self) -> None:
        """Give up the message being worked on. The aggregator gets an error answer; the next message is taken."""
        with self._worker_lock:
            if self._worker_ident is not None:
                thread = ctypes.c_ulong(self._worker_ident)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(Interrupted))

    def stop(self, timeout: float) -> None:
        """Leave the aggregator and end the node's threads, or return after `timeout` seconds with them still ending."""
        self._stopped.set()
        self.interrupt()
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended by itself meanwhile
                loop.call_soon_threadsafe(self._cancel)
        self._thread.join(timeout)

    # --- the node's thread

    def _main(self) -> None:
        try:
            self._serve_in_a_folder()
        except KeyRefused:
            reason = (
                "The service does not accept this client any more: the participation or the approval has ended, "
                "or a newer client has taken its place."
            )
            _log.warning("%s Whatever it worked on was given up.", reason)
            self.refused = True
            self._report(ClientState.FAILED, reason)
        except asyncio.CancelledError:
            self._report(ClientState.OFFLINE, "Stopped.")
        except Exception as error:  # noqa: BLE001 - nothing may end the kernel; the person is told
            _log.exception("the node failed")
            self._report(ClientState.FAILED, f"The client failed: {type(error).__name__}: {error}")

    def _serve_in_a_folder(self) -> None:
        with _private_folder(self._work_folder) as folder:
            self._folder = folder
            try:
                asyncio.run(self._serve())
            finally:
                if self._loaded is not None:
                    forget(self._loaded.folder)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._serving = asyncio.current_task()
        if self._stopped.is_set():
            return
        connection = self._connect()
        try:
            await self._load_wanted(ClientState.STARTING)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._load_news())
                tasks.create_task(self._send_heartbeats(connection))
                while True:
                    self._node_id = await self._activate(connection)
                    with contextlib.suppress(NodeUnknown):
                        await self._take_messages(connection)
        except BaseExceptionGroup as group:
            self.interrupt()  # whatever ended this node: nobody takes an answer of it any more
            raise group.exceptions[0] from None
        finally:
            with contextlib.suppress(*NO_ANSWER):
                async with asyncio.timeout(_FAREWELL_S):
                    if self._node_id:
                        farewell = DeactivateNodeRequest(node_id=self._node_id)
                        await connection.send("deactivate-node", farewell.SerializeToString())
            await connection.close()

    def _cancel(self) -> None:
        if self._serving is not None:
            self._serving.cancel()

    async def _activate(self, connection: FleetConnection) -> int:
        """Join the aggregator, waiting until there is one; return the id that it gives this node."""
        request = ActivateNodeRequest(public_key=connection.public_key, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)
        wait = 0.0
        while True:
            ask = partial(connection.exchange, "activate-node", request.SerializeToString(), wait)
            body = await self._until_granted(ask)
            self._report_waiting("Waiting for a run.")
            if body:
                return int(_parsed(body, ActivateNodeResponse).node_id)
            wait = POLL_S

    async def _until_granted(self, ask: Callable[[], Awaitable[_Result]]) -> _Result:
        """What comes of `ask`, which the gateway may refuse for what passes: a run that has just ended."""
        delay = Delay(random.random)
        while True:
            try:
                return await ask()
            except (RunEnded, FleetError) as refusal:
                self._trouble("The Hub refuses what this client asks", str(refusal))
                await asyncio.sleep(delay.next())

    async def _send_heartbeats(self, connection: FleetConnection) -> None:
        """While a message is worked on: say that this node is there, by long polls. Raises KeyRefused once its right
        has ended, which ends the work."""
        while True:
            await self._busy.wait()
            await asyncio.sleep(_WATCH_AFTER_S)
            while self._busy.is_set():
                asked_at = time.monotonic()
                request = SendNodeHeartbeatRequest(
                    node=NodeProto(node_id=self._node_id), heartbeat_interval=_HEARTBEAT_INTERVAL_S
                )
                with contextlib.suppress(NodeUnknown, RunEnded, FleetError):
                    await connection.exchange("send-node-heartbeat", request.SerializeToString(), _HEARTBEAT_S)
                if time.monotonic() - asked_at < _WATCH_AFTER_S:  # whoever answered holds no polls
                    await asyncio.sleep(_HEARTBEAT_S)

    async def _take_messages(self, connection: FleetConnection) -> None:
        while True:
            received = await self._poll(connection)
            if not received.parts:
                self._note_no_message()
            while received.parts:
                received = await self._work_on(connection, received)

    async def _poll(self, connection: FleetConnection) -> Received:
        request = PullMessagesRequest(node=NodeProto(node_id=self._node_id))
        asked_at = time.monotonic()
        ask = partial(connection.pull, request, self._blobs, POLL_S, self._note_message)
        received = await self._until_granted(ask)
        if not received.parts and time.monotonic() - asked_at < _NO_POLL_S:  # whoever answered holds no polls
            await asyncio.sleep(_NO_POLL_S)
        return received

    def _note_no_message(self) -> None:
        """A poll has brought none."""
        self._busy.clear()
        if not self._between_runs.is_set():
            allocator.give_back()
        self._between_runs.set()
        self._report_waiting("Waiting for a run.")

    def _note_message(self) -> None:
        """A message begins to come in: from now on no poll says that this node is there."""
        self._busy.set()
        self._report(ClientState.WORKING, "Receiving a message.")

    async def _load_news(self) -> None:
        """Load each app that `prepare` names while this node serves, between runs."""
        while True:
            await self._news.wait()
            await self._between_runs.wait()
            async with self._process:
                if self._between_runs.is_set():
                    self._news.clear()
                    await self._load_wanted(ClientState.READY)
                    self._report_waiting("Waiting for a run.")

    async def _load_wanted(self, state: ClientState) -> None:
        """Load the app that `prepare` has named, if it is not; `state` is what this node is in meanwhile."""
        fab_hash = self._wanted
        if fab_hash and (self._loaded is None or self._loaded.fab_hash != fab_hash):
            self._report(state, "Loading the approved app.")
            self._app_trouble = await self._in_worker(partial(self._load_ahead, fab_hash))

    async def _work_on(self, connection: FleetConnection, received: Received) -> Received:
        """Answer a message; return what comes behind the receipt, which is the next one or none."""
        (proto,) = _parsed(received.parts[0], PullMessagesResponse).messages_list
        self._between_runs.clear()
        logs.note(run=str(proto.metadata.run_id), message_id=proto.metadata.message_id)
        _log.info("%s", _describe(proto))
        following = Received([], 0)
        try:
            async with self._process:
                self._report(ClientState.WORKING, _describe(proto))
                packed = await self._answer(connection, proto, received)
            received.parts.clear()  # as large as a model, and the wait for the next message is long
            following = await self._push(connection, proto, packed)
        except RunEnded:
            _log.info("run %d ended before message %s was answered", proto.metadata.run_id, proto.metadata.message_id)
        except FleetError as error:
            _log.warning("message %s is lost: %s", proto.metadata.message_id, error)
        finally:
            if not following.parts:
                self._leave_message()
        if not following.parts:
            self._report_waiting("Waiting for the next message.")
        return following

    def _leave_message(self) -> None:
        self._busy.clear()
        logs.note(run="", message_id="")

    def _note_taken(self) -> None:
        """The answer has been taken: from now on the open request is a poll."""
        self._leave_message()
        self._report_waiting("Waiting for the next message.")

    async def _answer(self, connection: FleetConnection, proto: MessageProto, received: Received) -> _Packed:
        """What the message is answered with. What nobody foresaw is an error answer too: the next message may be a
        better one."""
        try:
            _, run, letter, *data = received.parts
            task = _Task(proto, Letter.unpacked(letter), data, run_from_proto(_parsed(run, GetRunResponse).run))
            return self._within_limit(await self._result(connection, task), task, received.body_limit)
        except (KeyRefused, NodeUnknown, RunEnded, FleetError):
            raise
        except Exception as error:  # noqa: BLE001 - see above
            _log.exception("message %s could not be worked on", proto.metadata.message_id)
            return _refusal(proto, ErrorCode.CLIENT_APP_RAISED_EXCEPTION, self._explain(error))

    def _within_limit(self, packed: _Packed, task: _Task, limit: int) -> _Packed:
        """The answer, or an error that says why it cannot be sent."""
        largest = self._approvals.largest_message(task.run.fab_hash)
        whose = "the service takes" if largest is None or limit < largest else "its data steward lets out"
        limit = limit if largest is None else min(limit, largest)
        size = size_of([self._envelope(packed), *packed.parts])
        if not packed.parts or size <= limit:
            return packed
        reason = f"The site's answer has {size:,} bytes; {whose} {limit:,} at most."
        return _refusal(task.proto, ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason)

    async def _result(self, connection: FleetConnection, task: _Task) -> _Packed:
        try:
            conditions = await self._conditions(task.run.fab_hash)
            metadata = task.proto.metadata
            self._rounds.require(
                conditions, metadata.run_id, task.run.pending_at, metadata.message_type, metadata.group_id
            )
            fab = await self._fab(connection, task.run)
        except NotApproved as refusal:
            return _refusal(task.proto, ErrorCode.INVALID_FAB, str(refusal))
        return await self._in_worker(partial(self._worked, task, fab))

    async def _conditions(self, fab_hash: str) -> Conditions:
        """What the app may do here. Raises NotApproved.

        A service that is begun anew answers in a moment. An error answer would not be taken back: with all sites in it,
        it would be the end of the run.
        """
        before, delay = self._state, Delay(random.random)
        while True:
            try:
                conditions = await self._in_worker(partial(self._approvals.require, fab_hash))
            except NobodyAnswers as trouble:
                self._trouble("The Hub does not answer", str(trouble))
                await asyncio.sleep(delay.next())
            else:
                if before is not None:
                    self._report(*before)
                return conditions

    async def _fab(self, connection: FleetConnection, run: Run) -> bytes:
        """The run's app. Raises NotApproved if the bytes are not those that the hash stands for."""
        if run.fab_hash not in self._fabs:
            request = GetFabRequest(node=NodeProto(node_id=self._node_id), hash_str=run.fab_hash, run_id=run.run_id)
            content = (await connection.call("get-fab", request, GetFabResponse)).fab.content
            if not _is_fab(content, run.fab_hash):
                raise NotApproved("The aggregator sent another app than the one that the run names.")
            self._fabs = {run.fab_hash: content}
        return self._fabs[run.fab_hash]

    async def _push(self, connection: FleetConnection, proto: MessageProto, packed: _Packed) -> Received:
        """Send the answer; where it is refused, the reason."""
        has_content = bool(packed.parts)
        try:
            return await self._send(connection, packed)
        except FleetError as error:
            if not has_content:
                raise
            return await self._send(connection, _refusal(proto, ErrorCode.MESSAGE_UNAVAILABLE, str(error)))

    async def _send(self, connection: FleetConnection, packed: _Packed) -> Received:
        parts = [self._envelope(packed), *packed.parts]
        packed.parts.clear()
        return await connection.push(parts, list(self._blobs), _FOLLOWING_S, self._note_taken, self._note_message)

    def _envelope(self, packed: _Packed) -> bytes:
        request = PushMessagesRequest(
            node=NodeProto(node_id=self._node_id),
            messages_list=[packed.proto],
            message_object_trees=[packed.tree],
            clientapp_runtime_list=[packed.seconds],
        )
        return bytes(request.SerializeToString())

    async def _in_worker(self, work: Callable[[], _Result]) -> _Result:
        """What `work` returns or raises, run in a thread that does not keep the process from ending."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[_Result] = loop.create_future()

        def settle(result: _Result | None, error: BaseException | None) -> None:
            if done.done():
                return
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(cast(_Result, result))

        def run() -> None:
            result, trouble = None, None
            try:
                result = work()
            except BaseException as error:  # noqa: BLE001 - handed on to whoever awaits: it would wait for ever
                trouble = error
            with contextlib.suppress(RuntimeError):  # the node has stopped meanwhile
                loop.call_soon_threadsafe(settle, result, trouble)

        here = contextvars.copy_context()  # what its lines in the log are about
        threading.Thread(target=here.run, args=(run,), name="federator-work", daemon=True).start()
        return await done

    # --- the working thread

    def _load_ahead(self, fab_hash: str) -> str:
        """Load an app that no message has asked for yet; return what kept it from that, or ""."""
        try:
            self._approvals.require(fab_hash)
            content = self._fabs.get(fab_hash) or self._fetch_app(fab_hash)
            if not _is_fab(content, fab_hash):
                return "The service sent another app than the approved one."
            self._fabs = {fab_hash: content}
            if self._stopped.is_set():
                return ""
            with self._interruptible():
                self._load(fab_hash, content)
                import_for_first_use()
        except Interrupted:
            return "The researcher interrupted it."
        except AppNotLoaded as error:
            return self._explain(error.__cause__ or error)
        except (NotApproved, api.ServiceError) as error:
            return str(error)
        except BaseException as error:  # noqa: BLE001 - the libraries' own code: it may raise anything
            _log.exception("the ClientApp's libraries could not be loaded")
            return self._explain(error)
        return ""

    def _worked(self, task: _Task, fab: bytes) -> _Packed:
        """The app's answer, or an error answer that says what went wrong and where in the app."""
        started = time.monotonic()
        code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
        try:
            with self._interruptible():
                return _packed(self._run_app(task, fab), time.monotonic() - started, half=task.letter.half)
        except Interrupted:
            reason = "The researcher interrupted it."
        except NotDeclared as refusal:
            reason = str(refusal)
        except AppNotLoaded as error:
            code = ErrorCode.LOAD_CLIENT_APP_EXCEPTION
            reason = self._explain(error.__cause__ or error)
        except BaseException as error:  # noqa: BLE001 - the app is the owner's code: it may raise anything
            _log.exception("the ClientApp failed")
            reason = self._explain(error)
        return _packed(_error_reply(task.proto, code, reason), time.monotonic() - started)

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """While this is open, `interrupt` reaches the calling thread; an interrupt never comes after it is closed."""
        with self._worker_lock:
            self._worker_ident = threading.get_ident()
        try:
            yield
        finally:
            with self._worker_lock:
                self._worker_ident = None

    def _run_app(self, task: _Task, fab: bytes) -> Message:
        app = self._load(task.run.fab_hash, fab)
        message = make_message(
            metadata=metadata_from_proto(task.proto.metadata),
            content=content_of(task.letter, partial(self._take_blob, iter(task.data)), plain_array),
        )
        self._forget_blobs(but=task.letter.blobs)
        reply = app(message=message, context=self._context(task, fab, _asked(message)))
        if not isinstance(reply, Message):
            raise TypeError(f"the ClientApp answered with {type(reply).__name__}, not with a Message")
        if reply.has_error():
            raise AnsweredWithError(reply.error.reason)
        require_declared(self._outputs, task.proto.metadata.message_type, reply.content)
        # Metadata of our own: nothing was declared of the app's.
        return Message(reply.content, reply_to=message_from_proto(task.proto))

    def _take_blob(self, arrived: Iterator[bytes], name: str, count: int) -> Sequence[bytes]:
        """The blob's data, from before or out of what has arrived: it is sent to a node once."""
        if name in self._blobs:
            return self._blobs[name]
        data = tuple(islice(arrived, count))
        if len(data) == count:
            self._blobs[name] = data
        return data

    def _forget_blobs(self, but: Sequence[str] = ()) -> None:
        """Keep the model of this message: the next one mostly brings the same."""
        self._blobs = {name: data for name, data in self._blobs.items() if name in but}

    def _explain(self, error: BaseException) -> str:
        """What leaves the site of an app's exception. Its words may be data: where the app declares what it lets out,
        only the exception's kind and place leave."""
        name, line = type(error).__name__, own_line(error, self._app_folder)
        where = _sendable(f" ({line})" if line else "", _LONGEST_PLACE)
        if self._outputs:
            return f"{_sendable(name, _LONGEST_PLACE)}{where}: the site's own log has the rest"
        try:
            text = f"{name}: {error}"
        except BaseException:  # noqa: BLE001 - the app's own code writes it
            text = name
        return _sendable(text, _LONGEST_WORDS) + where

    def _load(self, fab_hash: str, fab: bytes) -> ClientApp:
        """The app of the hash, unpacked and imported if it is not the one that is loaded. Raises AppNotLoaded."""
        if self._loaded is not None and self._loaded.fab_hash == fab_hash:
            return self._loaded.app
        earlier, self._loaded = self._loaded, None
        try:
            folder = install_from_fab(fab, install_dir=self._folder, skip_prompt=True).resolve()
            self._app_folder = folder
            tools = get_project_config(folder)["tool"]
            self._outputs = outputs_of(tools)
            reference = tools["flwr"]["app"]["components"]["clientapp"]
            app = import_attribute(reference, folder, earlier.folder if earlier else None)
        except Interrupted:
            self._remove_unpacked()
            raise
        except BaseException as error:
            _log.exception("the ClientApp could not be loaded")
            self._remove_unpacked()
            raise AppNotLoaded from error
        if not isinstance(app, ClientApp):
            raise AppNotLoaded(f"'{reference}' is no ClientApp")
        if earlier is not None:
            shutil.rmtree(earlier.folder, ignore_errors=True)
        self._loaded, self._app_trouble = _Loaded(fab_hash, folder, app), ""
        return app

    def _remove_unpacked(self) -> None:
        """Flower takes a folder that is there for an app that was unpacked, also where the disk was full meanwhile."""
        for folder in self._folder.iterdir():
            shutil.rmtree(folder, ignore_errors=True)

    def _context(self, task: _Task, fab: bytes, ask: Ask) -> Context:
        """The run's context: what the app puts into its state is there at the run's next message."""
        run_id = task.run.run_id
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 0, run_id, self._node_id

        def make() -> Context:
            return Context(
                run_id=run_id,
                node_id=self._node_id,
                node_config=dict(self._node_config),
                state=RecordDict(),
                run_config=get_fused_config_from_fab(fab, task.run),
                series_id=task.run.series_id,
            )

        return self._contexts.of(task.run, ask, make)

    # --- state

    def _trouble(self, matter: str, reason: str) -> None:
        _log.info("%s: %s", matter, reason)
        self._report(ClientState.STARTING, f"{matter}; trying again.")

    def _clock_is_off(self, behind_s: float) -> None:
        way = "behind" if behind_s > 0 else "ahead of"
        self._clock_trouble = (
            f"The clock of this site is {abs(behind_s):.0f} s {way} the Hub's; this client goes by the Hub's time."
        )
        _log.warning("%s Ask the site to set it right.", self._clock_trouble)

    def _report_waiting(self, detail: str) -> None:
        if self._clock_trouble:
            detail = f"{detail} {self._clock_trouble}"
        if self._app_trouble:
            detail = f"{detail} The approved app could not be loaded: {self._app_trouble}"
        self._report(ClientState.READY, detail)

    def _report(self, state: ClientState, detail: str) -> None:
        if self._state != (state, detail):
            self._state = (state, detail)
            self._on_state(state, detail)


def node_for_assignment(
    assignment: Assignment,
    private_key: ec.EllipticCurvePrivateKey,
    service: api.ServiceClient,
    on_state: OnState,
    environ: Mapping[str, str] = os.environ,
) -> Node:
    """The node of an assignment, on a server whose environment the Hub has set. Called by `federator.kernel`."""
    datasets = json.loads(environ.get(Env.DATASETS, "{}"))

    def approved() -> dict[str, Conditions]:
        answer = service.call(api.get_site_approvals(assignment.participation_id))
        return {fab_hash: answer.conditions.get(fab_hash, Conditions()) for fab_hash in answer.fab_hashes}

    def fetch_app(fab_hash: str) -> bytes:
        return service.call(api.get_approved_app(assignment.participation_id, fab_hash))

    return Node(
        environ[Env.FLEET_ADDRESS],
        tls=environ.get(Env.FLEET_TLS) == "1",
        root_certificates=None,
        private_key=private_key,
        approvals=approved,
        fetch_app=fetch_app,
        node_config={
            "dataset": assignment.dataset,
            "dataset-path": datasets.get(assignment.dataset, ""),
            "site": assignment.site,
        },
        on_state=on_state,
    )


@contextlib.contextmanager
def _private_folder(below: Path | None) -> Iterator[Path]:
    """A folder that is gone with its node. Those of nodes that were killed are removed: they hold a project's code."""
    with tempfile.TemporaryDirectory(prefix=_FOLDER, dir=below, ignore_cleanup_errors=True) as name:
        folder = Path(name).resolve()
        with _locked(folder, fcntl.LOCK_EX):  # another node may be looking at it just now
            for other in folder.parent.glob(f"{_FOLDER}*"):
                _remove_abandoned(other)
            yield folder


def _remove_abandoned(folder: Path) -> None:
    # It may be another user's, or one whose node lives.
    with contextlib.suppress(OSError), _locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
        if any(folder.iterdir()):  # an empty one may be a node's that has not locked it yet
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path, how: int) -> Iterator[None]:
    """Nobody else can lock the folder until this ends, or its process. Raises OSError; with LOCK_NB, where one has."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


def _is_fab(content: bytes, fab_hash: str) -> bool:
    return hashlib.sha256(content).hexdigest() == fab_hash


def _asked(message: Message) -> Ask:
    """Its round is Flower's group, or what a strategy says in its configuration."""
    said = (record.get("server-round") for record in message.content.config_records.values())
    number = message.metadata.group_id or next((str(one) for one in said if one is not None), "")
    return message.metadata.message_type, number


def _describe(proto: MessageProto) -> str:
    group = proto.metadata.group_id
    return f"{proto.metadata.message_type}, round {group}" if group else proto.metadata.message_type


def _error_reply(proto: MessageProto, code: int, reason: str) -> Message:
    return Message(Error(code=code, reason=_sendable(reason)), reply_to=message_from_proto(proto))


def _sendable(text: str, longest: int = _LONGEST_REASON) -> str:
    """What an app says, as an answer and a report can carry it: it may be anything, and names of files any bytes."""
    return logs.one_line(text[:longest])[:longest]


def _packed(reply: Message, seconds: float, *, half: bool = False) -> _Packed:
    """Arrays go as they are, or in half precision; only what is left of the message becomes objects with ids."""
    bare = remove_content_from_message(reply)
    parts: list[Data] = []
    if reply.has_content():
        parts.append(letter_of(reply.content, name=lambda _: "", half=half).packed())
        arrays = [array for record in reply.content.array_records.values() for array in record.values()]
        parts += [_halved(array) if half and may_halve(array) else array.data for array in arrays]
    with no_object_id_recompute():
        bare.metadata.__dict__["_message_id"] = bare.object_id
        return _Packed(message_to_proto(bare), get_object_tree(bare), parts, seconds)


def _halved(array: Array) -> bytes:
    """Numbers that are too large become infinite: the aggregator leaves such an answer out, and says so."""
    return halved(array.numpy(), beyond="ignore")


def _refusal(proto: MessageProto, code: int, reason: str) -> _Packed:
    return _packed(_error_reply(proto, code, reason), 0.0)
