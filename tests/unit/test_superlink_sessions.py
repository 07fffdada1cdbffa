"""The gateway's client of a SuperLink, over a Unix socket that lies deeper than the system takes paths."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_unix_socket
from tornado.web import Application, RequestHandler

from hub_service.aggregators.base import Endpoint
from hub_service.aggregators.sessions import open_session

LONGEST_PATH = 107  # bytes that the system takes for a socket
TIMEOUT = aiohttp.ClientTimeout(total=10.0)


class Echo(RequestHandler):
    def post(self) -> None:
        self.write(self.request.body)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / ("d" * LONGEST_PATH)
    path.mkdir()
    return path


@pytest.fixture
async def endpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Endpoint]:
    monkeypatch.chdir(folder)
    server = HTTPServer(Application([("/v1/fleet/pull", Echo)]))
    server.add_socket(bind_unix_socket("superlink.sock"))
    yield Endpoint("127.0.0.1", 9091, folder / "superlink.sock")
    server.stop()
    await server.close_all_connections()


def open_at(folder: Path) -> int:
    """How many descriptors of this process lead there."""
    names = [os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    return sum(os.readlink(name) == str(folder) for name in names if os.path.lexists(name))


async def test_requests_go_over_the_socket_wherever_it_lies(endpoint: Endpoint, folder: Path) -> None:
    async with open_session(endpoint, timeout=TIMEOUT) as session:
        for body in (b"one", b"two"):
            async with session.post("/v1/fleet/pull", data=body) as response:
                assert (response.status, await response.read()) == (200, body)
        assert open_at(folder) == 1
    assert open_at(folder) == 0


async def test_a_session_is_closed_twice_without_harm(endpoint: Endpoint, folder: Path) -> None:
    session = open_session(endpoint, timeout=TIMEOUT)
    connector = session.connector
    assert connector is not None
    await session.close()
    kept = os.open(folder, os.O_PATH)  # has the number that the session's descriptor had
    try:
        await connector.close()
        assert open_at(folder) == 1
    finally:
        os.close(kept)


async def test_a_folder_that_is_gone_is_said(tmp_path: Path) -> None:
    with pytest.raises(aiohttp.ClientConnectionError, match="gone: No such file or directory"):
        open_session(Endpoint("127.0.0.1", 9091, tmp_path / "gone" / "superlink.sock"), timeout=TIMEOUT)


async def test_a_socket_where_nobody_listens_is_an_error_of_the_client(tmp_path: Path) -> None:
    async with open_session(Endpoint("127.0.0.1", 9091, tmp_path / "superlink.sock"), timeout=TIMEOUT) as session:
        with pytest.raises(aiohttp.ClientConnectionError):
            await session.post("/v1/fleet/pull")
