"""A node's answer and the message that follows its receipt, over one request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from federator import fleet
from federator.contract import FLEET_BLOBS_HEADER, FLEET_BODY_LIMIT_HEADER
from federator.fleet import FleetConnection, Received
from federator.framing import Data, pack, split
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

RECEIPT = pack([b""], {})
MESSAGE = [b"envelope", b"run", b"letter", b"blob" * 1000]
ANSWER = [b"envelope", b"x" * 3_000_000]

Play = Callable[["Gateway"], Awaitable[None]]


class Gateway(RequestHandler):
    """Takes an answer, and does then what the test says for the request of that number."""

    def initialize(self, plays: list[Play], answers: list[list[bytes]]) -> None:
        self.plays, self.answers = plays, answers

    async def post(self) -> None:
        self.answers.append(split(self.request.body))
        self.set_header(FLEET_BODY_LIMIT_HEADER, "1000")
        await self.plays[len(self.answers) - 1](self)

    async def say(self, body: bytes) -> None:
        self.write(body)
        await self.flush()

    def hang_up(self) -> None:
        connection = self.request.connection
        assert connection is not None
        connection.stream.close()  # type: ignore[attr-defined]


class Site:
    """A node's connection, and what it was told."""

    def __init__(self, connection: FleetConnection) -> None:
        self.connection = connection
        self.told: list[str] = []
        self.taken = asyncio.Event()
        self.answers: list[list[bytes]] = []
        self.parts: list[Data] = [*ANSWER]

    async def push(self, had: list[str]) -> Received:
        async with asyncio.timeout(30):  # where something is broken, it tries for ever
            return await self.connection.push(self.parts, had, 0.1, self._note_taken, lambda: self.told.append("begun"))

    def _note_taken(self) -> None:
        self.told.append("taken")
        self.taken.set()


@asynccontextmanager
async def site(*plays: Play) -> AsyncIterator[Site]:
    it: Site
    answers: list[list[bytes]] = []
    server = HTTPServer(Application([("/v1/fleet/bulk-push", Gateway, {"plays": plays, "answers": answers})]))
    (listening,) = bind_sockets(0, "127.0.0.1")
    server.add_sockets([listening])
    connection = FleetConnection(
        f"127.0.0.1:{listening.getsockname()[1]}",
        tls=False,
        root_certificates=None,
        private_key=ec.generate_private_key(ec.SECP256R1()),
        on_trouble=lambda *_: it.told.append("trouble"),
        on_clock=lambda _: None,
    )
    it = Site(connection)
    it.answers = answers
    try:
        yield it
    finally:
        await connection.close()
        server.stop()
        await server.close_all_connections()


async def take_and_bring(gateway: Gateway) -> None:
    await gateway.say(RECEIPT + pack(MESSAGE, {}))


async def test_the_answer_is_let_go_of_with_its_receipt(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next message may be long in coming, and both are as large as a model."""
    monkeypatch.setattr(fleet, "_LATE_S", 30.0)
    go_on = asyncio.Event()

    async def take_and_bring_later(gateway: Gateway) -> None:
        await gateway.say(RECEIPT)
        await go_on.wait()
        await gateway.say(pack(MESSAGE, {}))

    async with site(take_and_bring_later) as it:
        pushing = asyncio.create_task(it.push([]))
        async with asyncio.timeout(10):
            await it.taken.wait()
        assert (it.parts, it.told, pushing.done()) == ([], ["taken"], False)
        go_on.set()
        assert await pushing == Received(MESSAGE, 1000)
        assert set(it.told[1:]) == {"begun"}
        assert it.answers == [ANSWER]


async def test_a_message_may_come_in_one_piece_with_the_receipt() -> None:
    async with site(take_and_bring) as it:
        assert await it.push([]) == Received(MESSAGE, 1000)
        assert it.told == ["taken", "begun"]


@pytest.mark.parametrize("body", [RECEIPT, b""], ids=["a receipt", "whoever knows no receipts"])
async def test_no_message_follows(body: bytes) -> None:
    async def take(gateway: Gateway) -> None:
        await gateway.say(body)

    async with site(take) as it:
        assert await it.push([]) == Received([], 1000)
        assert (it.parts, it.told) == ([], ["taken"])


async def hang_up(gateway: Gateway) -> None:
    gateway.hang_up()


async def send_elsewhere(gateway: Gateway) -> None:
    """As the Hub, to which its proxy sends everything until it knows its routes."""
    gateway.redirect("/hub/v1/fleet/bulk-push")


@pytest.mark.parametrize("not_taken", [hang_up, send_elsewhere])
async def test_an_answer_without_a_receipt_is_sent_again(not_taken: Play) -> None:
    async with site(not_taken, take_and_bring) as it:
        assert await it.push([]) == Received(MESSAGE, 1000)
        assert it.answers == [ANSWER, ANSWER]
        assert it.told == ["trouble", "taken", "begun"]


@pytest.mark.parametrize("lost", [b"", pack(MESSAGE, {})[:-1]], ids=["nothing", "half a message"])
async def test_what_is_lost_behind_the_receipt_is_no_trouble(lost: bytes) -> None:
    """The message can be asked for; the answer has been taken."""

    async def take_and_hang_up(gateway: Gateway) -> None:
        await gateway.say(RECEIPT)
        if lost:
            await gateway.say(lost)
        gateway.hang_up()

    async with site(take_and_hang_up) as it:
        assert (await it.push([])).parts == []
        assert it.answers == [ANSWER]
        assert "trouble" not in it.told


@pytest.mark.parametrize(("patience", "begun"), [("_LATE_S", b""), ("_CALL_TIMEOUT_S", pack(MESSAGE, {})[:-1])])
async def test_nobody_waits_for_ever_behind_the_receipt(
    monkeypatch: pytest.MonkeyPatch, patience: str, begun: bytes
) -> None:
    """Some proxies do not tell that the service has ended; and a link may die in the middle of a message."""
    monkeypatch.setattr(fleet, patience, 0.2)
    over = asyncio.Event()

    async def take_and_fall_silent(gateway: Gateway) -> None:
        await gateway.say(RECEIPT)
        if begun:
            await gateway.say(begun)
        await over.wait()

    async with site(take_and_fall_silent) as it:
        async with asyncio.timeout(10):
            assert (await it.push([])).parts == []
        over.set()
        assert it.told == ["taken", *(["begun"] if begun else [])]


@pytest.mark.parametrize(("named_at_most", "said"), [(2, '["a", "b"]'), (1, None)])
async def test_a_header_names_few_blobs(monkeypatch: pytest.MonkeyPatch, named_at_most: int, said: str | None) -> None:
    """Proxies limit it. Without it the gateway waits for no message, and the node asks by itself."""
    monkeypatch.setattr(fleet, "_NAMED_AT_MOST", named_at_most)
    headers: list[str | None] = []

    async def note(gateway: Gateway) -> None:
        headers.append(gateway.request.headers.get(FLEET_BLOBS_HEADER))
        await gateway.say(b"")

    async with site(note) as it:
        await it.push(["a", "b"])
    assert headers == [said]
