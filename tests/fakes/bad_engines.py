"""Docker engines that fail: a way to a real one that a test can close, and one whose disk is full.

Both answer on this process's event loop. Whoever speaks to an engine on the loop itself never gets an answer from them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_unix_socket
from tornado.web import Application, RequestHandler


class EngineRelay:
    """A Unix socket that leads to an engine's.

    Args:
        path: of the socket to make.
        engine: of the engine's own.
    """

    def __init__(self, path: Path, engine: Path) -> None:
        self.address = f"unix://{path}"
        self._path = path
        self._engine = engine
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._silent = False

    async def open(self) -> None:
        """Let everything through."""
        self._silent = False
        self._server = await asyncio.start_unix_server(self._connected, self._path)

    async def cut(self) -> None:
        """As an engine that has ended."""
        if self._server is None:
            return
        self._server.close()
        self._path.unlink(missing_ok=True)
        self._server = None
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def fall_silent(self) -> None:
        """As an engine that hangs: it takes connections and never answers."""
        await self.cut()
        self._silent = True
        self._server = await asyncio.start_unix_server(self._connected, self._path)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.ensure_future(self._carry(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self._silent:
                await asyncio.Event().wait()
            from_engine, to_engine = await asyncio.open_unix_connection(self._engine)
            try:
                await asyncio.gather(_copy(reader, to_engine), _copy(from_engine, writer))
            finally:
                to_engine.close()
        finally:
            writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while chunk := await reader.read(65536):
            writer.write(chunk)
            await writer.drain()
        writer.write_eof()


@asynccontextmanager
async def relay_to(engine: str, folder: Path) -> AsyncIterator[EngineRelay]:
    """An open relay to the engine at unix://..., with its socket in the folder."""
    relay = EngineRelay(folder / "relay.sock", Path(engine.removeprefix("unix://")))
    await relay.open()
    try:
        yield relay
    finally:
        await relay.cut()


class _Full(RequestHandler):
    def get(self, path: str) -> None:
        self.write({"ApiVersion": "1.41"} if path == "version" else "[]")

    def post(self, path: str) -> None:
        self.set_status(500)
        self.write({"message": "mkdir /var/lib/docker/overlay2/1f: no space left on device"})


@asynccontextmanager
async def full_engine(folder: Path) -> AsyncIterator[str]:
    """The address of an engine that has no containers and no room for one."""
    path = folder / "full.sock"
    server = HTTPServer(Application([("/(?:v[0-9.]+/)?(.*)", _Full)]))
    server.add_socket(bind_unix_socket(str(path)))
    try:
        yield f"unix://{path}"
    finally:
        server.stop()
        await server.close_all_connections()
