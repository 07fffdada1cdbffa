"""Thousands of broken Fleet requests against the gateway with real SuperLinks behind it, from the holder of a good key.

Nothing may come of them: no error of the service, no byte of another tenant, no file where none belongs, no memory
that is not given back, and no trouble for those who work. `FUZZ_CASES=100000` sends more; `FUZZ_SEED` sends others.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from federator.contract import FLEET_LETTERS_HEADER, FLEET_WAITING_HEADER
from federator.framing import pack, split
from federator.parcel import Letter
from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse, PushMessagesRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    Message,
    Metadata,
    ObjectTree,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
)
from flwr.proto.node_pb2 import Node

from hub_service.aggregators.base import ServerAppSpec
from hub_service.aggregators.mail import MAIL_FOLDER, is_mail_name
from hub_service.aggregators.superlink import SuperLink
from hub_service.domain.projects import NodeGrant
from hub_service.domain.runs import EventKind
from hub_service.rate_limits import Counted, RateLimits
from tests.fakes.fleet import PROJECT, Fleet, Member, fleet
from tests.fakes.flower_apps import SERVER, averaging_app
from tests.fakes.hostile import Answer, Attack, Corpus, Known, send, signature_headers
from tests.fakes.recorder import recorder

CASES = int(os.environ.get("FUZZ_CASES", "9000"))
SEED = int(os.environ.get("FUZZ_SEED", "6"))
OUTPUT = Path(__file__).resolve().parents[2] / "test-output"
BATCH = 500
WARM_UP = max(BATCH, CASES // 4)  # cases, before memory is measured
AT_ONCE = 24
MOST_GROWTH = 64 << 20  # bytes
OTHER_PROJECT = "p2"
CANARY = "Sarcoma before publication, canary"
FAR = 100_000  # rounds: a run that does not end by itself
TELLTALES = (CANARY.encode(), b"Traceback", b'.py"', b"/site-packages/", b"root:x:0")

CANARY_SERVER = SERVER.replace(
    "np.zeros((2, 3), dtype=np.float32)", f"np.frombuffer(b'{CANARY}' * 9, dtype=np.uint8).copy()"
)


@dataclass
class Battlefield:
    """A project with a site that works and one whose key the attacker has, and another tenant's project beside it."""

    it: Fleet
    attacker: Member
    worker: Member
    fab: bytes
    recorded: list[tuple[str, bytes]] = field(default_factory=list)
    own: Known = field(default_factory=Known)
    foreign: Known = field(default_factory=Known)
    victim: Member = field(init=False)
    runs: int = 0

    @property
    def run_id(self) -> str:
        return f"r{self.runs}"

    async def keep_running(self) -> None:
        """A run of the attacker's project which waits for the attacker's answer; and know the message."""
        if self.runs == 0 or await self.it.backend.serverapp_exit(PROJECT, self.run_id) is not None:
            await self.start_run(FAR)
        await self.know(self.attacker, self.own)

    async def start_run(self, rounds: int) -> None:
        self.runs += 1
        members = [self.attacker, self.worker]
        self.own.run_ids = [await self.it.start_run(self.fab, members, rounds=rounds, run_id=self.run_id)]

    async def know(self, member: Member, known: Known, *, letters: bool = True) -> None:
        """Take the member's next message and keep what can be known by it; nothing where none comes at once."""
        asked = PullMessagesRequest(node=Node(node_id=member.node_id)).SerializeToString()
        operation, body = ("bulk-pull", pack([asked, b"[]"], {})) if letters else ("pull-messages", asked)
        content = (await self.post(member, operation, body, letters=letters)).content
        if not content:
            return
        envelope = PullMessagesResponse.FromString(split(content)[0] if letters else content)
        if letters:
            known.blobs = list(Letter.unpacked(split(content)[2]).blobs)
        known.message_ids = [envelope.messages_list[0].metadata.message_id]
        known.object_ids = [one for tree in envelope.message_object_trees for one in _ids(tree)]

    async def post(self, member: Member, operation: str, body: bytes, *, letters: bool = True) -> httpx.Response:
        timestamp = datetime.now(UTC).isoformat()
        headers = dict(signature_headers(member.private_key, member.public_key, timestamp))
        headers |= {"content-type": "application/protobuf", "prefer": "wait=2"}
        headers |= {FLEET_LETTERS_HEADER: "1"} if letters else {}
        async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
            return await client.post(f"http://{self.it.address}/v1/fleet/{operation}", content=body, headers=headers)


