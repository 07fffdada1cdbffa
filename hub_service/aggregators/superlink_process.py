"""A project's SuperLink: Flower's own, with more paths for messages whose arrays travel beside them.

    python -m hub_service.aggregators.superlink_process --node-ids FILE [--run-id N] [--unix-socket PATH] <more>

Through Flower's paths a message costs a dozen small requests: its envelope, its run, each of its objects, its receipt.
Below `/v1/bulk/` one request does, in the frames of `federator.framing`, and model data do not pass here at all: they
lie in files of the run (`mail.py`), and a letter names them (`federator.parcel`). What a path does is done by Flower's
own handlers and state, after Flower's own checks of who asks and whether the run still runs:

    online      a node that takes letters is here   SendNodeHeartbeatRequest -> SendNodeHeartbeatResponse
    pull        it takes its next message           [PullMessagesRequest]
                                                    -> [PullMessagesResponse, GetRunResponse, letter]; 204: nothing yet
    push        it answers it                       [PushMessagesRequest, file of its answer or nothing]
                                                    -> ["kept" or nothing]; nothing: the file is not wanted
    give-key    the service lets a node have a key  [node id, public key] -> [node id]; 400: another node's key
    grid-nodes  the ServerApp asks who is here      GetNodesRequest -> [GetNodesResponse, ids of those with letters,
                                                    seconds of silence of each that is away, by its id]
    grid-push   it sends messages                   [PushAppMessagesRequest, letters] objects of those without a letter
                                                    -> [PushAppMessagesResponse]
    grid-pull   it takes the replies                PullAppMessagesRequest
                                                    -> [PullAppMessagesResponse, files by message, what grid-nodes says]
                                                    objects of the others
                                                    204: nothing yet
                                                    asked again with its Idempotency-Key: the same answer again
    grid-give-up  it waits for some no longer       PullAppMessagesRequest -> 204

`Prefer: wait=N` holds a pull for up to N seconds; a push wakes it. A node gets its message again until it has answered
it: what was on its way when a connection, the gateway or the Hub's proxy broke down is not lost. All other paths are
Flower's; stock nodes use them, and messages from and to them are objects as ever.

The state is in memory: a round writes no database. Only which key has which node id is kept, in the file of
`--node-ids`.

With `--unix-socket` the same server listens on a Unix socket too, for its own account only. Then TCP is the
ServerApp's: Flower's Control API asks nobody who they are, so nothing but the ServerApp's paths is answered there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import sys
import time
from base64 import b64decode
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from logging import WARNING
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar, cast

import uvicorn
from cryptography.exceptions import UnsupportedAlgorithm
from fastapi import FastAPI, HTTPException
from fastapi.exception_handlers import http_exception_handler
from federator import logs
from federator.framing import pack, split, unpack
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.common.serde import message_from_proto
from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse, PushMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.run_pb2 import GetRunRequest
from flwr.proto.runtime_pb2 import GetNodesRequest, PullAppMessagesRequest, PushAppMessagesRequest
from flwr.proto.task_pb2 import Task
from flwr.server.superlink.linkstate import InMemoryLinkState, linkstate_factory
from flwr.supercore import http_logging, log
from flwr.supercore.constant import (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
    FLWR_IN_MEMORY_DB_NAME,
    TASK_TOKEN_HEADER,
)
from flwr.supercore.dependencies.task import authenticate_task
from flwr.supercore.dependencies.version import VersionDependency
from flwr.supercore.error import ApiErrorCode, FlowerError, http_error_translator
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, iterate_object_tree
from flwr.supercore.logger import FLOWER_LOGGER
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature
from flwr.superlink import main as superlink_main
from flwr.superlink.cli.flower_superlink import flower_superlink
from flwr.superlink.servicer.fleet import fleet_handlers
from flwr.superlink.servicer.runtime import runtime_handlers
from google.protobuf.message import DecodeError, Message
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from hub_service.aggregators.link_state import LinkState
from hub_service.aggregators.processes import NICENESS, lower_priority

PREFIX = "/v1/bulk/"
MEDIA_TYPE = "application/octet-stream"
_KEY_HEADER = "idempotency-key"
BODY_LIMIT = 4 * 1024**3  # bytes; only messages to and from stock nodes come near
LONGEST_WAIT_S = 30.0
KEPT = b"kept"

# Replies that come within so many seconds come together: each look of the ServerApp costs both some milliseconds.
_TOGETHER_S = 0.02
# A wait looks again after this time, in seconds: of a node that has gone nobody tells us.
_LOOK_AGAIN_S = 1.0
HANDED_AT_MOST = 20  # a message that ends each client that takes it would come back for ever
_SERVERAPP_PATHS = ("/v1/runtime/", f"{PREFIX}grid-")
_ROUTINE = (
    "online",
    "pull",
    "push",
    "give-key",
    "grid-nodes",
    "grid-push",
    "grid-pull",
    "grid-give-up",
)  # not worth a line in the log
_STOCK_PUSHES = "/v1/fleet/push-"

# What Flower's handlers raise for a request that is well-formed and makes no sense.
_ODD_REQUEST = (AttributeError, IndexError, KeyError, TypeError, ValueError)

_Request = TypeVar("_Request", bound=Message)
_Result = TypeVar("_Result")


@dataclass(slots=True)
class _Handed:
    """A message that a node was given."""

    envelope: PullMessagesResponse
    times: int = 0


@dataclass(frozen=True, slots=True)
class _Pulled:
    """The last replies that the ServerApp was sent, until it asks for something else. The key is its request's."""

    key: str = ""
    replies: bytes = b""


