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
import base64
import contextlib
import ctypes
import hashlib
import json
import logging
import os
import random
import shutil
import ssl
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Context, Error, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.cli.install import install_from_fab
from flwr.clientapp import ClientApp
from flwr.common.config import get_fused_config_from_fab, get_project_config
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL, TIMESTAMP_HEADER, ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto, run_from_proto
from flwr.proto.fab_pb2 import GetFabRequest, GetFabResponse
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node as NodeProto
from flwr.proto.run_pb2 import GetRunResponse
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.date import now
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.run import Run
from flwr.supercore.runtime_version_compatibility import RuntimeVersionMetadata
from flwr.supercore.task_identity import TaskIdentity
from google.protobuf.message import Message as Protobuf

from federator import service_client as api
from federator.app_import import forget, import_attribute, own_line
from federator.approvals import ApprovalCheck, FetchApproved, NotApproved
from federator.contract import FLEET_PREFIX, FLEET_WAITING_HEADER, Assignment, ClientState, Env
from federator.framing import pack, unpack

_log = logging.getLogger(__name__)

OnState = Callable[[ClientState, str], None]
NodeConfig = Mapping[str, str | int | float | bool]

POLL_S = 20.0  # how long the gateway may hold a poll
_CALL_TIMEOUT_S = 60.0
_CONNECT_TIMEOUT_S = 10.0
_FIRST_RETRY_S, _LONGEST_RETRY_S = 0.2, 5.0
_HEARTBEAT_S = 20.0
_FAREWELL_S = 0.4
_KEPT_RUNS = 4  # contexts of the newest runs; a message of an older run begins with a fresh one
_MEDIA_TYPE = "application/protobuf"
_AGAIN = frozenset({404, 429, 500, 502, 503, 504})  # 404: the Hub's proxy while the service restarts

_Answer = TypeVar("_Answer", bound=Protobuf)
_Result = TypeVar("_Result")


class KeyRefused(Exception):
    """401: the service does not know this node's key, or no longer."""


class RunEnded(Exception):
    """403: the run that a message belonged to does not run any more."""


class NodeUnknown(Exception):
    """409: the aggregator knows this key by another node id than before."""


class FleetError(Exception):
    """The gateway refused a request for good; the text says why."""


class AppNotLoaded(Exception):
    """The app could not be unpacked or imported, for the reason that it was raised from."""


class Interrupted(BaseException):
    """Put into the working thread by `Node.interrupt` and `Node.stop`."""


