"""A project's SuperLink: Flower's own, with four more paths that carry a message whole.

    python -m hub_service.aggregators.superlink_process [--unix-socket PATH] <the arguments of flower-superlink>

Through Flower's paths a message costs a dozen small requests: its envelope, its run, each of its objects, its receipt.
Below `/v1/bulk/` one request carries all of that, in the frames of `federator.framing`, and one database transaction
stores it. What a path does is done by Flower's own handlers and state, after Flower's own checks of who asks and
whether the run still runs:

    pull        a node takes its next message     [PullMessagesRequest, envelope to hand out again or nothing]
                                                  -> [PullMessagesResponse, GetRunResponse] objects; 204: nothing yet
    push        a node answers it                 [PushMessagesRequest] objects -> [PushMessagesResponse]
    grid-push   the ServerApp sends messages      [PushAppMessagesRequest] objects -> [PushAppMessagesResponse]
    grid-pull   the ServerApp takes the replies   [PullAppMessagesRequest]
                                                  -> [PullAppMessagesResponse] objects; 204: nothing yet

`Prefer: wait=N` holds a pull for up to N seconds; a push wakes it. All other paths are Flower's; stock nodes use them.

With `--unix-socket` the same server listens on a Unix socket too, for its own account only. Then TCP is the
ServerApp's: Flower's Control API asks nobody who they are, so nothing but the ServerApp's paths is answered there.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from logging import WARNING
from pathlib import Path
from typing import Any, TypeVar, cast

import uvicorn
from fastapi import FastAPI, HTTPException
from federator.framing import pack, unpack
from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse, PushMessagesRequest
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PushAppMessagesRequest
from flwr.proto.task_pb2 import Task
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.supercore import log
from flwr.supercore.constant import TASK_TOKEN_HEADER
from flwr.supercore.dependencies.task import authenticate_task
from flwr.supercore.dependencies.version import VersionDependency
from flwr.supercore.error import ApiErrorCode, FlowerError, http_error_translator
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.superlink import main as superlink_main
from flwr.superlink.cli.flower_superlink import flower_superlink
from flwr.superlink.routers.fleet.node_auth import authenticate_node
from flwr.superlink.servicer.fleet import fleet_handlers
from flwr.superlink.servicer.runtime import runtime_handlers
from google.protobuf.message import DecodeError, Message
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

PREFIX = "/v1/bulk/"
MEDIA_TYPE = "application/octet-stream"
BODY_LIMIT = 4 * 1024**3  # bytes; the gateway's own limit for nodes is lower
LONGEST_WAIT_S = 5.0

# A wait looks again after this time, in seconds, for what came by Flower's own paths, which wake nobody.
_LOOK_AGAIN_S = 0.5
_OBJECT_PAUSE_S = 0.005
_SERVERAPP_PATHS = ("/v1/runtime/", f"{PREFIX}grid-")

_Request = TypeVar("_Request", bound=Message)
_Result = TypeVar("_Result")


class _Bell:
    """Wakes all who wait for news."""

    def __init__(self) -> None:
        self.next_ring = asyncio.Event()

    def ring(self) -> None:
        self.next_ring.set()
        self.next_ring = asyncio.Event()


class BulkPaths:
    """Flower's app with the bulk paths in front of it. An ASGI app.

    Args:
        app: from Flower's `create_app`.
        body_limit: bytes of one request's body.
    """

    def __init__(self, app: FastAPI, body_limit: int = BODY_LIMIT) -> None:
        self._app = app
        self._body_limit = body_limit
        self._for_nodes = _Bell()
        self._for_serverapp = _Bell()
        self._turn = asyncio.Lock()
        self._version = VersionDependency(
            component_name="SuperLink", connection_name="Caller <-> SuperLink Runtime API"
        )
        self._operations: dict[str, Callable[[Request, bytes], Awaitable[bytes]]] = {
            "pull": self._pull,
            "push": self._push,
            "grid-push": self._grid_push,
            "grid-pull": self._grid_pull,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app: ASGIApp = self._app
        if scope["type"] == "http" and scope["path"].startswith(PREFIX):
            request = Request({**scope, "app": self._app}, receive)
            app = await http_error_translator(request, self._answer)
        await app(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        operation = self._operations.get(request.url.path.removeprefix(PREFIX))
        if operation is None or request.method != "POST":
            raise HTTPException(404, "No such operation.")
        body = await self._body(request)
        try:
            answer = await operation(request, body)
        except (ValueError, DecodeError) as error:  # what the handlers and the framing say of a malformed request
            raise HTTPException(400, str(error)) from error
        return Response(answer, 200 if answer else 204, media_type=MEDIA_TYPE)

    async def _body(self, request: Request) -> bytes:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > self._body_limit:
                raise HTTPException(413, f"A request may have {self._body_limit} bytes here; this one has more.")
        return bytes(body)

    # --- for nodes

    async def _pull(self, request: Request, body: bytes) -> bytes:
        (asked, again), _ = unpack(body, messages=2)
        message = _parsed(PullMessagesRequest, asked)
        await self._authenticate_node(request, message)
        if again:
            envelope: PullMessagesResponse | None = _parsed(PullMessagesResponse, again)
        else:
            envelope = await self._until(self._for_nodes, _wait_s(request), lambda: self._next_envelope(message))
        if envelope is None:
            return b""
        if [proto.metadata.dst_node_id for proto in envelope.messages_list] != [message.node.node_id]:
            raise ValueError("a node takes one message, and one that is for itself")
        while True:
            whole = await self._in_turn(lambda: self._whole(message.node, envelope))
            if whole is not None:
                return whole
            await asyncio.sleep(_OBJECT_PAUSE_S)  # a ServerApp that pushes objects one by one is not ready

    async def _authenticate_node(self, request: Request, message: Message) -> None:
        """As Flower's NodeAuthMiddleware: the signature is good, and the node that is named has this key."""
        request.state.protobuf_request = message
        await run_in_threadpool(authenticate_node, request)

    def _next_envelope(self, asked: PullMessagesRequest) -> PullMessagesResponse | None:
        state = self._state()
        answer = fleet_handlers.pull_messages(asked, state, state.object_store)
        return answer if answer.messages_list else None

    def _whole(self, node: Node, envelope: PullMessagesResponse) -> bytes | None:
        """The message with its run and objects. None: not all objects are here yet. Empty: nobody needs it any more."""
        state = self._state()
        run_id = envelope.messages_list[0].metadata.run_id
        objects = {}
        try:
            run = fleet_handlers.get_run(GetRunRequest(node=node, run_id=run_id), state)
            with state.session():
                for object_id in _object_ids(envelope.message_object_trees[0]):
                    content = state.get_object(run_id, object_id)
                    if content is None:
                        log(WARNING, "Message %s has lost an object", envelope.messages_list[0].metadata.message_id)
                        return b""
                    if not content:
                        return None
                    objects[object_id] = content
                state.store_traffic(run_id, bytes_sent=sum(map(len, objects.values())), bytes_recv=0)
        except FlowerError as error:
            if error.code != ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED:
                raise
            return b""
        return pack([envelope.SerializeToString(), run.SerializeToString()], objects)

    async def _push(self, request: Request, body: bytes) -> bytes:
        (asked,), objects = unpack(body, messages=1)
        message = _parsed(PushMessagesRequest, asked)
        await self._authenticate_node(request, message)
        if len(message.messages_list) != 1 or len(message.message_object_trees) != 1:
            raise ValueError("a node answers with one message at a time")
        if message.messages_list[0].metadata.src_node_id != message.node.node_id:
            raise ValueError("a node answers in its own name only")
        answer = await self._in_turn(lambda: self._keep_reply(message, objects))
        self._for_serverapp.ring()
        return answer

    def _keep_reply(self, request: PushMessagesRequest, objects: dict[str, bytes]) -> bytes:
        """Store a reply whole or not at all, and let go of the message that it answers."""
        state = self._state()
        metadata = request.messages_list[0].metadata
        with state.session():
            answer = fleet_handlers.push_messages(request, state)
            stored = _store_objects(state, metadata.run_id, answer.session_id, answer.objects_to_push, objects)
            if stored:
                state.store_traffic(metadata.run_id, bytes_sent=0, bytes_recv=stored)
            state.object_store.delete(metadata.reply_to_message_id)
        return pack([answer.SerializeToString()], {})

    # --- for the ServerApp

    async def _grid_push(self, request: Request, body: bytes) -> bytes:
        task = await run_in_threadpool(self._task, request)
        (asked,), objects = unpack(body, messages=1)
        message = _parsed(PushAppMessagesRequest, asked)
        answer = await self._in_turn(lambda: self._keep_messages(message, objects, task))
        self._for_nodes.ring()
        return answer

    def _task(self, request: Request) -> Task:
        """Who asks, as Flower's TaskDependency finds it, after the same check of versions."""
        self._version(request)
        return authenticate_task(request, request.headers.get(TASK_TOKEN_HEADER), self._state())

    def _keep_messages(self, request: PushAppMessagesRequest, objects: dict[str, bytes], task: Task) -> bytes:
        """Store all messages whole or none."""
        state = self._state()
        with state.session():
            answer = runtime_handlers.push_messages(request, state, task)
            _store_objects(state, task.run_id, answer.session_id, answer.objects_to_push, objects)
        return pack([answer.SerializeToString()], {})

    async def _grid_pull(self, request: Request, body: bytes) -> bytes:
        await run_in_threadpool(self._task, request)
        (asked,), _ = unpack(body, messages=1)
        message = _parsed(PullAppMessagesRequest, asked)

        def look() -> bytes | None:
            # Asked each time: a run that is stopped meanwhile has lost its messages, and its task the token.
            return self._replies(message, self._task(request))

        return await self._until(self._for_serverapp, _wait_s(request), look) or b""

    def _replies(self, request: PullAppMessagesRequest, task: Task) -> bytes | None:
        """Replies with their objects. Of one that is not all here there are none: the ServerApp pulls them itself."""
        state = self._state()
        objects: dict[str, bytes] = {}
        with state.session():
            answer = runtime_handlers.pull_messages(request, state, task)
            if not answer.messages_list:
                return None
            for proto, tree in zip(answer.messages_list, answer.message_object_trees, strict=True):
                found = {object_id: state.get_object(task.run_id, object_id) for object_id in _object_ids(tree)}
                whole = {object_id: content for object_id, content in found.items() if content}
                if len(whole) == len(found):
                    objects |= whole
                    state.object_store.delete(proto.metadata.message_id)
        return pack([answer.SerializeToString()], objects)

    async def _until(self, bell: _Bell, wait_s: float, look: Callable[[], _Result | None]) -> _Result | None:
        """What `look` finds, now or at a ring of the bell; None when the wait is over."""
        deadline = time.monotonic() + wait_s
        while True:
            next_ring = bell.next_ring  # taken before the look: what comes in between is not missed
            found = await self._in_turn(look)
            remaining = deadline - time.monotonic()
            if found is not None or remaining <= 0:
                return found
            with suppress(TimeoutError):
                async with asyncio.timeout(min(remaining, _LOOK_AGAIN_S)):
                    await next_ring.wait()

    async def _in_turn(self, work: Callable[[], _Result]) -> _Result:
        """Run `work` in a thread, one at a time: SQLite lets those who write at once wait in sleeps of up to 0.1 s."""
        async with self._turn:
            return await run_in_threadpool(work)

    def _state(self) -> SqlLinkState:
        """Flower's state. The aggregator's is always in a database file, whose sessions nest into one transaction."""
        return cast(SqlLinkState, self._app.state.linkstate_factory.state())