def _ids(tree: ObjectTree) -> list[str]:
    return [tree.object_id, *(one for child in tree.children for one in _ids(child))]


@pytest.fixture(scope="module")
async def battle(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Battlefield]:
    generous = RateLimits(dict.fromkeys(Counted, "1000000 per 1 second"))
    async with fleet(tmp_path_factory.mktemp("hostile"), rate_limits=generous) as it:
        fab = averaging_app()
        worker = it.start_node("worker", 1.0, fab)
        made = Battlefield(it, it.admit("attacker"), worker, fab)
        made.recorded = await recorded_requests(it, fab)
        async with another_tenant(made):
            await it.register(made.attacker)
            made.own.node_ids = [made.attacker.node_id]
            made.own.fab_hashes = list(worker.approved)
            await made.know(made.attacker, made.own)
            await made.keep_running()
            assert made.own.message_ids, "the attacker's node has no message"
            yield made


async def recorded_requests(it: Fleet, fab: bytes) -> list[tuple[str, bytes]]:
    """What a real node sends in a run of two rounds."""
    async with recorder(it.port) as between:
        node = it.admit("recorded", 2.0)
        node.approve(fab)
        node.start(between.address, it.folder)
        await it.start_run(fab, [node], rounds=2, run_id="recorded")
        await it.end_of_run("recorded")
        await node.stop()
        return between.requests()


@asynccontextmanager
async def another_tenant(battle: Battlefield) -> AsyncIterator[None]:
    """Another project's run, with messages in letters and in objects that nobody has answered yet."""
    it, known = battle.it, battle.foreign
    superlink = SuperLink(await it.backend.start(OTHER_PROJECT))
    members = [Member("victim", 0.0), Member("stock victim", 0.0)]
    for member in members:
        it.grants[member.public_key] = NodeGrant(member.name, OTHER_PROJECT, None)
        member.node_id = await superlink.register_node(member.public_key)
        await battle.know(member, known, letters=member is members[0])  # now it is online
    fab = averaging_app(server=CANARY_SERVER)
    flower_run_id = await superlink.start_run(fab, {"num-server-rounds": 1})
    nodes = tuple(member.node_id for member in members)
    spec = ServerAppSpec("theirs", flower_run_id, nodes, 1, False, 30.0)
    await it.backend.start_serverapp(OTHER_PROJECT, spec)
    async with asyncio.timeout(60):
        while not known.blobs:
            await battle.know(members[0], known)
        blobs, message_ids, known.object_ids = known.blobs, known.message_ids, []
        while not known.object_ids:
            await battle.know(members[1], known, letters=False)
    known.blobs, known.message_ids = blobs, [*message_ids, *known.message_ids]
    known.node_ids, known.run_ids = list(nodes), [flower_run_id]
    known.fab_hashes = [Member("s", 0.0).approve(fab)]
    battle.victim = members[1]
    await check_that_the_canary_is_there(battle)
    try:
        yield
    finally:
        await it.backend.stop(OTHER_PROJECT)


async def check_that_the_canary_is_there(battle: Battlefield) -> None:
    """The victim's own node gets what the attacker must not."""
    contents: list[bytes] = []
    for object_id in battle.foreign.object_ids:
        request = PullObjectRequest(
            node=Node(node_id=battle.victim.node_id), run_id=battle.foreign.run_ids[0], object_id=object_id
        )
        answer = await battle.post(battle.victim, "pull-object", request.SerializeToString(), letters=False)
        contents.append(PullObjectResponse.FromString(answer.content).object_content)
    assert any(CANARY.encode() in content for content in contents), [content[:300] for content in contents]


