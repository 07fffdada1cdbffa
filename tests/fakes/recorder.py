"""Between a node and the gateway: passes all bytes on, and keeps the node's requests."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from federator.contract import FLEET_PREFIX

_HEAD = re.compile(rb"POST " + FLEET_PREFIX.encode() + rb"([a-z-]+) HTTP/1\.1\r\n(.*?)\r\n\r\n", re.DOTALL)
_LENGTH = re.compile(rb"^content-length: *(\d+)", re.IGNORECASE | re.MULTILINE)


class Recorder:
    """A TCP relay on a free port of the loopback interface: `address`."""

    def __init__(self, to_port: int) -> None:
        self._to_port = to_port
        self._sent: list[bytearray] = []
        self.address = ""

    def requests(self) -> list[tuple[str, bytes]]:
        """Operation and body of each whole request so far."""
        return [request for sent in self._sent for request in _requests(bytes(sent))]

    async def relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sent = bytearray()
        self._sent.append(sent)
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self._to_port)
        await asyncio.gather(_copy(reader, to_writer, sent), _copy(to_reader, writer, bytearray()))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: bytearray) -> None:
    with suppress(ConnectionError):
        while piece := await reader.read(65536):
            kept += piece
            writer.write(piece)
            await writer.drain()
    writer.close()


def _requests(sent: bytes) -> list[tuple[str, bytes]]:
    found = []
    place = 0
    while head := _HEAD.match(sent, place):
        length = _LENGTH.search(head[2])
        size = int(length[1]) if length else 0
        place = head.end() + size
        if place <= len(sent):
            found.append((head[1].decode(), sent[head.end() : place]))
    return found


@asynccontextmanager
async def recorder(to_port: int) -> AsyncIterator[Recorder]:
    it = Recorder(to_port)
    server = await asyncio.start_server(it.relay, "127.0.0.1", 0)
    it.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield it
    finally:
        server.close()
