"""A steward's conditions where they count: in the site's node, and in the gateway should the node not know of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import httpx
from federator.contract import Conditions
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.node_pb2 import Node

from hub_service.domain.runs import EventKind
from tests.fakes.fleet import Fleet, Member, fleet
from tests.fakes.flower_apps import averaging_app
from tests.singleuser.test_gateway import signed

LARGE = averaging_app("weight = np.zeros((200, 100), dtype=np.float32)")  # 80,000 bytes


def start(it: Fleet, name: str, app: bytes, conditions: Conditions) -> Member:
    """A node whose steward has approved the app with these conditions."""
    member = it.admit(name)
    member.conditions = conditions
    member.approve(app)
    member.start(it.address, it.folder)
    return member


def limit(it: Fleet, member: Member, largest_message: int) -> None:
    """At the gateway."""
    it.grants[member.public_key] = replace(it.grants[member.public_key], largest_message=largest_message)


async def test_a_node_sends_no_more_than_its_steward_lets_out(tmp_path: Path) -> None:
    async with fleet(tmp_path) as it:
        member = start(it, "a", LARGE, Conditions(largest_message=70_000))
        await it.start_run(LARGE, [member], rounds=1)
        text = (await it.end_of_run())[-1].text
    assert "no site could train: The site's answer has 80," in text
    assert text.endswith("bytes; its data steward lets out 70,000 at most.")
    assert it.gateway.traffic["a"].from_node < 70_000


async def test_what_is_within_the_limits_is_sent(tmp_path: Path) -> None:
    """Twice as many messages as rounds: the site trains alone, too."""
    app = averaging_app()
    async with fleet(tmp_path) as it:
        member = start(it, "a", app, Conditions(largest_message=70_000, most_rounds=2))
        limit(it, member, 70_000)
        await it.start_run(app, [member], rounds=2, compare=True)
        events = await it.end_of_run()
    assert events[-1].kind is EventKind.FINISHED
    assert not any("at most" in one.text for one in events)


async def test_the_gateway_tells_the_node_its_limit(tmp_path: Path) -> None:
    """As where the service knows a limit that the node has not heard of yet."""
    async with fleet(tmp_path) as it:
        member = it.start_node("a", 0.0, LARGE)
        limit(it, member, 70_000)
        await it.start_run(LARGE, [member], rounds=1)
        text = (await it.end_of_run())[-1].text
    assert "the service takes 70,000 at most" in text


async def test_the_gateway_takes_no_more_from_a_node_that_does_not_listen(tmp_path: Path) -> None:
    async with fleet(tmp_path) as it:
        member = it.admit("a")
        limit(it, member, 70_000)
        async with httpx.AsyncClient(base_url=f"http://{it.address}/v1/fleet/", trust_env=False) as client:
            for operation in ("bulk-push", "push-object"):
                answer = await client.post(operation, content=b"x" * 70_001, headers=signed(member))
                assert answer.status_code == 413
                assert answer.json()["detail"] == (
                    "This site's data steward lets 70,000 bytes leave in one message; this one has more."
                )
            begun = await client.post("push-object", content=b"x" * 1000, headers=signed(member))
            assert begun.status_code != 413


async def test_the_pieces_of_a_stock_nodes_answer_count_together(tmp_path: Path) -> None:
    async with fleet(tmp_path) as it:
        member = it.admit("a")
        limit(it, member, 70_000)
        envelope = PushMessagesRequest(node=Node(node_id=1)).SerializeToString()
        async with httpx.AsyncClient(base_url=f"http://{it.address}/v1/fleet/", trust_env=False) as client:

            async def send(operation: str, content: bytes) -> int:
                return (await client.post(operation, content=content, headers=signed(member))).status_code

            for _ in range(2):  # an answer, and the next
                await send("push-messages", envelope)
                assert await send("push-object", b"x" * 40_000) != 413
                assert await send("push-object", b"x" * 20_000) != 413
                assert await send("push-object", b"x" * 20_000) == 413


async def test_a_site_trains_in_no_more_rounds_than_its_steward_allows(tmp_path: Path) -> None:
    """This app does not name its rounds: each may be the federation's or the site's own, until there are too many."""
    app = averaging_app()
    async with fleet(tmp_path) as it:
        strict, free = start(it, "a", app, Conditions(most_rounds=1)), start(it, "b", app, Conditions())
        await it.start_run(app, [strict, free], rounds=3)
        events = await it.end_of_run()
    assert events[-1].kind is EventKind.FINISHED
    refused = [one for one in events if "1 round at most" in one.text]
    assert {(one.node_id, one.round) for one in refused} == {(strict.node_id, 3)}
