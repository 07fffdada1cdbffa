"""The gateway's routes: HTTP only, what it means is in `gateway.py`."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from email.utils import formatdate
from typing import Any, cast
from uuid import uuid4

import aiohttp
from federator import logs
from federator.contract import FLEET_BLOBS_HEADER, FLEET_BODY_LIMIT_HEADER, FLEET_PREFIX
from federator.framing import pack
from tornado.http1connection import HTTP1Connection
from tornado.iostream import StreamClosedError
from tornado.web import RequestHandler, stream_request_body

from hub_service.gateway.approved_apps import approved_request
from hub_service.gateway.gateway import MEDIA_TYPE, Caller, Delivery, Gateway, NotNow, Refusal, TooMuch, blob_names
from hub_service.gateway.upload import Upload
from hub_service.identity import address_of
from hub_service.site_stages import Stage

_SMALL_BODY = 1024**2  # bytes; requests that are read here are envelopes without arrays
_FLUSH_AT = 1024**2  # bytes
CHUNK_SIZE = 256 * 1024  # bytes that the server takes from a connection at once; tornado's 64 KiB are slow for a model
_FORWARDED = frozenset({"get-run", "get-fab", "pull-object", "push-object"})
_UPLOAD, _DELIVERY = "bulk-push", "bulk-pull"
_FETCH_APP = "get-fab"
_PIECE = "push-object"
_RECEIPT = pack([b""], {})
_LONGEST_BODY_S = 24 * 3600.0  # a large model over a thin line; who sends nothing is cut off long before
_REFUSED = frozenset({"register-node", "unregister-node"})
_ANSWERED = frozenset(
    {
        "activate-node",
        "pull-messages",
        "send-node-heartbeat",
        "deactivate-node",
        "push-messages",
        "confirm-message-received",
    }
)
_OPERATIONS = _FORWARDED | _REFUSED | _ANSWERED | {_UPLOAD, _DELIVERY}


def fleet_routes(gateway: Gateway) -> list[tuple[str, type[RequestHandler], dict[str, Any]]]:
    """Tornado routes for all of Flower's Fleet API. Used by `hub_service.app`."""
    return [(FLEET_PREFIX + "(.*)", FleetHandler, {"gateway": gateway})]


class BodyPipe:
    """Hands a request's body on while it comes in, without holding more than a few chunks."""

    def __init__(self) -> None:
        self._chunks: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=4)
        self._abandoned = False

    async def put(self, chunk: bytes | None) -> None:
        """Add a chunk, or None for the end. Waits while the reader is behind."""
        if not self._abandoned:
            await self._chunks.put(chunk)

    def abandon(self) -> None:
        """Nobody reads any more: let the writer go on, into nothing."""
        self._abandoned = True
        while not self._chunks.empty():
            self._chunks.get_nowait()

    async def chunks(self) -> AsyncIterator[bytes]:
        while (chunk := await self._chunks.get()) is not None:
            yield chunk


