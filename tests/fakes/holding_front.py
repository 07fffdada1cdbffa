"""A TCP front between a node and the gateway that stops in the middle of a transfer, so that a test can act there."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from dataclasses import dataclass, field
from enum import Enum

HOST = "127.0.0.1"


class Way(Enum):
    UP = "from the node"
    DOWN = "to the node"


@dataclass(slots=True)
class Hold:
    """Where a connection stops: `stopped` goes no further once `after` bytes have gone by `counted`.

    Attributes:
        held: set once a connection has come to this point.
    """

    counted: Way
    after: int
    stopped: Way
    held: asyncio.Event = field(default_factory=asyncio.Event)
    released: asyncio.Event = field(default_factory=asyncio.Event)
    passed: dict[tuple[int, Way], int] = field(default_factory=lambda: defaultdict(int))


class HoldingFront:
    """Passes bytes on, both ways.

    Args:
        target: port on loopback that the connections are passed on to.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._port = 0
        self._hold: Hold | None = None
        self._server: asyncio.Server | None = None
        self._connections: dict[int, asyncio.Task[None]] = {}
        self._number = 0

    @property
    def address(self) -> str:
        return f"{HOST}:{self._port}"

    async def come_up(self) -> None:
        """Listen; again at the same port after `go_down`."""
        self._server = await asyncio.start_server(self._accept, HOST, self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def go_down(self) -> None:
        """End everything at once, as a proxy that is killed. What was held is lost."""
        assert self._server is not None, "it is not up"
        self._server.close()
        connections = list(self._connections.values())
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        await self._server.wait_closed()
        self._hold = None

    def hold(self, counted: Way, after: int, stopped: Way | None = None) -> Hold:
        """Stop a connection after so many bytes from now on; by default on the way that they are counted on."""
        self._hold = Hold(counted, after, stopped or counted)
        return self._hold

    def release(self) -> None:
        """Let what is held go on, if there is still somebody to go to."""
        if self._hold is not None:
            self._hold.released.set()
            self._hold = None

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._number += 1
        number, task = self._number, asyncio.current_task()
        assert task is not None
        self._connections[number] = task
        writers = [writer]
        try:
            upstream_reader, upstream_writer = await asyncio.open_connection(HOST, self._target)
            writers.append(upstream_writer)
            await asyncio.gather(
                self._pump(number, Way.UP, reader, upstream_writer),
                self._pump(number, Way.DOWN, upstream_reader, writer),
            )
        except (ConnectionError, asyncio.CancelledError):
            pass  # who asked for it sees the connection end, which is all that a front can say
        finally:
            for one in writers:
                one.transport.abort()
            del self._connections[number]

    async def _pump(self, number: int, way: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Copy until one side ends; then end the other."""
        with contextlib.suppress(ConnectionError):
            while chunk := await reader.read(65536):
                await self._held(number, way, len(chunk))
                writer.write(chunk)
                await writer.drain()
        writer.close()

    async def _held(self, number: int, way: Way, size: int) -> None:
        hold = self._hold
        if hold is None:
            return
        hold.passed[number, way] += size
        if way is hold.stopped and hold.passed[number, hold.counted] >= hold.after:
            hold.held.set()
            await hold.released.wait()
