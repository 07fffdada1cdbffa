"""Messages that travel whole: from a node through the gateway, and at the SuperLink's own bulk paths."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

import httpx
import pytest
from fastapi import FastAPI
from federator.framing import pack, unpack
from federator.node import _error_reply, _packed
from flwr.common.constant import ErrorCode
from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse, PushMessagesRequest
from flwr.proto.message_pb2 import Message, PullObjectRequest, PullObjectResponse
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest, GetRunResponse
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.runtime_version_compatibility import RuntimeVersionMetadata

from hub_service.aggregators.superlink import SuperLink
from hub_service.aggregators.superlink_process import BulkPaths
from hub_service.domain.runs import EventKind
from tests.fakes.fleet import PROJECT, Fleet, Member, fleet
from tests.fakes.flower_apps import averaging_app
from tests.singleuser.test_gateway import post, pull, signed


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
        await post(it, "bulk-pull", pull(member), signed(member))
        await it.start_run(averaging_app(), [member], rounds=1)
        yield it


async def at_superlink(it: Fleet, operation: str, body: bytes, headers: Mapping[str, str]) -> httpx.Response:
    endpoint = it.backend.endpoint(PROJECT)
    assert endpoint is not None
    async with httpx.AsyncClient(trust_env=False) as client:
        return await client.post(f"http://{endpoint.address}/v1/bulk/{operation}", content=body, headers=dict(headers))


async def next_message(it: Fleet, member: Member) -> tuple[PullMessagesResponse, GetRunResponse, dict[str, bytes]]:
    answer = await post(it, "bulk-pull", pull(member), signed(member), wait=20.0)
    assert answer.status_code == 200, answer.text
    (envelope, run), objects = unpack(answer.content, messages=2)
    return PullMessagesResponse.FromString(envelope), run_of(run), objects


def run_of(body: bytes) -> GetRunResponse:
    """The run without what goes up with each message."""
    answer = GetRunResponse.FromString(body)
    answer.run.ClearField("bytes_sent")
    answer.run.ClearField("bytes_recv")
    return answer


def refusal(member: Member, message: Message) -> tuple[PushMessagesRequest, dict[str, bytes]]:
    """An answer that says that the member cannot."""
    packed = _packed(_error_reply(message, ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "no data today"), 0.0)
    request = PushMessagesRequest(
        node=Node(node_id=member.node_id), messages_list=[packed.proto], message_object_trees=[packed.tree]
    )
    return request, dict(packed.objects)


@pytest.mark.parametrize("operation", ["pull", "push"])
async def test_a_node_proves_who_it_is_at_the_superlink_too(running: Fleet, operation: str) -> None:
    a, b = running.members["a"], running.members["b"]
    request = {
        "pull": lambda node_id: pack([PullMessagesRequest(node=Node(node_id=node_id)).SerializeToString(), b""], {}),
        "push": lambda node_id: pack([PushMessagesRequest(node=Node(node_id=node_id)).SerializeToString()], {}),
    }[operation]
    unsigned = {"flwr-public-key": signed(a)["flwr-public-key"]}
    assert (await at_superlink(running, operation, request(a.node_id), {})).status_code == 401
    assert (await at_superlink(running, operation, request(a.node_id), unsigned)).status_code == 401
    assert (await at_superlink(running, operation, request(b.node_id), signed(a))).status_code == 401


@pytest.mark.parametrize("operation", ["grid-push", "grid-pull"])
@pytest.mark.parametrize("token", [None, "", "of another task"])
async def test_the_serverapp_proves_which_task_it_has(running: Fleet, operation: str, token: str | None) -> None:
    versions = dict(RuntimeVersionMetadata.from_local_component("flwr-serverapp").as_metadata())
    body = pack([PullAppMessagesRequest().SerializeToString()], {})
    headers = versions if token is None else versions | {"flwr-task-token": token}
    assert (await at_superlink(running, operation, body, headers)).status_code == 401


async def test_what_is_no_frame_is_refused(running: Fleet) -> None:
    """Cut short, no message of Flower, or with a message for another node: 400 at every door."""
    a, b = running.members["a"], running.members["b"]
    whole = pack([pull(a).SerializeToString(), b""], {})
    for body in (b"", whole[:-1], whole[:20], pack([b"\xff\xff", b""], {})):
        assert (await at_superlink(running, "pull", body, signed(a))).status_code == 400
    for_another = PullMessagesResponse(messages_list=[Message()])
    for_another.messages_list[0].metadata.dst_node_id = b.node_id
    body = pack([pull(a).SerializeToString(), for_another.SerializeToString()], {})
    assert (await at_superlink(running, "pull", body, signed(a))).status_code == 400
    assert (await post(running, "bulk-push", whole[:-1], signed(a))).status_code == 400
    assert (await at_superlink(running, "no-such-thing", b"", signed(a))).status_code == 404


async def test_a_body_over_the_limit_is_refused_with_the_limit() -> None:
    app = BulkPaths(FastAPI(), body_limit=100)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://superlink") as client:
        answer = await client.post("/v1/bulk/push", content=b"x" * 101)
    assert answer.status_code == 413
    assert "100 bytes" in answer.json()["detail"]


async def test_a_node_speaks_in_its_own_name_only(running: Fleet) -> None:
    a, b = running.members["a"], running.members["b"]
    assert (await post(running, "bulk-pull", pull(b), signed(a))).status_code == 409
    message = Message()
    message.metadata.src_node_id = b.node_id
    request = PushMessagesRequest(node=Node(node_id=a.node_id), messages_list=[message])
    request.message_object_trees.add()
    answer = await post(running, "bulk-push", pack([request.SerializeToString()], {}), signed(a))
    assert answer.status_code == 400
    assert "in its own name" in answer.json()["detail"]


async def test_a_whole_message_is_what_flowers_own_paths_give(waiting: Fleet) -> None:
    (member,) = waiting.members.values()
    envelope, run, objects = await next_message(waiting, member)
    stock = await post(waiting, "pull-messages", pull(member), signed(member))
    assert PullMessagesResponse.FromString(stock.content) == envelope
    node, run_id = Node(node_id=member.node_id), envelope.messages_list[0].metadata.run_id
    stock = await post(waiting, "get-run", GetRunRequest(node=node, run_id=run_id), signed(member))
    assert run_of(stock.content) == run
    object_ids = {item.object_id for item in iterate_object_tree(envelope.message_object_trees[0])}
    assert objects.keys() == object_ids
    for object_id in object_ids:
        request = PullObjectRequest(node=node, run_id=run_id, object_id=object_id)
        stock = await post(waiting, "pull-object", request, signed(member))
        assert PullObjectResponse.FromString(stock.content).object_content == objects[object_id]


async def test_a_message_is_handed_out_whole_until_it_is_answered(waiting: Fleet) -> None:
    """A connection that is lost with the answer in it loses no message; an answer that is not whole is none."""
    (member,) = waiting.members.values()
    first, again = [await next_message(waiting, member) for _ in range(2)]
    assert first == again
    request, objects = refusal(member, first[0].messages_list[0])
    without_objects = pack([request.SerializeToString()], {})
    assert (await post(waiting, "bulk-push", without_objects, signed(member))).status_code == 400
    whole = pack([request.SerializeToString()], objects)
    assert (await post(waiting, "bulk-push", whole, signed(member))).status_code == 200
    events = await waiting.end_of_run()
    (reply,) = [event for event in events if event.kind is EventKind.REPLY]
    assert reply.text == "no data today"
    assert events[-1].text == "no site could train: no data today"
    assert (await post(waiting, "bulk-pull", pull(member), signed(member))).content == b""


async def test_a_poll_that_was_given_up_loses_no_message(tmp_path_factory: pytest.TempPathFactory) -> None:
    async with fleet(tmp_path_factory.mktemp("given-up")) as it:
        member = it.admit("a")
        await it.register(member)
        poll = asyncio.create_task(post(it, "bulk-pull", pull(member), signed(member), wait=20.0))
        async with asyncio.timeout(10):
            while ("a", False) not in it.seen:  # noqa: ASYNC110 - the poll has arrived
                await asyncio.sleep(0.01)
        await it.start_run(averaging_app(), [member], rounds=1)
        poll.cancel()
        envelope, _, _ = await next_message(it, member)
        assert envelope.messages_list[0].metadata.message_type == "train"


async def test_a_stopped_run_has_no_message_to_hand_out_again(waiting: Fleet) -> None:
    (member,) = waiting.members.values()
    envelope, _, _ = await next_message(waiting, member)
    endpoint = waiting.backend.endpoint(PROJECT)
    assert endpoint is not None
    await SuperLink(endpoint).stop_run(envelope.messages_list[0].metadata.run_id)
    answer = await post(waiting, "bulk-pull", pull(member), signed(member))
    assert (answer.status_code, answer.content) == (200, b"")
    request, objects = refusal(member, envelope.messages_list[0])
    body = pack([request.SerializeToString()], objects)
    assert (await post(waiting, "bulk-push", body, signed(member))).status_code == 403