@pytest.mark.parametrize(
    ("operation", "request_", "status"),
    [
        ("confirm-message-received", ConfirmMessageReceivedRequest(run_id=7), 403),  # as of an aggregator before
        ("push-object", PushObjectRequest(run_id=7), 403),
        ("push-messages", PushMessagesRequest(), 400),
        ("push-messages", PushMessagesRequest(messages_list=[Message(metadata=Metadata(message_type="x"))]), 400),
    ],
)
async def test_what_flowers_handlers_stumble_over_is_refused(
    battle: Battlefield, operation: str, request_: Any, status: int
) -> None:
    """An error of the service would be tried again by each node, for ever."""
    request_.node.node_id = battle.attacker.node_id
    for message in getattr(request_, "messages_list", []):
        message.metadata.src_node_id = battle.attacker.node_id
    answer = await battle.post(battle.attacker, operation, request_.SerializeToString())
    assert answer.status_code == status, answer.text


@pytest.mark.parametrize(
    "lengths", ["5,5", "nan", "", "-1", "5\r\nContent-Length: 5", "5\r\nTransfer-Encoding: chunked"]
)
async def test_a_request_with_no_one_length_is_refused(battle: Battlefield, lengths: str) -> None:
    member = battle.attacker
    headers = signature_headers(member.private_key, member.public_key, datetime.now(UTC).isoformat())
    lines = ["POST /v1/fleet/pull-messages HTTP/1.1", "Host: x", f"Content-Length: {lengths}"]
    lines += [f"{name}: {value}" for name, value in headers]
    data = "\r\n".join(lines).encode() + b"\r\n\r\n12345"
    assert (await send(battle.it.port, Attack("lengths", data))).statuses == [400]


async def test_names_of_blobs_that_do_not_end_are_refused(battle: Battlefield) -> None:
    asked = PullMessagesRequest(node=Node(node_id=battle.attacker.node_id)).SerializeToString()
    answer = await battle.post(battle.attacker, "bulk-pull", pack([asked, b"[" * 100_000], {}))
    assert answer.status_code == 400


async def test_broken_requests_come_to_nothing(battle: Battlefield, caplog: pytest.LogCaptureFixture) -> None:
    """Figures are kept in test-output/hostile-fleet.json."""
    it = battle.it
    caplog.set_level(logging.ERROR)
    victims_key = next(key for key, grant in it.grants.items() if grant.project_id == OTHER_PROJECT)
    corpus = Corpus(SEED, battle.attacker.private_key, battle.recorded, battle.own, battle.foreign, victims_key)
    heard = Heard()
    files = files_below(it.folder)
    for number in range(0, CASES, BATCH):
        await battle.keep_running()
        await heard.answers_to(it.port, [corpus.attack() for _ in range(min(BATCH, CASES - number))])
        if number + BATCH <= WARM_UP:
            files, before = files_below(it.folder), memory(it)
    after = memory(it)
    growth = {name: after[name] - size for name, size in before.items() if name in after}
    report = {"cases": CASES, "seed": SEED, "answers": heard.statuses, "growth in bytes": growth, "runs": battle.runs}
    OUTPUT.mkdir(exist_ok=True)
    (OUTPUT / "hostile-fleet.json").write_text(json.dumps(report, indent=1))
    assert heard.complaints == {}
    assert [record.getMessage() for record in caplog.records] == []
    assert set(heard.statuses) >= {200, 400, 401, 403, 404, 405, 409, 413}  # not all broke at the door
    assert max(growth.values()) < MOST_GROWTH
    assert {path for path in files_below(it.folder) - files if not belongs(path)} == set()
    await check_that_the_canary_is_there(battle)
    await check_that_sites_can_work(battle)


async def check_that_sites_can_work(battle: Battlefield) -> None:
    """The same project, with real nodes at both of its sites."""
    await battle.it.backend.stop(PROJECT)
    battle.attacker.approve(battle.fab)
    battle.attacker.start(battle.it.address, battle.it.folder)
    await battle.start_run(rounds=2)
    events = await battle.it.end_of_run(battle.run_id)
    assert events[-1].kind is EventKind.FINISHED
    assert not any(event.kind is EventKind.FAILED for event in events)
    replies = [event for event in events if event.kind is EventKind.REPLY]
    assert {event.node_id for event in replies} == {battle.attacker.node_id, battle.worker.node_id}


