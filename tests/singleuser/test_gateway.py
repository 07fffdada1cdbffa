"""The gateway: who is let in, what is refused, long polls, and stock Flower nodes."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from itertools import groupby
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from federator.contract import FLEET_WAITING_HEADER
from federator.ports import free_port
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, Message, Metadata
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from google.protobuf.message import Message as Protobuf

from hub_service.aggregators.base import Endpoint
from hub_service.domain.runs import EventKind
from hub_service.gateway.gateway import LONGEST_POLL_S, POLL_S
from hub_service.gateway.handlers import FleetHandler
from hub_service.site_stages import Stage
from tests.fakes.certificates import loopback_certificates
from tests.fakes.fleet import PROJECT, Fleet, Member, fleet
from tests.fakes.flower_apps import averaging_app
from tests.fakes.signing import signed


@pytest.fixture(scope="module")
async def idle(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    """No aggregator runs."""
    async with fleet(tmp_path_factory.mktemp("idle"), body_limit=1000) as it:
        it.admit("a")
        yield it


@pytest.fixture(scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    """An aggregator that knows the members a and b."""
    async with fleet(tmp_path_factory.mktemp("running")) as it:
        await it.register(it.admit("a"), it.admit("b"))
        yield it


async def post(
    it: Fleet, operation: str, request: Protobuf | bytes, headers: dict[str, str], wait: float = 0.0
) -> httpx.Response:
    body = request if isinstance(request, bytes) else request.SerializeToString()
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        return await client.post(
            f"http://{it.address}/v1/fleet/{operation}", content=body, headers=headers | {"prefer": f"wait={wait}"}
        )


def pull(member: Member) -> PullMessagesRequest:
    return PullMessagesRequest(node=Node(node_id=member.node_id))


@pytest.mark.parametrize("size", [1000, 8 * 1024**2])
async def test_an_aggregator_that_ends_in_the_middle_of_its_answer_is_asked_again(
    idle: Fleet, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Whatever has left for the node by then must not pass for the whole."""

    async def half_an_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode() + bytes(size // 2))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(half_an_answer, "127.0.0.1", 0)
    endpoint = Endpoint(*server.sockets[0].getsockname()[:2])
    member = idle.members["a"]
    async with server:
        monkeypatch.setattr(idle.backend, "endpoint", lambda _: endpoint)
        asked = post(idle, "get-run", GetRunRequest(run_id=1), signed(member))
        if size > 1024**2:
            with pytest.raises(httpx.RemoteProtocolError):
                await asked
        else:
            assert (await asked).status_code == 503


async def test_a_nodes_request_waits_until_it_is_its_turn(idle: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page goes first, and holds up whoever asks meanwhile."""
    asked, its_turn = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        asked.set()
        await its_turn.wait()

    monkeypatch.setattr(idle.gateway.turns, "wait", wait)
    member = idle.members["a"]
    beat = SendNodeHeartbeatRequest(node=Node(node_id=member.node_id), heartbeat_interval=30)
    answer = asyncio.ensure_future(post(idle, "send-node-heartbeat", beat, signed(member)))
    async with asyncio.timeout(60):
        await asked.wait()
        assert not answer.done()
        its_turn.set()
        assert (await answer).status_code == 200


@pytest.mark.parametrize(
    "why", ["unknown key", "forged", "forged and too old", "no time zone", "no signature", "no key"]
)
async def test_who_is_not_let_in(idle: Fleet, why: str) -> None:
    """One status and one text for all."""
    member = idle.members["a"]
    now = datetime.now(UTC)
    headers = {
        "unknown key": lambda: signed(Member("stranger", 0.0)),
        "forged": lambda: signed(member, signer=ec.generate_private_key(ec.SECP256R1())),
        "forged and too old": lambda: signed(
            member, at=now - timedelta(seconds=310), signer=ec.generate_private_key(ec.SECP256R1())
        ),
        "no time zone": lambda: signed(member, at=now.replace(tzinfo=None)),
        "no signature": lambda: signed(member) | {"flwr-signature": "-"},
        "no key": lambda: signed(member) | {"flwr-public-key": b64encode(b"no key").decode()},
    }[why]()
    answer = await post(idle, "pull-messages", pull(member), headers)
    assert answer.status_code == 401
    assert answer.json()["detail"] == "This node's key opens no project here."


@pytest.mark.parametrize(("off_s", "way"), [(-310, "310 s behind"), (10, "[0-9]+ s ahead of")])
@pytest.mark.parametrize("known", [True, False])
async def test_a_wrong_clock_is_told(idle: Fleet, off_s: int, way: str, known: bool) -> None:
    """To whoever signed well; whether the key is known is not in it."""
    member = idle.members["a"] if known else Member("stranger", 0.0)
    answer = await post(
        idle, "pull-messages", pull(member), signed(member, at=datetime.now(UTC) + timedelta(seconds=off_s))
    )
    assert answer.status_code == 401
    assert re.match(rf"The clock of this site is {way} the Hub's: set it right\.", answer.json()["detail"])


@pytest.mark.parametrize(
    ("operation", "status"),
    [
        ("register-node", 403),
        ("unregister-node", 403),
        ("no-such-thing", 404),
        ("get-run", 403),
        ("push-messages", 403),
    ],
)
async def test_what_is_refused_while_no_aggregator_runs(idle: Fleet, operation: str, status: int) -> None:
    answer = await post(idle, operation, b"", signed(idle.members["a"]))
    assert answer.status_code == status
    assert answer.json()["detail"]


async def test_only_post_is_spoken(idle: Fleet) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        assert (await client.get(f"http://{idle.address}/v1/fleet/pull-messages")).status_code == 405


async def test_what_is_answered_while_no_aggregator_runs(idle: Fleet) -> None:
    member = idle.members["a"]
    heartbeat = await post(idle, "send-node-heartbeat", SendNodeHeartbeatRequest(), signed(member))
    assert SendNodeHeartbeatResponse.FromString(heartbeat.content).success
    assert (await post(idle, "deactivate-node", b"", signed(member))).status_code == 200
    empty = await post(idle, "pull-messages", pull(member), signed(member))
    assert (empty.status_code, empty.content) == (200, b"")
    activation = ActivateNodeRequest(public_key=member.public_key)
    waiting = await post(idle, "activate-node", activation, signed(member))
    assert (waiting.status_code, waiting.headers[FLEET_WAITING_HEADER]) == (503, "1")
    assert ("a", False) in idle.seen


async def test_a_node_activates_for_itself_only(idle: Fleet) -> None:
    other = ActivateNodeRequest(public_key=b"another key")
    assert (await post(idle, "activate-node", other, signed(idle.members["a"]))).status_code == 401


async def test_a_body_that_is_no_message_is_refused(idle: Fleet) -> None:
    assert (await post(idle, "pull-messages", b"\xff\xff\xff", signed(idle.members["a"]))).status_code == 400


async def test_a_body_over_the_limit_is_refused_with_the_limit(idle: Fleet) -> None:
    answer = await post(idle, "push-object", b"x" * 1001, signed(idle.members["a"]))
    assert answer.status_code == 413
    assert "1000 bytes" in answer.json()["detail"]


async def test_a_body_of_unknown_length_is_cut_at_the_limit(running: Fleet) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b"x" * 100_000

    async with httpx.AsyncClient(trust_env=False) as client:
        url = f"http://{running.address}/v1/fleet/pull-messages"
        try:
            answer = await client.post(url, content=endless(), headers=signed(running.members["a"]))
        except (httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):  # the gateway has hung up in the middle
            return
    assert answer.status_code == 413


async def test_a_withdrawn_grant_ends_a_waiting_poll_within_a_second(idle: Fleet) -> None:
    member = idle.admit("leaving")
    poll = asyncio.create_task(post(idle, "pull-messages", pull(member), signed(member), wait=20.0))
    async with asyncio.timeout(5):
        while ("leaving", False) not in idle.seen:  # noqa: ASYNC110 - the poll has arrived
            await asyncio.sleep(0.01)
    del idle.grants[member.public_key]
    withdrawn = time.monotonic()
    assert (await poll).status_code == 401
    assert time.monotonic() - withdrawn < 1.0


async def test_a_refusal_says_the_time_at_which_it_is_sent(idle: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes set their clocks by it; the request may have come in a poll ago."""

    def begun_long_ago(handler: FleetHandler) -> None:
        handler.set_header("Date", "Mon, 01 Jan 2001 08:00:00 GMT")

    monkeypatch.setattr(FleetHandler, "set_default_headers", begun_long_ago)
    answer = await post(idle, "pull-messages", b"", signed(Member("stranger", 0.0)))
    assert answer.status_code == 401
    assert abs(parsedate_to_datetime(answer.headers["date"]) - datetime.now(UTC)) < timedelta(minutes=1)


async def cut_off_poll(it: Fleet, member: Member) -> None:
    """A poll that waits, and whose connection is then lost."""
    before = len(it.seen)
    poll = asyncio.create_task(post(it, "pull-messages", pull(member), signed(member), wait=20.0))
    async with asyncio.timeout(5):
        while len(it.seen) == before:  # noqa: ASYNC110 - the poll has arrived
            await asyncio.sleep(0.01)
    poll.cancel()
    with suppress(asyncio.CancelledError):
        await poll


async def test_a_lost_connection_is_told_unless_the_node_has_another(idle: Fleet) -> None:
    lost, back = idle.admit("lost"), idle.admit("back")
    other = asyncio.create_task(post(idle, "pull-messages", pull(back), signed(back), wait=20.0))
    async with asyncio.timeout(5):
        while ("back", False) not in idle.seen:  # noqa: ASYNC110 - the poll has arrived
            await asyncio.sleep(0.01)
    await cut_off_poll(idle, back)
    await cut_off_poll(idle, lost)
    async with asyncio.timeout(5):
        while "lost" not in idle.cut_off:  # noqa: ASYNC110 - the gateway has noticed
            await asyncio.sleep(0.01)
    assert "back" not in idle.cut_off
    del idle.grants[back.public_key]
    assert (await other).status_code == 401


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [
        ("", POLL_S),
        ("respond-async", POLL_S),
        ("wait=", POLL_S),
        ("wait=45", 45.0),
        ("wait=0", 0.0),
        ("wait=600", LONGEST_POLL_S),
    ],
)
def test_a_poll_is_held_as_long_as_it_asks_within_the_limit(idle: Fleet, prefer: str, seconds: float) -> None:
    """A stock node says nothing."""
    assert idle.gateway.poll_s(prefer) == seconds


@pytest.mark.parametrize("operation", ["register-node", "no-such-thing", "pull-messages"])
async def test_who_is_refused_before_the_body_is_here_is_told_that_the_connection_ends(
    idle: Fleet, operation: str
) -> None:
    """The Hub's proxy keeps its connections: without that word it sends another's request on one that is ending."""
    stranger = Member("stranger", 0.0)
    answer = await post(idle, operation, pull(stranger), signed(stranger))
    assert (answer.status_code, answer.headers["connection"]) == (401, "close")
    member = idle.members["a"]
    answer = await post(idle, "pull-messages", pull(member), signed(member))
    assert "connection" not in answer.headers


async def test_a_closed_gateway_opens_no_connection_any_more(tmp_path_factory: pytest.TempPathFactory) -> None:
    """As the service ends: a node that asks at that moment is told to try again."""
    async with fleet(tmp_path_factory.mktemp("closed")) as it:
        member = it.admit("a")
        await it.register(member)
        assert (await post(it, "pull-messages", pull(member), signed(member))).status_code == 200
        await it.gateway.close()
        assert (await post(it, "pull-messages", pull(member), signed(member))).status_code == 503


async def test_activation_waits_for_the_aggregator_and_brings_the_node_online(running: Fleet) -> None:
    late = running.admit("late")
    activation = asyncio.create_task(
        post(running, "activate-node", ActivateNodeRequest(public_key=late.public_key), signed(late), wait=20.0)
    )
    async with asyncio.timeout(5):
        while ("late", False) not in running.seen:  # noqa: ASYNC110 - the poll has arrived
            await asyncio.sleep(0.01)
    await running.register(late)
    assert ActivateNodeResponse.FromString((await activation).content).node_id == late.node_id


async def test_a_node_speaks_in_its_own_name_only(running: Fleet) -> None:
    """The aggregator knows it by one id; the gateway tells it to activate again where it uses another."""
    a, b = running.members["a"], running.members["b"]
    assert (await post(running, "pull-messages", pull(b), signed(a))).status_code == 409
    assert (await post(running, "get-run", GetRunRequest(node=Node(node_id=b.node_id)), signed(a))).status_code == 409
    reply = PushMessagesRequest(
        node=Node(node_id=a.node_id), messages_list=[Message(metadata=Metadata(src_node_id=b.node_id))]
    )
    assert (await post(running, "push-messages", reply, signed(a))).status_code == 400


async def test_a_message_is_handed_out_until_it_is_confirmed(running: Fleet) -> None:
    """A connection that is lost with the answer in it loses no message."""
    a = running.members["a"]
    await post(running, "pull-messages", pull(a), signed(a))
    await running.start_run(averaging_app(), [a], rounds=1)
    first, again = [
        PullMessagesResponse.FromString((await post(running, "pull-messages", pull(a), signed(a), wait=20.0)).content)
        for _ in range(2)
    ]
    assert first.messages_list[0].metadata.message_id == again.messages_list[0].metadata.message_id
    assert ("a", True) in running.seen
    confirm = ConfirmMessageReceivedRequest(
        node=Node(node_id=a.node_id),
        run_id=first.messages_list[0].metadata.run_id,
        message_object_id=first.messages_list[0].metadata.message_id,
    )
    assert (await post(running, "confirm-message-received", confirm, signed(a))).status_code == 200
    assert (await post(running, "pull-messages", pull(a), signed(a))).content == b""


@asynccontextmanager
async def stock_node(folder: Path, it: Fleet, authority: Path, key: Path) -> AsyncIterator[None]:
    """`flower-supernode` as its own process, which is ended with all it started."""
    scripts = Path(sys.executable).parent
    command = [str(scripts / "flower-supernode"), "--superlink", it.address]
    command += ["--root-certificates", str(authority), "--auth-supernode-private-key", str(key)]
    command += ["--node-config", "target=1.0", "--host", "127.0.0.1", "--port", str(free_port())]
    quiet = {"FLWR_HOME": str(folder / "stock"), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    quiet["PATH"] = f"{scripts}{os.pathsep}{os.environ['PATH']}"
    with (folder / "stock.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *command, env=os.environ | quiet, stdout=log, stderr=log, start_new_session=True
        )
        try:
            yield
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


async def test_connections_to_an_aggregator_that_is_gone_are_closed(tmp_path: Path) -> None:
    async with fleet(tmp_path) as it:
        member = it.admit("a")
        await it.register(member)
        await post(it, "pull-messages", pull(member), signed(member))
        ((_, client),) = it.gateway._clients.values()
        await it.backend.stop(PROJECT)
        await post(it, "pull-messages", pull(member), signed(member))
        assert client.closed
        assert it.gateway._clients == {}


ONE_MESSAGE = [Stage.RECEIVING, Stage.COMPUTING, Stage.SENDING, Stage.ANSWERED]


def the_way_of(it: Fleet, name: str) -> list[Stage]:
    """The stages of a member's messages, from its first one on."""
    stages = [stage for stage, _ in groupby(stage for who, stage in it.moved if who == name)]
    return stages[stages.index(Stage.RECEIVING) :]


async def test_each_stage_of_a_message_is_told(tmp_path: Path) -> None:
    async with fleet(tmp_path) as it:
        members = [it.start_node(name, 1.0, averaging_app()) for name in ("north", "south")]
        await it.start_run(averaging_app(), members, rounds=2)
        events = await it.end_of_run()
        assert events[-1].kind is EventKind.FINISHED
        for member in members:
            assert the_way_of(it, member.name)[:16] == 4 * ONE_MESSAGE


async def test_stock_flower_nodes_take_part(tmp_path: Path) -> None:
    """`flower-supernode`, as Flower ships it, with a registered key and a TLS origin."""
    certificates = loopback_certificates(tmp_path)
    async with fleet(tmp_path, tls=certificates.server) as it:
        member = it.admit("stock", 1.0)
        key = tmp_path / "node.key"
        key.write_bytes(member.private_key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
        async with stock_node(tmp_path, it, certificates.authority, key):
            await it.start_run(averaging_app(), [member], rounds=1)
            events = await it.end_of_run()
        assert events[-1].kind is EventKind.FINISHED, (tmp_path / "stock.log").read_text()[-2000:]
        assert the_way_of(it, "stock")[:8] == 2 * ONE_MESSAGE
        assert [event.node_id for event in events if event.kind is EventKind.REPLY] == [member.node_id] * 2
    assert await it.backend.running() == []
    assert it.backend.endpoint(PROJECT) is None
