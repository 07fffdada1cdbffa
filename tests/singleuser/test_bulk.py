"""Messages whose model data travel beside them: from a node through the gateway, and at the SuperLink's bulk paths."""

from __future__ import annotations

import asyncio
import errno
import json
import re
from base64 import b64encode
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from federator.contract import FLEET_BLOBS_HEADER, FLEET_BODY_LIMIT_HEADER, FLEET_LETTERS_HEADER, ClientState
from federator.framing import framed, pack, split
from federator.logs import REQUEST_ID_HEADER
from federator.node import _error_reply, _packed
from federator.parcel import Letter, content_of, plain_array
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.app.message import make_message
from flwr.common.constant import ErrorCode
from flwr.common.serde_utils import metadata_from_proto
from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse, PushMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest, GetRunResponse
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.supercore.runtime_version_compatibility import RuntimeVersionMetadata

from hub_service.aggregators.mail import MAIL_FOLDER
from hub_service.aggregators.superlink import SuperLink
from hub_service.aggregators.superlink_process import HANDED_AT_MOST, BulkPaths
from hub_service.domain.runs import EventKind
from hub_service.gateway import gateway, upload
from hub_service.gateway.gateway import Caller, Refusal
from hub_service.gateway.handlers import FleetHandler
from hub_service.site_stages import Stage
from tests.fakes.fleet import PROJECT, Fleet, Member, fleet
from tests.fakes.flower_apps import SERVER, averaging_app
from tests.singleuser.test_gateway import post, pull, signed

LETTERS = {FLEET_LETTERS_HEADER: "1"}