@pytest.mark.parametrize("sent", ["a part of the body", "a chunk", "a part of the answer"])
async def test_who_stops_in_the_middle_of_a_request_is_hung_up_on(tmp_path: Path, sent: str) -> None:
    """And leaves nothing behind. The sender keeps the connection open."""
    async with fleet(tmp_path, longest_silence_s=0.3) as it:
        member = it.admit("slow")
        await it.register(member)
        await it.start_run(averaging_app(), [member], rounds=1)
        head, body, operation = {
            "a part of the body": ("Content-Length: 100", b"x" * 50, "pull-messages"),
            "a chunk": ("Transfer-Encoding: chunked", b"5\r\nxxxxx\r\n", "push-object"),
            "a part of the answer": ("Content-Length: 3000000", pack([b"", b"x" * 2_000_000], {}), "bulk-push"),
        }[sent]
        headers = signature_headers(member.private_key, member.public_key, datetime.now(UTC).isoformat())
        lines = [f"POST /v1/fleet/{operation} HTTP/1.1", "Host: x", head, *(f"{name}: {one}" for name, one in headers)]
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        async with asyncio.timeout(20):
            answer = await reader.read()
        writer.close()
        assert answer.startswith(b"HTTP/1.1 408 ")
        mail = it.backend.run_folder(PROJECT, "r1") / "mail"
        assert [path for path in mail.glob("*") if path.stat().st_size >= 1_000_000] == []


async def test_who_is_slow_but_goes_on_is_heard_to_the_end(tmp_path: Path) -> None:
    async with fleet(tmp_path, longest_silence_s=0.5) as it:
        member = it.admit("thin line")
        await it.register(member)

        async def slowly() -> AsyncIterator[bytes]:
            for piece in body:
                await asyncio.sleep(0.1)  # less than the silence, and more in all
                yield bytes([piece])

        body = PullMessagesRequest(node=Node(node_id=member.node_id)).SerializeToString()
        headers = dict(signature_headers(member.private_key, member.public_key, datetime.now(UTC).isoformat()))
        async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
            answer = await client.post(
                f"http://{it.address}/v1/fleet/pull-messages", content=slowly(), headers=headers | {"prefer": "wait=0"}
            )
        assert answer.status_code == 200


@dataclass
class Heard:
    """What came back, added up."""

    statuses: Counter[int] = field(default_factory=Counter)
    complaints: dict[str, bytes] = field(default_factory=dict)  # each with the request and the answer

    async def answers_to(self, port: int, attacks: list[Attack]) -> None:
        waiting = iter(attacks)

        async def attacker() -> None:
            for attack in waiting:
                self._judge(attack, await send(port, attack))

        await asyncio.gather(*(attacker() for _ in range(AT_ONCE)))

    def _judge(self, attack: Attack, answer: Answer) -> None:
        self.statuses.update(answer.statuses)
        for complaint in complaints(answer):
            self.complaints[f"{attack.kind}: {complaint}"] = attack.data[-1000:] + b"\n=>\n" + answer.content[:1000]


def complaints(answer: Answer) -> list[str]:
    """What is wrong with an answer."""
    found = [f"tells {text!r}" for text in TELLTALES if text in answer.content]
    waiting = FLEET_WAITING_HEADER.lower().encode() in answer.content.lower()
    found += [f"status {one}" for one in answer.statuses if one >= 500 and not (one == 503 and waiting)]
    return [*found, "no answer"] if answer.hung else found


def files_below(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}


def belongs(path: Path) -> bool:
    """Whether a run may have made the file. In its mail lie what it sends and at most the answers of one round."""
    runs = path.parts[:3] == ("projects", PROJECT, "runs")
    return runs and (path.parent.name != MAIL_FOLDER or is_mail_name(path.name))


def memory(it: Fleet) -> dict[str, int]:
    """Bytes that are resident: of the gateway, which is in this process, and of each process below it."""
    here = psutil.Process()
    found = {"gateway": here.memory_info().rss}
    for child in here.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            found[f"process {child.pid}"] = child.memory_info().rss
    return found