class _Bell:
    """Wakes all who wait for news."""

    def __init__(self) -> None:
        self.next_ring = asyncio.Event()

    def ring(self) -> None:
        self.next_ring.set()
        self.next_ring = asyncio.Event()


class _MoreToCome:
    """Whether one pull goes on waiting when some of its replies are there.

    Args:
        bell: rung when it does no longer.
        wait_s: how long the pull may wait at all, in seconds.
    """

    def __init__(self, bell: _Bell, wait_s: float) -> None:
        self._bell = bell
        self._until = time.monotonic() + wait_s
        self._is_first = True

    def is_waited_for(self, replies: int, asked: int) -> bool:
        if not 0 < replies < asked:
            return False
        if self._is_first:
            self._is_first = False
            self._until = min(self._until, time.monotonic() + _TOGETHER_S)
            asyncio.get_running_loop().call_later(_TOGETHER_S, self._bell.ring)
        return time.monotonic() < self._until


class BulkPaths:
    """Flower's app with the bulk paths in front of it. An ASGI app.

    Args:
        app: from Flower's `create_app`, with our `LinkState`.
        body_limit: bytes of one request's body.
    """

    def __init__(self, app: FastAPI, body_limit: int = BODY_LIMIT) -> None:
        self._app = app
        self._body_limit = body_limit
        self._for_nodes: defaultdict[int, _Bell] = defaultdict(_Bell)
        self._for_serverapp = _Bell()
        self._closing = False
        self._letter_nodes: set[int] = set()
        self._letters: dict[str, bytes] = {}  # by message, until it is answered
        self._handed: dict[int, _Handed] = {}  # by node, until it has answered
        self._files: dict[str, str] = {}  # by reply, until the ServerApp has it
        self._pulled = _Pulled()
        self._version = VersionDependency(
            component_name="SuperLink", connection_name="Caller <-> SuperLink Runtime API"
        )
        self._operations: dict[str, Callable[[Request, bytes], Awaitable[bytes]]] = {
            "online": self._online,
            "pull": self._pull,
            "push": self._push,
            "give-key": self._give_key,
            "grid-nodes": self._grid_nodes,
            "grid-push": self._grid_push,
            "grid-pull": self._grid_pull,
            "grid-give-up": self._grid_give_up,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app: ASGIApp = self._app
        if scope["type"] == "http":
            logs.note(request_id=logs.checked_request_id(Headers(scope=scope).get(logs.REQUEST_ID_HEADER, "")))
        if scope["type"] == "http" and scope["path"].startswith(PREFIX):
            request = Request({**scope, "app": self._app}, receive)
            app = await http_error_translator(request, self._answer)
        await app(scope, receive, send)
        if scope["type"] == "http" and scope["path"].startswith(_STOCK_PUSHES):
            self._for_serverapp.ring()

    def close(self) -> None:
        """Answer all who wait: the server ends, and would wait for them."""
        self._closing = True
        for bell in [*self._for_nodes.values(), self._for_serverapp]:
            bell.ring()

    async def _answer(self, request: Request) -> Response:
        operation = self._operations.get(request.url.path.removeprefix(PREFIX))
        if operation is None or request.method != "POST":
            raise HTTPException(404, "No such operation.")
        body = await self._body(request)
        try:
            answer = await operation(request, body)
        except (ValueError, DecodeError) as error:  # what the handlers and the framing say of a malformed request
            raise HTTPException(400, str(error)) from error
        except _ODD_REQUEST as error:
            raise _refusal_of(error) from error
        return Response(answer, 200 if answer else 204, media_type=MEDIA_TYPE)

    async def _body(self, request: Request) -> bytes:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > self._body_limit:
                raise HTTPException(413, f"A request may have {self._body_limit} bytes here; this one has more.")
        return bytes(body)

    # --- for nodes

    async def _online(self, request: Request, body: bytes) -> bytes:
        message = _parsed(SendNodeHeartbeatRequest, body)
        self._authenticate_node(request, message)
        answer = fleet_handlers.send_node_heartbeat(message, self._state())
        self._letter_nodes.add(message.node.node_id)
        return bytes(answer.SerializeToString())

    async def _pull(self, request: Request, body: bytes) -> bytes:
        (asked,) = _parts(body, 1)
        message = _parsed(PullMessagesRequest, asked)
        self._authenticate_node(request, message)
        bell = self._for_nodes[message.node.node_id]
        return await self._until(bell, _wait_s(request), lambda: self._next_letter(message)) or b""

    def _authenticate_node(
        self, request: Request, message: SendNodeHeartbeatRequest | PullMessagesRequest | PushMessagesRequest
    ) -> None:
        """As Flower's authenticate_node: the signature is good, and the node that is named has this key.

        How old the signature is, the gateway has looked at when the headers came: a large answer over a thin line may
        take longer to follow them than Flower's window is open.
        """
        if self._state().get_node_id_by_public_key(_signer(request.headers)) != message.node.node_id:
            raise _not_authenticated()

    def _next_letter(self, asked: PullMessagesRequest) -> bytes | None:
        """The message that the node has not answered yet, or else its next."""
        node_id = asked.node.node_id
        handed = self._handed.get(node_id)
        if handed is not None and handed.times >= HANDED_AT_MOST:
            self._give_up({handed.envelope.messages_list[0].metadata.message_id})
            self._for_serverapp.ring()  # which is answered that the message is not to be had
            del self._handed[node_id]
            handed = None
        if handed is None:
            state = self._state()
            envelope = fleet_handlers.pull_messages(asked, state, state.object_store)
            if not envelope.messages_list:
                return None
            handed = self._handed[node_id] = _Handed(envelope)
        whole = self._with_letter(asked, handed.envelope)
        handed.times += 1
        if whole is None:
            del self._handed[node_id]
        return whole

    def _with_letter(self, asked: PullMessagesRequest, envelope: PullMessagesResponse) -> bytes | None:
        """The message with its run and letter. None: nobody needs it any more."""
        metadata = envelope.messages_list[0].metadata
        letter = self._letters.get(metadata.message_id)
        if letter is None:
            log(WARNING, "Message %s has no letter: its node is not to be had", metadata.message_id)
            self._give_up({metadata.message_id})
            self._for_serverapp.ring()  # which would wait for an answer for ever
            return None
        try:
            run = fleet_handlers.get_run(GetRunRequest(node=asked.node, run_id=metadata.run_id), self._state())
        except FlowerError as error:
            if error.code != ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED:
                raise
            return None
        return pack([envelope.SerializeToString(), run.SerializeToString(), letter], {})

    async def _push(self, request: Request, body: bytes) -> bytes:
        asked, file = _parts(body, 2)
        message = _parsed(PushMessagesRequest, asked)
        self._authenticate_node(request, message)
        if len(message.messages_list) != 1:
            raise ValueError("a node answers with one message at a time")
        (reply,) = message.messages_list
        if reply.metadata.src_node_id != message.node.node_id:
            raise ValueError("a node answers in its own name only")
        content = _bare_objects(reply, message.message_object_trees)
        state = self._state()
        answer = fleet_handlers.push_messages(message, state)
        _store_objects(state, reply.metadata.run_id, answer.session_id, answer.objects_to_push, content)
        return pack([KEPT if self._keep_file(reply, file.decode("ascii")) else b""], {})

    def _keep_file(self, reply: MessageProto, file: str) -> bool:
        """Whether the ServerApp will want the file: not for an answer that came twice, or too late."""
        metadata = reply.metadata
        self._forget_handed(metadata.src_node_id, metadata.reply_to_message_id)
        if metadata.message_id in self._files or not self._state().has_reply(
            metadata.reply_to_message_id, metadata.message_id
        ):
            return False
        self._files[metadata.message_id] = file
        self._letters.pop(metadata.reply_to_message_id, None)
        self._for_serverapp.ring()
        return True

    def _forget_handed(self, node_id: int, message_id: str) -> None:
        handed = self._handed.get(node_id)
        if handed is not None and handed.envelope.messages_list[0].metadata.message_id == message_id:
            del self._handed[node_id]

    # --- for the service

    async def _give_key(self, _: Request, body: bytes) -> bytes:
        """As Flower's Control API, this asks nobody who they are: no tenant may reach it."""
        node_id, key = _parts(body, 2)
        self._state().give_key(int(node_id), key)
        return pack([node_id], {})

    # --- for the ServerApp

    async def _grid_nodes(self, request: Request, body: bytes) -> bytes:
        return self._nodes(_parsed(GetNodesRequest, body), self._task(request))

    def _nodes(self, request: GetNodesRequest, task: Task) -> bytes:
        answer = runtime_handlers.get_nodes(request, self._state(), task)
        letter_nodes = [node.node_id for node in answer.nodes if node.node_id in self._letter_nodes]
        away = json.dumps(self._state().silent_nodes())
        return pack([answer.SerializeToString(), json.dumps(letter_nodes).encode(), away.encode()], {})

    async def _grid_push(self, request: Request, body: bytes) -> bytes:
        task = self._task(request)
        self._pulled = _Pulled()
        (asked, letters), objects = unpack(body, messages=2)
        message = _parsed(PushAppMessagesRequest, asked)
        return self._keep_messages(message, split(letters), objects, task)

    def _task(self, request: Request) -> Task:
        """Who asks, as Flower's TaskDependency finds it, after the same check of versions."""
        self._version(request)
        return authenticate_task(request, request.headers.get(TASK_TOKEN_HEADER), self._state())

    def _keep_messages(
        self, request: PushAppMessagesRequest, letters: list[bytes], objects: Mapping[str, bytes], task: Task
    ) -> bytes:
        state = self._state()
        protos = request.messages_list
        bare: dict[str, bytes] = {}
        for proto, tree, letter in zip(protos, request.message_object_trees, letters, strict=True):
            if letter:
                bare |= _bare_objects(proto, [tree])
        answer = runtime_handlers.push_messages(request, state, task)
        _store_objects(state, task.run_id, answer.session_id, answer.objects_to_push, {**objects, **bare})
        for proto, letter in zip(protos, letters, strict=True):
            if letter:
                self._letters[proto.metadata.message_id] = letter
            self._for_nodes[proto.metadata.dst_node_id].ring()
        return pack([answer.SerializeToString()], {})

    async def _grid_pull(self, request: Request, body: bytes) -> bytes:
        self._task(request)
        message = _parsed(PullAppMessagesRequest, body)
        key = request.headers.get(_KEY_HEADER, "")
        if self._pulled.key != key:
            self._pulled = _Pulled()
        more = _MoreToCome(self._for_serverapp, _wait_s(request))

        def look() -> bytes | None:
            # Asked each time: a run that is stopped meanwhile has lost its messages, and its task the token.
            task = self._task(request)
            if key and self._pulled.key == key:  # they did not arrive, and Flower's state has them no more
                return self._pulled.replies
            if more.is_waited_for(self._state().replied(message.message_ids), len(message.message_ids)):
                return None
            replies = self._replies(message, task)
            if replies is not None:
                self._pulled = _Pulled(key, replies)
            return replies

        return await self._until(self._for_serverapp, _wait_s(request), look) or b""

    async def _grid_give_up(self, request: Request, body: bytes) -> bytes:
        """Let go of messages: who answers one of them hears that it came too late."""
        task = self._task(request)
        message_ids = set(_parsed(PullAppMessagesRequest, body).message_ids)
        self._give_up(message_ids & self._state().get_message_ids_from_run_id(task.run_id))
        return b""

    def _give_up(self, message_ids: set[str]) -> None:
        state = self._state()
        state.delete_messages(message_ids)
        for message_id in message_ids:
            state.object_store.delete(message_id)
            self._letters.pop(message_id, None)

    def _replies(self, request: PullAppMessagesRequest, task: Task) -> bytes | None:
        """Replies with their files or objects, and who is here, which a strategy asks next.

        Where the objects are not all here, the ServerApp pulls them itself.
        """
        state = self._state()
        answer = runtime_handlers.pull_messages(request, state, task)
        if not answer.messages_list:
            return None
        objects: dict[str, bytes] = {}
        files: dict[str, str] = {}
        for proto, tree in zip(answer.messages_list, answer.message_object_trees, strict=True):
            message_id = proto.metadata.message_id
            if message_id in self._files:
                files[message_id] = self._files.pop(message_id)
            elif whole := self._objects(task.run_id, tree):
                objects |= whole
            else:
                continue
            state.object_store.delete(message_id)
            state.object_store.delete(proto.metadata.reply_to_message_id)
        nodes = self._nodes(GetNodesRequest(), task)
        return pack([answer.SerializeToString(), json.dumps(files).encode(), nodes], objects)

    def _objects(self, run_id: int, tree: ObjectTree) -> dict[str, bytes]:
        """All objects of the tree; none while some are still to come."""
        state = self._state()
        found = {item.object_id: state.get_object(run_id, item.object_id) for item in iterate_object_tree(tree)}
        whole = {object_id: content for object_id, content in found.items() if content}
        return whole if len(whole) == len(found) else {}

    async def _until(self, bell: _Bell, wait_s: float, look: Callable[[], _Result | None]) -> _Result | None:
        """What `look` finds, now or at a ring of the bell; None when the wait is over."""
        deadline = time.monotonic() + wait_s
        while True:
            next_ring = bell.next_ring  # taken before the look: what comes in between is not missed
            found = look()
            remaining = deadline - time.monotonic()
            if found is not None or remaining <= 0 or self._closing:
                return found
            with suppress(TimeoutError):
                async with asyncio.timeout(min(remaining, _LOOK_AGAIN_S)):
                    await next_ring.wait()

    def _state(self) -> LinkState:
        return cast(LinkState, self._app.state.linkstate_factory.state())


def _signer(headers: Headers) -> bytes:
    """The public key (PEM) by which the request is signed. Raises HTTPException."""
    try:
        public_key = b64decode(headers[FLEET_HTTP_PUBLIC_KEY_HEADER], validate=True)
        signature = b64decode(headers[FLEET_HTTP_SIGNATURE_HEADER], validate=True)
        signed = headers[TIMESTAMP_HEADER].encode("ascii")
        good = verify_signature(bytes_to_public_key(public_key), signed, signature)
    except (KeyError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _not_authenticated() from error
    if not good:
        raise _not_authenticated()
    return public_key


def _not_authenticated() -> HTTPException:
    return HTTPException(401, "The request is not signed by the node that it names.")


def _refusal_of(error: Exception) -> HTTPException:
    """For what Flower's handlers raise where a node's request names a run that is not here, or is not whole."""
    if isinstance(error, KeyError):
        return HTTPException(403, "The run is not here.")
    return HTTPException(400, "The body is not the message that this path takes.")


async def _refuse_odd_request(request: Request, error: Exception) -> Response:
    """For Flower's own paths. An error in what is not asked by nodes stays one."""
    if not request.url.path.startswith("/v1/fleet/"):
        raise error
    log(WARNING, "%s: refused after %s: %s", request.url.path, type(error).__name__, error)
    return await http_exception_handler(request, _refusal_of(error))


def _wait_s(request: Request) -> float:
    name, _, value = request.headers.get("prefer", "").partition("=")
    return min(float(value), LONGEST_WAIT_S) if name == "wait" else 0.0


def _parts(body: bytes, number: int) -> list[bytes]:
    parts = split(body)
    if len(parts) != number:
        raise ValueError(f"the body has {len(parts)} parts, not {number}")
    return parts


def _bare_objects(proto: MessageProto, trees: Iterable[ObjectTree]) -> dict[str, bytes]:
    """The objects of a message whose content travels beside it. Raises ValueError where the tree has others."""
    objects = get_all_nested_objects(message_from_proto(proto))
    if objects.keys() != {item.object_id for tree in trees for item in iterate_object_tree(tree)}:
        raise ValueError("the message's objects are not those of a message without content")
    return {object_id: item.deflate() for object_id, item in objects.items()}


def _store_objects(
    state: LinkState, run_id: int, session_id: str, wanted: Iterable[str], objects: Mapping[str, bytes]
) -> None:
    """Store the wanted ones. Raises ValueError where one is not there or is not taken."""
    for object_id in wanted:
        content = objects.get(object_id)
        if content is None:
            raise ValueError(f"object {object_id} is not in the request")
        if not state.store_object(run_id, session_id, object_id, content):
            raise ValueError(f"object {object_id} was not stored")


def _parsed(kind: type[_Request], body: bytes) -> _Request:
    request: _Request = kind()
    request.ParseFromString(body)
    return request


class ServerAppEntrance:
    """Refuses by TCP whatever is no ServerApp's business; what comes by the Unix socket passes. An ASGI app."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http" and not _by_socket(scope) and not scope["path"].startswith(_SERVERAPP_PATHS):
            app = Response("This is not for a ServerApp.", 403, media_type="text/plain")
        await app(scope, receive, send)


def _by_socket(scope: Scope) -> bool:
    """ASGI gives a Unix socket no port."""
    return scope["server"] is not None and scope["server"][1] is None


def _listen_also_at(path: Path) -> None:
    """Let uvicorn, which Flower starts with a host and a port, take the Unix socket as well."""
    run = uvicorn.Server.run

    def run_with_socket(server: uvicorn.Server) -> None:
        run(server, sockets=[server.config.bind_socket(), _unix_socket(path)])

    uvicorn.Server.run = run_with_socket  # type: ignore[method-assign, assignment]


def _unix_socket(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    others = os.umask(0o177)  # whoever may write to a socket may connect
    try:
        listener.bind(str(path))
    finally:
        os.umask(others)
    return listener


def _close_when_asked_to_end(paths: BulkPaths) -> None:
    """Let uvicorn, which waits for all answers before it ends, hear of none that is held."""
    handle_exit = uvicorn.Server.handle_exit

    def close_and_handle_exit(server: uvicorn.Server, number: int, frame: FrameType | None) -> None:
        paths.close()
        handle_exit(server, number, frame)

    uvicorn.Server.handle_exit = close_and_handle_exit  # type: ignore[method-assign, assignment]


def main() -> None:
    """Run `flower-superlink` with the bulk paths. Flower takes its app and its state's class when it starts."""
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    options.add_argument("--node-ids", type=Path, required=True)
    options.add_argument("--run-id", type=int)
    options.add_argument("--unix-socket", type=Path)
    ours, theirs = options.parse_known_args()
    lower_priority(NICENESS)
    logs.take_over(FLOWER_LOGGER, logs.begin_process(os.environ))
    sys.argv[1:] = [*theirs, "--database", FLWR_IN_MEMORY_DB_NAME]
    create_app = superlink_main.create_app

    def create_app_with_bulk_paths(*arguments: Any) -> ASGIApp:
        app = create_app(*arguments)
        for kind in _ODD_REQUEST:
            app.add_exception_handler(kind, _refuse_odd_request)
        paths = BulkPaths(app)
        _close_when_asked_to_end(paths)
        return ServerAppEntrance(paths) if ours.unix_socket else paths

    http_logging.ROUTINE_ACCESS_PATHS |= {PREFIX + operation for operation in _ROUTINE}
    superlink_main.create_app = create_app_with_bulk_paths  # type: ignore[assignment]
    setattr(linkstate_factory, InMemoryLinkState.__name__, LinkState.with_node_ids_in(ours.node_ids, ours.run_id))
    if ours.unix_socket:
        _listen_also_at(ours.unix_socket)
    flower_superlink()


if __name__ == "__main__":
    main()