class FleetConnection:
    """Signed Fleet calls over one pool of connections. Waits out a Hub that is away.

    Args:
        address: host:port of the Hub.
        root_certificates: PEM of the authority that signed the Hub's certificate; None for the system's.
        on_trouble: told when an attempt failed and another follows, with the reason.
    """

    def __init__(
        self,
        address: str,
        *,
        tls: bool,
        root_certificates: bytes | None,
        private_key: ec.EllipticCurvePrivateKey,
        on_trouble: Callable[[str], None],
    ) -> None:
        self._private_key = private_key
        self.public_key: bytes = public_key_to_bytes(private_key.public_key())
        self._on_trouble = on_trouble
        # The trust of the whole process (SSL_CERT_FILE, the system's store), not httpx's own list.
        authority = root_certificates.decode("ascii") if root_certificates else None
        verify = ssl.create_default_context(cadata=authority) if tls else False
        self._http = httpx.AsyncClient(
            base_url=f"{'https' if tls else 'http'}://{address}{FLEET_PREFIX}",
            verify=verify,
            timeout=httpx.Timeout(_CALL_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S),
            headers={
                "content-type": _MEDIA_TYPE,
                "accept": _MEDIA_TYPE,
                FLEET_HTTP_PUBLIC_KEY_HEADER: base64.b64encode(self.public_key).decode("ascii"),
                **dict(RuntimeVersionMetadata.from_local_component("SuperNode").as_metadata()),
            },
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def call(self, operation: str, request: Protobuf, answer_type: type[_Answer]) -> _Answer:
        """Ask until there is an answer.

        Raises:
            KeyRefused, RunEnded, NodeUnknown, FleetError.
        """
        return _parsed(await self.exchange(operation, request.SerializeToString()), answer_type)

    async def exchange(self, operation: str, content: bytes) -> bytes:
        """As `call`, with the bodies as they are."""
        delay = _FIRST_RETRY_S
        while True:
            try:
                response = await self.send(operation, content)
            except httpx.TransportError as error:
                reason = f"{type(error).__name__} {error}".strip()
            else:
                if response.status_code not in _AGAIN and not response.is_redirect:
                    return _content(response)
                reason = f"HTTP {response.status_code}"
            self._on_trouble(reason)
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 - spreads nodes, guards nothing
            delay = min(2 * delay, _LONGEST_RETRY_S)

    async def send(self, operation: str, content: bytes, wait: float | None = None) -> httpx.Response:
        """One attempt. `wait`: how long the gateway may hold it, in seconds; None leaves that to the gateway."""
        timestamp = now().isoformat()
        signature = sign_message(self._private_key, timestamp.encode("ascii"))
        headers = {
            TIMESTAMP_HEADER: timestamp,
            FLEET_HTTP_SIGNATURE_HEADER: base64.b64encode(signature).decode("ascii"),
        }
        if wait is not None:
            headers["prefer"] = f"wait={wait:g}"
        return await self._http.post(operation, content=content, headers=headers)


def _parsed(content: bytes, answer_type: type[_Answer]) -> _Answer:
    answer: _Answer = answer_type()
    answer.ParseFromString(content)
    return answer


def _content(response: httpx.Response) -> bytes:
    if response.is_success:
        return response.content
    raise {401: KeyRefused, 403: RunEnded, 409: NodeUnknown}.get(response.status_code, FleetError)(_detail(response))


def _detail(response: httpx.Response) -> str:
    try:
        return str(response.json()["detail"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return f"HTTP {response.status_code}"


@dataclass(frozen=True, slots=True)
class _Loaded:
    """The app that is imported now."""

    fab_hash: str
    folder: Path
    app: ClientApp


@dataclass(frozen=True, slots=True)
class _Packed:
    """An answer ready to be sent: what Flower calls a message with its object tree and objects."""

    proto: MessageProto
    tree: ObjectTree
    objects: Mapping[str, bytes]
    seconds: float  # the app's own time


@dataclass(frozen=True, slots=True)
class _Task:
    """A message with all that is needed to run it."""

    proto: MessageProto
    contents: dict[str, bytes]
    run: Run
    fab: bytes


class Node:
    """One node, from `start()` to `stop()`. Not to be started again.

    Args:
        fleet_address: host:port of the Hub.
        tls: whether the Hub speaks https.
        root_certificates: PEM of the authority that signed the Hub's certificate; None for the system's.
        private_key: the node's key; its public half is registered with the service.
        approvals: returns the hashes of the FABs that may run here now; called from a thread of the node.
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
        node_config: NodeConfig,
        on_state: OnState,
        work_folder: Path | None = None,
    ) -> None:
        self._connect: Callable[[], FleetConnection] = partial(
            FleetConnection,
            fleet_address,
            tls=tls,
            root_certificates=root_certificates,
            private_key=private_key,
            on_trouble=self._trouble,
        )
        self._approvals = ApprovalCheck(approvals, time.monotonic)
        self._node_config = dict(node_config)
        self._on_state = on_state
        self._state: tuple[ClientState, str] | None = None
        self._work_folder = work_folder
        self._folder = Path()  # private, for all apps of this node
        self._app_folder = Path()  # of the newest app
        self._loaded: _Loaded | None = None
        self._contexts: OrderedDict[int, Context] = OrderedDict()
        self._fabs: dict[str, bytes] = {}
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
        self._folder = Path(tempfile.mkdtemp(prefix="flower-app-", dir=self._work_folder)).resolve()
        try:
            asyncio.run(self._serve())
        except KeyRefused:
            self._report(
                ClientState.FAILED,
                "The service does not accept this client any more: the participation or the approval has ended.",
            )
        except asyncio.CancelledError:
            self._report(ClientState.OFFLINE, "Stopped.")
        except Exception as error:  # noqa: BLE001 - nothing may end the kernel; the person is told
            _log.exception("the node failed")
            self._report(ClientState.FAILED, f"The client failed: {type(error).__name__}: {error}")
        finally:
            if self._loaded is not None:
                forget(self._loaded.folder)
            shutil.rmtree(self._folder, ignore_errors=True)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._serving = asyncio.current_task()
        if self._stopped.is_set():
            return
        connection = self._connect()
        try:
            while True:
                self._node_id = await self._activate(connection)
                async with asyncio.TaskGroup() as tasks:
                    heartbeat = tasks.create_task(self._send_heartbeats(connection))
                    with contextlib.suppress(NodeUnknown):
                        await self._take_messages(connection)
                    heartbeat.cancel()
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        finally:
            with contextlib.suppress(TimeoutError, httpx.HTTPError):
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
            answer = await self._activation(connection, request, wait)
            self._report(ClientState.READY, "Waiting for a run.")
            if answer is not None:
                return int(answer.node_id)
            wait = POLL_S

    async def _activation(
        self, connection: FleetConnection, request: ActivateNodeRequest, wait: float
    ) -> ActivateNodeResponse | None:
        """One answer to the wish to join; None: the key is known, but no aggregator runs yet."""
        try:
            response = await connection.send("activate-node", request.SerializeToString(), wait)
        except httpx.TransportError:
            return await connection.call("activate-node", request, ActivateNodeResponse)
        if response.headers.get(FLEET_WAITING_HEADER):
            return None
        if response.status_code in _AGAIN or response.is_redirect:
            return await connection.call("activate-node", request, ActivateNodeResponse)
        return _parsed(_content(response), ActivateNodeResponse)

    async def _send_heartbeats(self, connection: FleetConnection) -> None:
        request = SendNodeHeartbeatRequest(
            node=NodeProto(node_id=self._node_id), heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL
        )
        while True:
            await asyncio.sleep(_HEARTBEAT_S)
            with contextlib.suppress(NodeUnknown, RunEnded, FleetError):
                await connection.call("send-node-heartbeat", request, SendNodeHeartbeatResponse)

    async def _take_messages(self, connection: FleetConnection) -> None:
        request = PullMessagesRequest(node=NodeProto(node_id=self._node_id)).SerializeToString()
        while True:
            asked_at = time.monotonic()
            body = await connection.exchange("bulk-pull", request)
            if not body:
                self._report(ClientState.READY, "Waiting for a run.")
                if time.monotonic() - asked_at < _FIRST_RETRY_S:  # whoever answered holds no polls
                    await asyncio.sleep(_FIRST_RETRY_S)
                continue
            (envelope, run), contents = unpack(body, messages=2)
            (proto,) = _parsed(envelope, PullMessagesResponse).messages_list
            self._report(ClientState.WORKING, _describe(proto))
            try:
                await self._answer(connection, proto, run_from_proto(_parsed(run, GetRunResponse).run), contents)
            except RunEnded:
                _log.info(
                    "run %d ended before message %s was answered", proto.metadata.run_id, proto.metadata.message_id
                )
            except FleetError as error:
                _log.warning("message %s is lost: %s", proto.metadata.message_id, error)
            self._report(ClientState.READY, "Waiting for the next message.")

    async def _answer(
        self, connection: FleetConnection, proto: MessageProto, run: Run, contents: dict[str, bytes]
    ) -> None:
        try:
            await self._in_worker(partial(self._approvals.require, run.fab_hash))
            fab = await self._fab(connection, run)
        except NotApproved as refusal:
            packed = _packed(_error_reply(proto, ErrorCode.INVALID_FAB, str(refusal)), 0.0)
        else:
            packed = await self._in_worker(partial(self._worked, _Task(proto, contents, run, fab)))
        await self._push(connection, packed)

    async def _fab(self, connection: FleetConnection, run: Run) -> bytes:
        """The run's app. Raises NotApproved if the bytes are not those that the hash stands for."""
        if run.fab_hash not in self._fabs:
            request = GetFabRequest(node=NodeProto(node_id=self._node_id), hash_str=run.fab_hash, run_id=run.run_id)
            content = (await connection.call("get-fab", request, GetFabResponse)).fab.content
            if hashlib.sha256(content).hexdigest() != run.fab_hash:
                raise NotApproved("The aggregator sent another app than the one that the run names.")
            self._fabs = {run.fab_hash: content}
        return self._fabs[run.fab_hash]

    async def _push(self, connection: FleetConnection, packed: _Packed) -> None:
        request = PushMessagesRequest(
            node=NodeProto(node_id=self._node_id),
            messages_list=[packed.proto],
            message_object_trees=[packed.tree],
            clientapp_runtime_list=[packed.seconds],
        )
        await connection.exchange("bulk-push", pack([request.SerializeToString()], packed.objects))

    async def _in_worker(self, work: Callable[[], _Result]) -> _Result:
        """What `work` returns or raises, run in a thread that does not keep the process from ending."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[_Result] = loop.create_future()

        def settle(result: _Result | None, error: Exception | None) -> None:
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
            except Exception as error:  # noqa: BLE001 - handed on to whoever awaits
                trouble = error
            with contextlib.suppress(RuntimeError):  # the node has stopped meanwhile
                loop.call_soon_threadsafe(settle, result, trouble)

        threading.Thread(target=run, name="federator-work", daemon=True).start()
        return await done

    # --- the working thread

    def _worked(self, task: _Task) -> _Packed:
        """The app's answer, or an error answer that says what went wrong and where in the app."""
        started = time.monotonic()
        code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
        try:
            with self._interruptible():
                return _packed(self._run_app(task), time.monotonic() - started)
        except Interrupted:
            reason = "The researcher interrupted it."
        except AppNotLoaded as error:
            code = ErrorCode.LOAD_CLIENT_APP_EXCEPTION
            reason = self._explain(error.__cause__ or error)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the app is the owner's code: it may raise anything
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

    def _run_app(self, task: _Task) -> Message:
        app = self._load(task)
        message_id = task.proto.metadata.message_id
        message = cast(Message, inflate_object_from_contents(message_id, task.contents))
        message.metadata.__dict__["_message_id"] = message_id
        reply = app(message=message, context=self._context(task))
        if not isinstance(reply, Message):
            raise TypeError(f"the ClientApp answered with {type(reply).__name__}, not with a Message")
        return reply

    def _explain(self, error: BaseException) -> str:
        line = own_line(error, self._app_folder)
        return f"{type(error).__name__}: {error}" + (f" ({line})" if line else "")

    def _load(self, task: _Task) -> ClientApp:
        """The run's app, unpacked and imported if it is not the one that is loaded. Raises AppNotLoaded."""
        if self._loaded is not None and self._loaded.fab_hash == task.run.fab_hash:
            return self._loaded.app
        earlier, self._loaded = self._loaded, None
        try:
            folder = install_from_fab(task.fab, install_dir=self._folder, skip_prompt=True).resolve()
            self._app_folder = folder
            reference = get_project_config(folder)["tool"]["flwr"]["app"]["components"]["clientapp"]
            app = import_attribute(reference, folder, earlier.folder if earlier else None)
        except (Exception, SystemExit) as error:
            _log.exception("the ClientApp could not be loaded")
            raise AppNotLoaded from error
        if not isinstance(app, ClientApp):
            raise AppNotLoaded(f"'{reference}' is no ClientApp")
        if earlier is not None:
            shutil.rmtree(earlier.folder, ignore_errors=True)
        self._loaded = _Loaded(task.run.fab_hash, folder, app)
        return app

    def _context(self, task: _Task) -> Context:
        """The run's context: what the app puts into its state is there at the run's next message."""
        run_id = task.run.run_id
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 0, run_id, self._node_id
        if run_id not in self._contexts:
            self._contexts[run_id] = Context(
                run_id=run_id,
                node_id=self._node_id,
                node_config=dict(self._node_config),
                state=RecordDict(),
                run_config=get_fused_config_from_fab(task.fab, task.run),
                series_id=task.run.series_id,
            )
            while len(self._contexts) > _KEPT_RUNS:
                self._contexts.popitem(last=False)
        return self._contexts[run_id]

    # --- state

    def _trouble(self, reason: str) -> None:
        _log.info("the Hub does not answer: %s", reason)
        self._report(ClientState.STARTING, "The Hub does not answer; trying again.")

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

    def approved() -> tuple[str, ...]:
        return service.call(api.get_site_approvals(assignment.participation_id)).fab_hashes

    return Node(
        environ[Env.FLEET_ADDRESS],
        tls=environ.get(Env.FLEET_TLS) == "1",
        root_certificates=None,
        private_key=private_key,
        approvals=approved,
        node_config={
            "dataset": assignment.dataset,
            "dataset-path": datasets.get(assignment.dataset, ""),
            "site": assignment.site,
        },
        on_state=on_state,
    )


def _describe(proto: MessageProto) -> str:
    group = proto.metadata.group_id
    return f"{proto.metadata.message_type}, round {group}" if group else proto.metadata.message_type


def _error_reply(proto: MessageProto, code: int, reason: str) -> Message:
    return Message(Error(code=code, reason=reason), reply_to=message_from_proto(proto))


def _packed(reply: Message, seconds: float) -> _Packed:
    reply.metadata.__dict__["_message_id"] = reply.object_id
    with no_object_id_recompute():
        objects = {object_id: item.deflate() for object_id, item in get_all_nested_objects(reply).items()}
        tree = get_object_tree(reply)
    bare = remove_content_from_message(reply) if reply.has_content() else reply
    return _Packed(message_to_proto(bare), tree, objects, seconds)
