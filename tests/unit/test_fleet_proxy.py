"""A node's way to the Hub: through the site's proxy, or past it, over connections that TCP watches."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from federator import fleet
from federator.fleet import FleetConnection, FleetError
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

NOBODY = "127.0.0.1:9"  # no proxy listens there
HUB = "hub.example:80"  # no name: only a proxy could reach it
WATCHED = ((socket.SOL_SOCKET, socket.SO_KEEPALIVE), (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT))
VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "ftp_proxy")


class Echo(RequestHandler):
    def post(self) -> None:
        self.set_header("Asked", self.request.uri or "")


@pytest.fixture
def sockets(monkeypatch: pytest.MonkeyPatch) -> list[socket.socket]:
    """Those that connections are made over."""
    made: list[socket.socket] = []
    make = fleet._watched_socket

    def make_and_note(address: Any) -> socket.socket:
        made.append(make(address))
        return made[-1]

    monkeypatch.setattr(fleet, "_watched_socket", make_and_note)
    return made


async def sent(address: str, sockets: list[socket.socket]) -> tuple[str, list[list[int]]]:
    """What a request to HERE, or through it, asks for, and how TCP watches each of its connections."""
    connection = FleetConnection(
        address,
        tls=False,
        root_certificates=None,
        private_key=ec.generate_private_key(ec.SECP256R1()),
        on_trouble=lambda *_: None,
        on_clock=lambda _: None,
    )
    try:
        answer = await connection.send("pull-messages", b"")
        return answer.headers["asked"], [[one.getsockopt(*option) for option in WATCHED] for one in sockets]
    finally:
        await connection.close()


@pytest.fixture
async def here(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    """Host and port of who answers with what it was asked for. The environment names no proxy."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    server = HTTPServer(Application([(".*", Echo)]))
    (listening,) = bind_sockets(0, "127.0.0.1")
    server.add_sockets([listening])
    yield f"127.0.0.1:{listening.getsockname()[1]}"
    server.stop()
    await server.close_all_connections()


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"no_proxy": "intranet.example"},
        {"ftp_proxy": NOBODY},
        {"https_proxy": f"http://{NOBODY}"},
        {"http_proxy": f"http://{NOBODY}", "no_proxy": "intranet.example, 127.0.0.1"},
    ],
    ids=str,
)
async def test_the_hub_is_asked_past_the_proxy(
    here: str, sockets: list[socket.socket], monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert await sent(here, sockets) == ("/v1/fleet/pull-messages", [[1, 60_000]])


@pytest.mark.parametrize("variable", ["http_proxy", "all_proxy"])
@pytest.mark.parametrize("scheme", ["http://", ""])
async def test_the_sites_proxy_is_used(
    here: str, sockets: list[socket.socket], monkeypatch: pytest.MonkeyPatch, variable: str, scheme: str
) -> None:
    monkeypatch.setenv(variable, scheme + here)
    monkeypatch.setenv("no_proxy", "intranet.example")
    assert await sent(HUB, sockets) == ("http://hub.example/v1/fleet/pull-messages", [[1, 60_000]])


async def test_a_proxy_that_is_not_spoken_to_is_named(
    here: str, sockets: list[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its address, which may have a password in it."""
    monkeypatch.setenv("all_proxy", f"socks5://someone:secret@{here}")
    with pytest.raises(FleetError, match=r"^The site's proxy speaks socks5: ask the site to name an HTTP proxy"):
        await sent(HUB, sockets)