@pytest.fixture(scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    """An aggregator that knows the members a and b."""
    async with fleet(tmp_path_factory.mktemp("bulk")) as it:
        await it.register(it.admit("a"), it.admit("b"))
        yield it


@pytest.fixture
async def waiting(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    """A run waits for the answer of its one member, whose node is not there."""
    async with fleet(tmp_path_factory.mktemp("waiting")) as it:
        member = it.admit("a")
        await it.register(member)
        await bulk_pull(it, member)
        await it.start_run(averaging_app(), [member], rounds=1)
        yield it


@dataclass
class Got:
    """What a poll brought."""

    envelope: PullMessagesResponse
    run: GetRunResponse
    letter: Letter
    data: list[bytes]

    @property
    def proto(self) -> MessageProto:
        return self.envelope.messages_list[0]

    def message(self) -> Message:
        content = content_of(self.letter, lambda _, count: self.data[:count], plain_array)
        return make_message(metadata=metadata_from_proto(self.proto.metadata), content=content)


async def at_superlink(it: Fleet, operation: str, body: bytes, headers: Mapping[str, str]) -> httpx.Response:
    endpoint = it.backend.endpoint(PROJECT)
    assert endpoint is not None
    async with httpx.AsyncClient(trust_env=False) as client:
        return await client.post(f"http://{endpoint.address}/v1/bulk/{operation}", content=body, headers=dict(headers))


async def bulk_pull(it: Fleet, member: Member, had: tuple[str, ...] = (), wait: float = 0.0) -> httpx.Response:
    body = pack([pull(member).SerializeToString(), json.dumps(had).encode()], {})
    return await post(it, "bulk-pull", body, signed(member) | LETTERS, wait)


async def bulk_push(it: Fleet, member: Member, body: bytes) -> httpx.Response:
    return await post(it, "bulk-push", body, signed(member) | LETTERS)


async def next_message(it: Fleet, member: Member, had: tuple[str, ...] = ()) -> Got:
    answer = await bulk_pull(it, member, had, wait=20.0)
    assert answer.status_code == 200, answer.text
    assert int(answer.headers[FLEET_BODY_LIMIT_HEADER]) == it.gateway.body_limit
    envelope, run, letter, *data = split(answer.content)
    return Got(PullMessagesResponse.FromString(envelope), run_of(run), Letter.unpacked(letter), data)


def run_of(body: bytes) -> GetRunResponse:
    """The run without what goes up with each message."""
    answer = GetRunResponse.FromString(body)
    answer.run.ClearField("bytes_sent")
    answer.run.ClearField("bytes_recv")
    return answer


def packed_answer(member: Member, reply: Message) -> bytes:
    packed = _packed(reply, 0.0)
    request = PushMessagesRequest(
        node=Node(node_id=member.node_id), messages_list=[packed.proto], message_object_trees=[packed.tree]
    )
    return b"".join(framed([request.SerializeToString(), *packed.parts]))


def refusal(member: Member, got: Got) -> bytes:
    """An answer that says that the member cannot."""
    return packed_answer(member, _error_reply(got.proto, ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "no data today"))


def trained(member: Member, got: Got, value: float = 1.0, size: int = 6) -> bytes:
    """An answer with a model."""
    arrays = ArrayRecord({"weight": Array(np.full(size, value, np.float32).reshape(-1, 3))})
    metrics = MetricRecord({"loss": 0.5, "num-examples": 10})
    return packed_answer(member, Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=got.message()))


def mail_of(it: Fleet) -> Path:
    return it.backend.run_folder(PROJECT, "r1") / MAIL_FOLDER


# --- who may ask, and how


@pytest.mark.parametrize("operation", ["online", "pull", "push"])
async def test_a_node_proves_who_it_is_at_the_superlink_too(running: Fleet, operation: str) -> None:
    a, b = running.members["a"], running.members["b"]
    request = {
        "online": lambda node: SendNodeHeartbeatRequest(node=node, heartbeat_interval=30).SerializeToString(),
        "pull": lambda node: pack([PullMessagesRequest(node=node).SerializeToString()], {}),
        "push": lambda node: pack([PushMessagesRequest(node=node).SerializeToString(), b""], {}),
    }[operation]
    of_a, of_b = (request(Node(node_id=member.node_id)) for member in (a, b))
    unsigned = {"flwr-public-key": signed(a)["flwr-public-key"]}
    assert (await at_superlink(running, operation, of_a, {})).status_code == 401
    assert (await at_superlink(running, operation, of_a, unsigned)).status_code == 401
    assert (await at_superlink(running, operation, of_b, signed(a))).status_code == 401
    by_b = signed(a, signer=b.private_key)
    assert (await at_superlink(running, operation, of_a, by_b)).status_code == 401
    no_key = signed(a) | {"flwr-public-key": b64encode(b"no key").decode("ascii")}
    assert (await at_superlink(running, operation, of_a, no_key)).status_code == 401


@pytest.mark.parametrize("operation", ["grid-nodes", "grid-push", "grid-pull", "grid-give-up"])
@pytest.mark.parametrize("token", [None, "", "of another task"])
async def test_the_serverapp_proves_which_task_it_has(running: Fleet, operation: str, token: str | None) -> None:
    versions = dict(RuntimeVersionMetadata.from_local_component("flwr-serverapp").as_metadata())
    body = PullAppMessagesRequest().SerializeToString()
    headers = versions if token is None else versions | {"flwr-task-token": token}
    assert (await at_superlink(running, operation, body, headers)).status_code == 401


async def test_what_is_no_frame_is_refused(running: Fleet) -> None:
    """Cut short, or no message of Flower: 400 at every door."""
    a = running.members["a"]
    whole = pack([pull(a).SerializeToString()], {})
    for body in (b"", whole[:-1], whole[:10], pack([b"\xff\xff"], {}), whole + pack([b"more"], {})):
        assert (await at_superlink(running, "pull", body, signed(a))).status_code == 400
    assert (await at_superlink(running, "no-such-thing", b"", signed(a))).status_code == 404
    for body in (b"", whole[:5], pack([b"\xff\xff"], {}), b"\x00\x00\x01" + bytes(5)):
        assert (await bulk_push(running, a, body)).status_code == 400
    for body in (b"", whole[:-1], pack([pull(a).SerializeToString()], {}), pack([b"\xff\xff", b"[]"], {})):
        assert (await post(running, "bulk-pull", body, signed(a))).status_code == 400


async def test_the_superlinks_line_has_the_id_of_the_nodes_request(running: Fleet) -> None:
    headers = signed(running.members["a"]) | {REQUEST_ID_HEADER: "from-the-node"}
    assert (await post(running, "get-run", b"\xff\xff", headers)).status_code == 400
    log = running.backend.run_folder(PROJECT, "r1").parents[1] / "superlink.log"
    assert re.search(r"ERROR flwr: .*/get-run.*\[request_id=from-the-node project=p1\]", log.read_text())


async def test_a_body_over_the_limit_is_refused_with_the_limit() -> None:
    app = BulkPaths(FastAPI(), body_limit=100)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://superlink") as client:
        answer = await client.post("/v1/bulk/push", content=b"x" * 101)
    assert answer.status_code == 413
    assert "100 bytes" in answer.json()["detail"]


async def test_a_node_speaks_in_its_own_name_only(running: Fleet) -> None:
    a, b = running.members["a"], running.members["b"]
    assert (await bulk_pull(running, b)).status_code == 200
    body = pack([pull(b).SerializeToString(), b"[]"], {})
    assert (await post(running, "bulk-pull", body, signed(a))).status_code == 409
    message = MessageProto()
    message.metadata.src_node_id = b.node_id
    request = PushMessagesRequest(node=Node(node_id=a.node_id), messages_list=[message])
    request.message_object_trees.add()
    answer = await bulk_push(running, a, pack([request.SerializeToString()], {}))
    assert answer.status_code == 400
    assert "in its own name" in answer.json()["detail"]
    body = pack([request.SerializeToString(), b""], {})
    assert (await at_superlink(running, "push", body, signed(a))).status_code == 400


# --- messages to a node


async def test_a_message_comes_with_its_run_and_model(waiting: Fleet) -> None:
    (member,) = waiting.members.values()
    got = await next_message(waiting, member)
    node, run_id = Node(node_id=member.node_id), got.proto.metadata.run_id
    stock = await post(waiting, "get-run", GetRunRequest(node=node, run_id=run_id), signed(member))
    assert run_of(stock.content) == got.run
    content = got.message().content
    assert content.array_records["arrays"]["weight"].numpy().tolist() == [[0.0] * 3] * 2
    assert content.config_records["config"]["server-round"] == 1


async def test_a_node_that_has_the_model_gets_the_rest_only(waiting: Fleet) -> None:
    """The model that was evaluated is the one that the next round trains from: it is sent once."""
    (member,) = waiting.members.values()
    train = await next_message(waiting, member)
    assert len(train.data) == 1
    again = await next_message(waiting, member, had=train.letter.blobs)
    assert (again.letter, again.data) == (train.letter, [])
    assert (await bulk_push(waiting, member, trained(member, train))).status_code == 200
    evaluate = await next_message(waiting, member, had=train.letter.blobs)
    assert evaluate.proto.metadata.message_type == "evaluate"
    assert evaluate.message().content.array_records["arrays"]["weight"].numpy().tolist() == [[1.0] * 3] * 2


async def test_a_message_is_handed_out_until_it_is_answered(waiting: Fleet) -> None:
    """A connection that is lost with the answer in it loses no message; an answer that is not whole is none."""
    (member,) = waiting.members.values()
    first, again = [await next_message(waiting, member) for _ in range(2)]
    assert first == again
    answer = trained(member, first)
    assert (await bulk_push(waiting, member, answer[:20])).status_code == 400
    assert (await bulk_push(waiting, member, refusal(member, first))).status_code == 200
    events = await waiting.end_of_run()
    (reply,) = [event for event in events if event.kind is EventKind.REPLY]
    assert reply.text == "no data today"
    assert events[-1].text == "no site could train: no data today"
    assert (await bulk_pull(waiting, member)).content == b""


async def test_a_message_that_ends_every_client_is_answered_for_it_at_last(waiting: Fleet) -> None:
    """Else the run would wait for ever for a site whose client comes back, and is ended again, each time."""
    (member,) = waiting.members.values()
    for _ in range(HANDED_AT_MOST):
        await next_message(waiting, member)
    assert (await bulk_pull(waiting, member)).content == b""
    assert (await waiting.end_of_run())[-1].kind is EventKind.FAILED


async def test_a_poll_that_was_given_up_loses_no_message(tmp_path_factory: pytest.TempPathFactory) -> None:
    async with fleet(tmp_path_factory.mktemp("given-up")) as it:
        member = it.admit("a")
        await it.register(member)
        poll = asyncio.create_task(bulk_pull(it, member, wait=20.0))
        async with asyncio.timeout(10):
            while ("a", False) not in it.seen:  # noqa: ASYNC110 - the poll has arrived
                await asyncio.sleep(0.01)
        await it.start_run(averaging_app(), [member], rounds=1)
        poll.cancel()
        assert (await next_message(it, member)).proto.metadata.message_type == "train"


async def test_a_withdrawn_grant_ends_a_poll_that_the_aggregator_holds(running: Fleet) -> None:
    late = running.admit("late")
    await running.register(late)
    poll = asyncio.create_task(bulk_pull(running, late, wait=40.0))
    async with asyncio.timeout(10):
        while ("late", False) not in running.seen:  # noqa: ASYNC110 - the poll has arrived
            await asyncio.sleep(0.01)
        del running.grants[late.public_key]
        assert (await poll).status_code == 401


async def test_a_stopped_run_has_no_message_to_hand_out_again(waiting: Fleet) -> None:
    (member,) = waiting.members.values()
    got = await next_message(waiting, member)
    endpoint = waiting.backend.endpoint(PROJECT)
    assert endpoint is not None
    await SuperLink(endpoint).stop_run(got.proto.metadata.run_id)
    answer = await bulk_pull(waiting, member)
    assert (answer.status_code, answer.content) == (200, b"")
    for body in (refusal(member, got), trained(member, got)):
        assert (await bulk_push(waiting, member, body)).status_code == 403


async def test_a_message_whose_model_is_gone_is_none(waiting: Fleet) -> None:
    """As where the ServerApp has just ended: the node waits on, and no file is sent in its place."""
    (member,) = waiting.members.values()
    got = await next_message(waiting, member)
    (name,) = got.letter.blobs
    (mail_of(waiting) / name).unlink()
    (mail_of(waiting) / name).symlink_to("/etc/passwd")
    answer = await bulk_pull(waiting, member)
    assert (answer.status_code, answer.content) == (200, b"")


# --- answers


async def test_an_answer_that_comes_twice_counts_once(waiting: Fleet) -> None:
    """A node that has lost the receipt sends it again."""
    (member,) = waiting.members.values()
    answer = trained(member, await next_message(waiting, member))
    assert [(await bulk_push(waiting, member, answer)).status_code for _ in range(3)] == [200] * 3
    evaluate = await next_message(waiting, member)
    assert [path.name for path in mail_of(waiting).iterdir()] == list(evaluate.letter.blobs)
    assert (await bulk_push(waiting, member, refusal(member, evaluate))).status_code == 200
    replies = [event for event in await waiting.end_of_run() if event.kind is EventKind.REPLY]
    assert [event.message_type for event in replies] == ["train", "evaluate"]


async def test_an_answer_may_take_longer_to_come_than_its_signature_counts(
    waiting: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large model over a thin line. The gateway looks at the signature's age when the headers come."""
    (member,) = waiting.members.values()
    answer = trained(member, await next_message(waiting, member))
    begun = datetime.now(UTC) - timedelta(seconds=400)
    with monkeypatch.context() as then:
        then.setattr(waiting.gateway, "_clock", lambda: begun)
        headers = signed(member, at=begun) | LETTERS
        assert (await post(waiting, "bulk-push", answer, headers)).status_code == 200
    assert (await next_message(waiting, member)).proto.metadata.message_type == "evaluate"


async def test_an_answer_that_comes_too_late_is_not_kept(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The app waits for a second; the round goes on without the site, and nothing of it is left lying about."""
    impatient = SERVER.replace('["num-server-rounds"])', '["num-server-rounds"]), timeout=1.0')
    async with fleet(tmp_path_factory.mktemp("late")) as it:
        app = averaging_app(server=impatient)
        slow, quick = it.admit("slow"), it.start_node("quick", 1.0, app)
        await it.register(slow)
        await bulk_pull(it, slow)
        await it.start_run(app, [quick, slow], rounds=3)
        got = await next_message(it, slow)
        await it.events(lambda event: event.kind is EventKind.REPLY and "no answer" in event.text)
        answer = await bulk_push(it, slow, trained(slow, got))
        assert (answer.status_code, answer.content) == (200, b"")
        assert len(list(mail_of(it).iterdir())) <= 2  # a model on its way out, and the quick one's answer
        assert (await it.end_of_run())[-1].kind is EventKind.FINISHED


async def test_an_answer_without_its_model_is_left_out_with_the_reason(waiting: Fleet) -> None:
    (member,) = waiting.members.values()
    answer = trained(member, await next_message(waiting, member))
    envelope, letter, _ = split(answer)
    assert (await bulk_push(waiting, member, pack([envelope, letter], {}))).status_code == 200
    assert "a record has 1 arrays, and its blob the data of 0" in (await waiting.end_of_run())[-1].text


async def test_an_answer_without_any_content_is_left_out_with_the_reason(waiting: Fleet) -> None:
    (member,) = waiting.members.values()
    envelope, *_ = split(trained(member, await next_message(waiting, member)))
    assert (await bulk_push(waiting, member, pack([envelope], {}))).status_code == 200
    assert "the site's answer cannot be read" in (await waiting.end_of_run())[-1].text


async def test_objects_that_are_not_the_messages_are_refused(waiting: Fleet) -> None:
    (member,) = waiting.members.values()
    answer = trained(member, await next_message(waiting, member))
    envelope, *rest = split(answer)
    request = PushMessagesRequest.FromString(envelope)
    request.message_object_trees[0].object_id = "0" * 64
    body = pack([request.SerializeToString(), *rest], {})
    assert (await bulk_push(waiting, member, body)).status_code == 400
    assert len(list(mail_of(waiting).iterdir())) == 1


async def test_an_upload_that_breaks_off_leaves_no_file(waiting: Fleet) -> None:
    (member,) = waiting.members.values()
    got = await next_message(waiting, member)
    answer = trained(member, got, size=3_000_000)
    _, writer = await asyncio.open_connection("127.0.0.1", waiting.port)
    headers = "".join(f"{name}: {value}\r\n" for name, value in signed(member).items())
    head = f"POST /v1/fleet/bulk-push HTTP/1.1\r\nHost: hub\r\nContent-Length: {len(answer)}\r\n{headers}\r\n"
    writer.write(head.encode() + answer[: len(answer) // 2])
    await writer.drain()
    async with asyncio.timeout(10):
        while len(list(mail_of(waiting).iterdir())) < 2:  # noqa: ASYNC110 - half of it has arrived
            await asyncio.sleep(0.01)
        writer.close()
        while len(list(mail_of(waiting).iterdir())) > 1:  # noqa: ASYNC110 - the gateway has noticed
            await asyncio.sleep(0.01)
    assert (await bulk_push(waiting, member, answer)).status_code == 200


@pytest.mark.parametrize("size", [6, 3_000_000])
async def test_a_full_disk_is_named(waiting: Fleet, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """The node hears it at the end of what it sends, whose rest goes nowhere, and no file is left."""
    (member,) = waiting.members.values()
    got = await next_message(waiting, member)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(upload, "create_mail", full)
    answer = await bulk_push(waiting, member, trained(member, got, size=size))
    assert answer.status_code == 507
    assert "disk is full" in answer.json()["detail"]
    assert int(answer.headers["Retry-After"]) > 0
    assert len(list(mail_of(waiting).iterdir())) == 1


async def test_a_system_that_refuses_now_is_asked_again(waiting: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the service has too many files open: no message and no answer is lost by it."""
    (member,) = waiting.members.values()

    def refuse(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as short:
        short.setattr(gateway, "open_mail", refuse)
        assert (await bulk_pull(waiting, member, wait=20.0)).status_code == 503
    got = await next_message(waiting, member)
    answer = trained(member, got, size=3_000_000)
    with monkeypatch.context() as short:
        short.setattr(upload, "create_mail", refuse)
        assert (await bulk_push(waiting, member, answer)).status_code == 503
    assert len(list(mail_of(waiting).iterdir())) == 1
    assert (await bulk_push(waiting, member, answer)).status_code == 200


async def test_a_node_of_which_an_aggregator_hears_first_at_work_is_sent_letters(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """As one that trains while its aggregator is begun anew: its heartbeat comes before it asks for a message."""
    async with fleet(tmp_path_factory.mktemp("working")) as it:
        member = it.admit("a")
        await it.register(member)
        heartbeat = SendNodeHeartbeatRequest(node=Node(node_id=member.node_id), heartbeat_interval=60)
        answer = await post(it, "send-node-heartbeat", heartbeat.SerializeToString(), signed(member) | LETTERS)
        assert answer.status_code == 200
        await it.start_run(averaging_app(), [member], rounds=1)
        await it.events(lambda event: event.kind is EventKind.SENT)
        assert (await next_message(it, member)).letter.blobs


# --- an answer, and the next message behind its receipt


def asking(member: Member, wait: float, had: tuple[str, ...] = ()) -> dict[str, str]:
    return signed(member) | LETTERS | {FLEET_BLOBS_HEADER: json.dumps(had), "prefer": f"wait={wait}"}


@asynccontextmanager
async def pushed(it: Fleet, body: bytes, headers: Mapping[str, str]) -> AsyncIterator[httpx.Response]:
    """The answer's own answer, as it comes in."""
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        url = f"http://{it.address}/v1/fleet/bulk-push"
        async with client.stream("POST", url, content=body, headers=dict(headers)) as response:
            yield response


@pytest.mark.parametrize("has_the_model", [True, False])
async def test_the_next_message_comes_behind_the_receipt(
    tmp_path_factory: pytest.TempPathFactory, has_the_model: bool
) -> None:
    """With its model where the node lacks that: what was evaluated is what the next round trains from."""
    async with fleet(tmp_path_factory.mktemp("behind")) as it:
        member = it.admit("a")
        await it.register(member)
        await bulk_pull(it, member)
        await it.start_run(averaging_app(), [member], rounds=2)
        assert (await bulk_push(it, member, trained(member, await next_message(it, member)))).status_code == 200
        evaluate = await next_message(it, member)
        metrics = MetricRecord({"distance": 0.5, "num-examples": 10})
        answer = packed_answer(member, Message(RecordDict({"metrics": metrics}), reply_to=evaluate.message()))
        had = evaluate.letter.blobs if has_the_model else ()
        async with pushed(it, answer, asking(member, 20.0, had)) as response:
            assert int(response.headers[FLEET_BODY_LIMIT_HEADER]) == it.gateway.body_limit
            receipt, envelope, run, letter, *data = split(await response.aread())
        assert receipt == b""
        got = Got(PullMessagesResponse.FromString(envelope), run_of(run), Letter.unpacked(letter), data)
        assert got.proto.metadata.message_type == "train"
        assert got.letter.blobs == evaluate.letter.blobs
        assert got.data == ([] if has_the_model else evaluate.data)
        assert [stage for _, stage in it.moved][-3:] == [Stage.ANSWERED, Stage.RECEIVING, Stage.COMPUTING]
        assert got == await next_message(it, member, had)


async def test_the_receipt_comes_before_there_is_a_message(waiting: Fleet) -> None:
    """And is all that comes, where the poll ends without one."""
    (member,) = waiting.members.values()
    answer = refusal(member, await next_message(waiting, member))
    async with pushed(waiting, answer, asking(member, 30.0)) as response:
        pieces = response.aiter_raw()
        assert await anext(pieces) == pack([b""], {})
        assert "bulk-push" not in [operation for operation, _ in waiting.requests], "the poll goes on"
        assert (await waiting.end_of_run())[-1].text == "no site could train: no data today"
        del waiting.grants[member.public_key]
        assert [piece async for piece in pieces] == []
    assert (await bulk_pull(waiting, member)).status_code == 401


async def test_a_poll_behind_a_receipt_that_is_given_up_loses_no_message(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """The quick site has gone when the slow one's answer ends the phase."""
    async with fleet(tmp_path_factory.mktemp("receipt")) as it:
        quick, slow = it.admit("quick"), it.admit("slow")
        await it.register(quick, slow)
        for member in (quick, slow):
            await bulk_pull(it, member)
        await it.start_run(averaging_app(), [quick, slow], rounds=1)
        got, theirs = await next_message(it, quick), await next_message(it, slow)
        async with pushed(it, trained(quick, got), asking(quick, 30.0)) as response:
            assert await anext(response.aiter_raw()) == pack([b""], {})
        async with asyncio.timeout(10):
            while it.cut_off != ["quick"]:  # noqa: ASYNC110 - the gateway has noticed
                await asyncio.sleep(0.01)
        assert (await bulk_push(it, slow, trained(slow, theirs))).status_code == 200
        assert (await next_message(it, quick)).proto.metadata.message_type == "evaluate"


@pytest.mark.parametrize("names", ["", "{", "7", "[[]]"])
async def test_names_of_blobs_that_are_none_are_refused(running: Fleet, names: str) -> None:
    headers = signed(running.members["a"]) | LETTERS | {FLEET_BLOBS_HEADER: names}
    answer = await post(running, "bulk-push", b"", headers)
    assert (answer.status_code, answer.json()["detail"][:23]) == (400, "The names of blobs are ")


async def test_a_node_asks_for_a_message_once(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All others come with the receipts."""
    monkeypatch.setattr("federator.node._FOLLOWING_S", 30.0)
    async with fleet(tmp_path_factory.mktemp("once")) as it:
        app = averaging_app()
        member = it.start_node("a", 1.0, app)
        await member.reaches(ClientState.READY)
        await it.start_run(app, [member], rounds=3)
        assert (await it.end_of_run())[-1].kind is EventKind.FINISHED
        operations = [operation for operation, _ in it.requests]
        assert operations.count("bulk-pull") == 1
        assert operations.count("bulk-push") == 5  # the sixth waits for another message
        assert set(operations) == {"activate-node", "bulk-pull", "get-fab", "bulk-push"}


async def test_a_node_asks_where_a_connection_is_lost_behind_a_receipt(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each answer counts once, and its person reads of no trouble."""

    deliver = FleetHandler._deliver

    async def hang_up_after_a_receipt(handler: FleetHandler, caller: Caller, pull: Any) -> None:
        if handler._headers_written:
            pull.close()
            handler._http1().stream.close()
        else:
            await deliver(handler, caller, pull)

    async with fleet(tmp_path_factory.mktemp("lost")) as it:
        app = averaging_app()
        member = it.start_node("a", 1.0, app)
        await member.reaches(ClientState.READY)
        monkeypatch.setattr(FleetHandler, "_deliver", hang_up_after_a_receipt)
        await it.start_run(app, [member], rounds=2)
        events = await it.end_of_run()
        assert events[-1].kind is EventKind.FINISHED
        assert [event.message_type for event in events if event.kind is EventKind.REPLY] == ["train", "evaluate"] * 2
        operations = [operation for operation, _ in it.requests]
        assert operations.count("bulk-pull") == 4
        assert not any("does not answer" in text for _, text in member.states)


# --- through a whole node


async def test_an_answer_over_the_limit_is_an_error_with_both_sizes(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The round goes on without that site, and says why."""
    app = averaging_app("weight = np.zeros((200, 100), dtype=np.float32)")
    async with fleet(tmp_path_factory.mktemp("limit"), body_limit=50_000) as it:
        member = it.start_node("a", 0.0, app)
        await it.start_run(app, [member], rounds=1)
        text = (await it.end_of_run())[-1].text
    assert "no site could train: The site's answer has 80," in text
    assert text.endswith("bytes; the service takes 50,000 at most.")


async def test_what_the_gateway_refuses_is_told_to_the_run(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise Refusal(400, "This answer is none.")

    monkeypatch.setattr(upload, "create_mail", refuse)
    app = averaging_app()
    async with fleet(tmp_path_factory.mktemp("refused")) as it:
        member = it.start_node("a", 0.0, app)
        await it.start_run(app, [member], rounds=1)
        text = (await it.end_of_run())[-1].text
    assert text == "no site could train: This answer is none."