@stream_request_body
class FleetHandler(RequestHandler):
    """One Fleet request."""

    def initialize(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.caller: Caller | None = None
        self.work: asyncio.Future[Any] | None = None
        self.upload: Upload | None = None
        self.had: frozenset[str] | None = None  # blobs of a node that waits for its next message behind its upload
        self.pipe = BodyPipe()
        self.body = bytearray()
        self.received = 0
        self.silence: asyncio.TimerHandle | None = None

    def set_default_headers(self) -> None:
        self.set_header(logs.REQUEST_ID_HEADER, logs.noted("request_id"))

    @property
    def known_operation(self) -> str:
        """For metrics: "other" for what is no operation, whatever stands in the address."""
        operation = self.path_args[0] if self.path_args else ""
        return operation if operation in _OPERATIONS else "other"

    def check_xsrf_cookie(self) -> None:
        """Nodes sign their requests; no cookie counts here."""

    async def prepare(self) -> None:
        await self.gateway.turns.wait()
        try:
            self._begin()
        except Refusal as refusal:
            self._refuse_early(refusal)

    def _begin(self) -> None:
        if self.request.method != "POST":
            raise Refusal(405, "Flower's Fleet API is spoken with POST.")
        self.operation = self.path_args[0]
        self.caller = self.gateway.admit(self.request.headers, address_of(self))
        if self.operation in _REFUSED:
            raise Refusal(403, "Nodes are registered through the Hub's federation service.")
        if self.operation not in {*_FORWARDED, *self._answers(), _UPLOAD, _DELIVERY}:
            raise Refusal(404, "Flower's Fleet API has no such operation.")
        passed_on = self.operation in {*_FORWARDED, _UPLOAD} - {_FETCH_APP}
        self.limit = self.gateway.limit_of(self.caller) if passed_on else _SMALL_BODY
        self._check_size(self._announced_size())
        # The check above is ours; tornado's own limit would end the connection without a word.
        self._http1().set_max_body_size(self.limit + 1)
        self._http1().set_body_timeout(_LONGEST_BODY_S)
        if self.operation in _FORWARDED:
            self.work = asyncio.ensure_future(self._forward(self.caller))
        elif self.operation == _UPLOAD:
            if (names := self.request.headers.get(FLEET_BLOBS_HEADER)) is not None:
                self.had = blob_names(names)
            self.upload = Upload(self.gateway, self.caller, lambda: uuid4().hex)
            self.gateway.moved(self.caller, Stage.SENDING)
        self._listen()

    def _listen(self) -> None:
        """Wait for the next piece of the body, but not for ever: a silent connection holds memory and a file."""
        self.silence = asyncio.get_running_loop().call_later(self.gateway.longest_silence_s, self._give_up)

    def _hear(self) -> None:
        if self.silence is not None:
            self.silence.cancel()

    def _give_up(self) -> None:
        self._refuse_early(Refusal(408, "The request's body did not go on."))
        self._end_work()

    def _end_work(self) -> None:
        if self.work is not None:
            self.work.cancel()
        if self.upload is not None:
            self.upload.break_off()

    def _http1(self) -> HTTP1Connection:
        return cast(HTTP1Connection, self.request.connection)

    def _announced_size(self) -> int:
        """Bytes. Raises Refusal for two lengths or none: whoever passes requests on may have read another one."""
        headers = self.request.headers
        length = headers.get("Content-Length", "0")
        if not (length.isascii() and length.isdecimal()) or {"Content-Length", "Transfer-Encoding"} <= headers.keys():
            raise Refusal(400, "The request does not say how long it is.")
        return int(length)

    def _check_size(self, size: int) -> None:
        if size > self.limit and self.caller is not None and self.limit == self.caller.grant.largest_message:
            raise TooMuch(self.limit)
        if size > self.limit:
            raise Refusal(413, f"A request may have {self.limit} bytes here; this one has more.")

    async def data_received(self, chunk: bytes) -> None:
        self._hear()
        self.received += len(chunk)
        try:
            self._check_size(self.received)
            if self.operation == _PIECE and self.caller is not None:
                self.gateway.count_pushed(self.caller, len(chunk))
            if self.upload is not None:
                await self.upload.take(chunk)
            elif self.work is not None:
                await self.pipe.put(chunk)
            else:
                self.body.extend(chunk)
            self._listen()
        except Refusal as refusal:
            self._refuse_early(refusal)

    async def post(self, operation: str) -> None:
        self._hear()
        if self.caller is None or self._finished:
            return
        self.gateway.count(self.caller, from_node=self.received)
        try:
            if self.upload is not None:
                await self._finish_upload(self.caller, self.upload)
            elif operation in _FORWARDED:
                await self._finish_forwarded(self.caller)
            elif operation == _DELIVERY:
                await self._finish_delivery(self.caller)
            else:
                await self._finish_answered(self.caller)
        except Refusal as refusal:
            self._refuse(refusal)
        except (asyncio.CancelledError, StreamClosedError):
            if not self._http1().stream.closed():
                raise

    def on_connection_close(self) -> None:
        """The node has gone: end its poll, so that no message is fetched for nobody."""
        super().on_connection_close()
        self._hear()
        self._end_work()

    async def _forward(self, caller: Caller) -> aiohttp.ClientResponse:
        try:
            body = self.pipe.chunks()
            if self.operation == _FETCH_APP:
                body = await approved_request(caller, body)
            return await self.gateway.forward(caller, self.operation, body)
        finally:
            self.pipe.abandon()

    async def _finish_forwarded(self, caller: Caller) -> None:
        assert self.work is not None  # noqa: S101 - set in prepare for every forwarded operation
        await self.pipe.put(None)
        response: aiohttp.ClientResponse = await self.work
        try:
            self.set_status(response.status)
            for name in ("Content-Type", "Content-Length"):
                if name in response.headers:
                    self.set_header(name, response.headers[name])
            unsent = 0
            async for chunk in response.content.iter_any():
                self.gateway.count(caller, to_node=len(chunk))
                self.write(chunk)
                unsent += len(chunk)
                if unsent > _FLUSH_AT:
                    await self.flush()
                    unsent = 0
        except (aiohttp.ClientError, TimeoutError) as error:  # the aggregator has ended in the middle of its answer
            self.clear()
            raise NotNow from error
        finally:
            response.close()

    async def _finish_upload(self, caller: Caller, upload: Upload) -> None:
        await upload.finish()
        self.gateway.moved(caller, Stage.ANSWERED)
        if self.had is not None:
            self._announce(caller)
            self.write(_RECEIPT)
            await self.flush()
            await self._deliver(caller, self.gateway.pull_after_push(caller, upload.node, self.had, self._poll_s()))

    async def _finish_delivery(self, caller: Caller) -> None:
        await self._deliver(caller, self.gateway.bulk_pull(caller, bytes(self.body), self._poll_s()))

    def _announce(self, caller: Caller) -> None:
        """What is said before a message."""
        self.set_header("Content-Type", MEDIA_TYPE)
        self.set_header(FLEET_BODY_LIMIT_HEADER, str(self.gateway.limit_of(caller)))

    async def _deliver(self, caller: Caller, pull: Coroutine[Any, Any, Delivery | None]) -> None:
        """Send the message that `pull` brings, if it brings one."""
        self.work = asyncio.ensure_future(pull)
        delivery: Delivery | None = await self.work
        if delivery is None:
            return
        try:
            await self._send(caller, delivery)
        except StreamClosedError:  # the node has gone
            raise
        except OSError as error:
            if not self._headers_written:
                self.clear()
            raise NotNow from error
        finally:
            delivery.close()

    async def _send(self, caller: Caller, delivery: Delivery) -> None:
        size = len(delivery.head) + sum(os.fstat(file.fileno()).st_size for file in delivery.files)
        self.gateway.count(caller, to_node=size)
        if not self._headers_written:
            self._announce(caller)
            self.set_header("Content-Length", str(size))
        self.write(delivery.head)
        for file in delivery.files:
            if size <= _SMALL_BODY:
                # A thread for each file, and a packet for each piece, would cost more than they do.
                self.write(file.read())
                continue
            while piece := await asyncio.to_thread(file.read, _FLUSH_AT):
                self.write(piece)
                await self.flush()
        self.gateway.moved(caller, Stage.COMPUTING)

    async def _finish_answered(self, caller: Caller) -> None:
        answer = self._answers()[self.operation]
        self.work = asyncio.ensure_future(answer(caller, bytes(self.body)))
        body: bytes = await self.work
        self.gateway.count(caller, to_node=len(body))
        self.set_header("Content-Type", MEDIA_TYPE)
        self.write(body)

    def _answers(self) -> dict[str, Callable[[Caller, bytes], Awaitable[bytes]]]:
        gateway = self.gateway
        poll_s, held_s = self._poll_s(), gateway.poll_s(self.request.headers.get("Prefer", ""), 0.0)
        return {
            "activate-node": lambda caller, body: gateway.activate(caller, body, poll_s),
            "pull-messages": lambda caller, body: gateway.pull(caller, body, poll_s),
            "send-node-heartbeat": lambda caller, body: gateway.heartbeat(caller, body, held_s),
            "deactivate-node": gateway.deactivate,
            "push-messages": gateway.push_messages,
            "confirm-message-received": gateway.confirm,
        }

    def _poll_s(self) -> float:
        return self.gateway.poll_s(self.request.headers.get("Prefer", ""))

    def _refuse_early(self, refusal: Refusal) -> None:
        """Refuse before the body is here. Tornado ends the connection then: the Hub's proxy must not use it again."""
        if not self._finished:
            self.set_header("Connection", "close")
        self._refuse(refusal)

    def _refuse(self, refusal: Refusal) -> None:
        if self.upload is not None:
            self.upload.break_off()
        if self._finished:
            return
        if self._headers_written:  # half an answer is with the node: it must not pass for the whole
            self._http1().stream.close()
            return
        self.set_status(refusal.status)
        # A node learns the Hub's time from it: tornado's own is of when the request came in, a whole poll ago.
        self.set_header("Date", formatdate(usegmt=True))
        for name, value in refusal.headers.items():
            self.set_header(name, value)
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps({"detail": refusal.text}))