def _wait_s(request: Request) -> float:
    name, _, value = request.headers.get("prefer", "").partition("=")
    return min(float(value), LONGEST_WAIT_S) if name == "wait" else 0.0


def _object_ids(tree: ObjectTree) -> list[str]:
    return list(dict.fromkeys(item.object_id for item in iterate_object_tree(tree)))


def _store_objects(
    state: SqlLinkState, run_id: int, session_id: str, wanted: Iterable[str], objects: Mapping[str, bytes]
) -> int:
    """Store the wanted ones; return their bytes. Raises ValueError where one is not there or is not taken."""
    stored = 0
    for object_id in wanted:
        content = objects.get(object_id)
        if content is None:
            raise ValueError(f"object {object_id} is not in the request")
        if not state.store_object(run_id, session_id, object_id, content):
            raise ValueError(f"object {object_id} was not stored")
        stored += len(content)
    return stored


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


def main() -> None:
    """Run `flower-superlink` with the bulk paths. Flower takes its app from `create_app` at the time it starts."""
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    options.add_argument("--unix-socket", type=Path)
    ours, sys.argv[1:] = options.parse_known_args()
    create_app = superlink_main.create_app

    def create_app_with_bulk_paths(*arguments: Any) -> ASGIApp:
        app = BulkPaths(create_app(*arguments))
        return ServerAppEntrance(app) if ours.unix_socket else app

    superlink_main.create_app = create_app_with_bulk_paths  # type: ignore[assignment]
    if ours.unix_socket:
        _listen_also_at(ours.unix_socket)
    flower_superlink()


if __name__ == "__main__":
    main()
