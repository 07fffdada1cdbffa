"""A hospital's usual TLS front for the Hub: terminates TLS with a certificate of its own CA and passes bytes on."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

from tests.fakes.certificates import loopback_certificates


@contextlib.asynccontextmanager
async def tls_front(origin: str, folder: Path) -> AsyncIterator[tuple[str, Path]]:
    """Serve `origin` over TLS on a port of its own; yield its host:port and the CA certificate's path."""
    certificates = loopback_certificates(folder)
    target = urlsplit(origin)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection(target.hostname, target.port)
        await asyncio.gather(pump(reader, upstream_writer), pump(upstream_reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=certificates.server)
    async with server:
        port: int = server.sockets[0].getsockname()[1]
        yield f"127.0.0.1:{port}", certificates.authority


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy until one side ends; then end the other."""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while chunk := await reader.read(65536):
            writer.write(chunk)
            await writer.drain()
    writer.close()
