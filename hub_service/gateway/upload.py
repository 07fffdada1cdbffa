"""A node's answer on its way into a file of its run, so that it is never whole in the service's memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from federator.framing import BadFrame, first_part
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.node_pb2 import Node
from google.protobuf.message import DecodeError

from hub_service.aggregators.mail import NoSuchMail, create_mail, remove_mail
from hub_service.full_disk import is_full_disk
from hub_service.gateway.gateway import Caller, DiskFull, Gateway, NoRun, NotNow, Refusal

ENVELOPE_LIMIT = 1024**2  # bytes of an answer without its content
_PIECE = 1024**2  # bytes that are written at once


class Upload:
    """One `bulk-push`. `take` each chunk, then `finish`; `break_off` where the connection is lost.

    Args:
        new_name: makes a name for the file; see `aggregators.mail`.

    Attributes:
        node: whose answer it is, once that is read; the aggregator has checked it when `finish` returns.
    """

    def __init__(self, gateway: Gateway, caller: Caller, new_name: Callable[[], str]) -> None:
        self._gateway = gateway
        self._caller = caller
        self._new_name = new_name
        self.node = Node()
        self._envelope: bytes | None = None
        self._beginning = bytearray()  # until the envelope is whole
        self._waiting: list[bytes] = []  # not written yet; never joined, which would copy a model
        self._waiting_size = 0
        self._name = ""
        self._folder = Path()
        self._file: BinaryIO | None = None
        self._refusal: Refusal | None = None
        self._handed_on = False

    async def take(self, chunk: bytes) -> None:
        """The rest of what is refused goes nowhere: who is answered before all is sent loses the answer."""
        if self._refusal is not None:
            return
        try:
            if self._envelope is None:
                self._beginning += chunk
                self._read_envelope()
                return
            self._hold(chunk)
            if self._waiting_size >= _PIECE:
                await self._write()
        except Refusal as refusal:
            self._refusal = refusal
            self.abandon()

    async def finish(self) -> None:
        """All is here: tell the aggregator. Raises Refusal; no file is left then, unless the aggregator may have it."""
        try:
            if self._refusal is not None:
                raise self._refusal
            if self._envelope is None:
                raise Refusal(400, "The body ends within its first part.")
            if self._waiting_size:
                await self._write()
            self._close()
            self._handed_on = True
            kept = await self._gateway.bulk_push(self._caller, self._envelope, self._name)
        except BaseException as error:
            if not (self._handed_on and isinstance(error, NotNow)):
                self.abandon()
            raise
        if not kept:
            self.abandon()

    def break_off(self) -> None:
        """The node has gone. What the aggregator knows of already is its ServerApp's."""
        if not self._handed_on:
            self.abandon()

    def abandon(self) -> None:
        """Leave nothing of it. What cannot be removed now goes with the run's mail."""
        if self._file is not None:
            with suppress(DiskFull, NotNow):
                self._close()
            with suppress(OSError):
                remove_mail(self._folder, self._name)

    def _read_envelope(self) -> None:
        try:
            found = first_part(self._beginning, ENVELOPE_LIMIT)
            if found is None:
                return
            self._envelope, end = found
            request = PushMessagesRequest.FromString(self._envelope)
        except (BadFrame, DecodeError) as error:
            raise Refusal(400, f"The body is not what this path takes: {error}") from error
        self._hold(bytes(memoryview(self._beginning)[end:]))
        self._beginning = bytearray()
        if any(message.metadata.src_node_id != request.node.node_id for message in request.messages_list):
            raise Refusal(400, "A node answers in its own name only.")
        self.node = request.node

    def _hold(self, chunk: bytes) -> None:
        self._waiting.append(chunk)
        self._waiting_size += len(chunk)

    def _close(self) -> None:
        """What the file still held in memory is written now."""
        if self._file is not None:
            with _room():
                self._file.close()

    async def _write(self) -> None:
        pieces, self._waiting = self._waiting, []
        size, self._waiting_size = self._waiting_size, 0
        with _room():
            if self._file is None:
                self._folder, self._name = self._gateway.mail_of(self._caller), self._new_name()
                self._file = create_mail(self._folder, self._name)
            if size < _PIECE:
                self._file.writelines(pieces)
            else:
                await asyncio.to_thread(self._file.writelines, pieces)


@contextmanager
def _room() -> Iterator[None]:
    """Raises DiskFull where there is none for what is written inside, NoRun where the run's folder is gone, and NotNow
    for whatever else the system says.
    """
    try:
        yield
    except NoSuchMail as error:
        raise NoRun from error
    except OSError as error:
        raise (DiskFull() if is_full_disk(error) else NotNow()) from error
