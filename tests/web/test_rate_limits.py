"""Who asks too often is told when to come again, and nobody else notices."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from federator import service_client
from federator.contract import ApprovalState, Route
from federator.service_client import Access, AsyncServiceClient, Refused, ServiceClient, Unreachable

from hub_service.gateway.gateway import Gateway, TooOften
from hub_service.rate_limits import LIMITS, Counted, RateLimits
from tests.fakes.aggregators import FakeAggregators
from tests.fakes.fleet import Member
from tests.fakes.hub import FakeHub
from tests.fakes.signing import signed
from tests.fakes.web_world import World, notebook, path, plain, served_world

FEW = {
    **LIMITS,
    Counted.WRITE: "3 per 1 minute",
    Counted.SITE_WRITE: "5 per 1 minute",
    Counted.UPLOAD: "2 per 1 minute",
    Counted.STRANGER: "4 per 1 minute",
}
NEW = {"json": {"name": "Lungs"}}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with served_world(tmp_path, FakeHub(), FEW) as world:
        yield world


async def test_a_person_who_writes_too_often_waits_and_still_reads(world: World) -> None:
    async with world.api("ada") as api:
        assert [(await api.post(Route.PROJECTS, **NEW)).status_code for _ in range(4)] == [201, 201, 201, 429]
        refused = await api.post(Route.PROJECTS, **NEW)
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert plain(refused)["code"] == "too-many"
        assert refused.headers["retry-after"] in plain(refused)["next_step"]
        assert (await api.get(Route.HOME)).status_code == 200
    async with world.browser("ada") as browser:
        await browser.get("")
        form = {"name": "x", "_xsrf": browser.cookies["_xsrf"]}
        page = await browser.post("projects/new", data=form, files={"app": ("a.ipynb", notebook())})
        assert page.status_code == 303 or "created" in page.text  # an upload is counted apart
    async with world.api("cleo") as api:
        assert (await api.post(Route.PROJECTS, **NEW)).status_code == 201


async def test_a_site_whose_people_write_too_often_waits(world: World) -> None:
    for name in ("ben", "cleo"):  # both of south
        async with world.api(name) as api:
            answers = [(await api.post(Route.PROJECTS, **NEW)).status_code for _ in range(3)]
    assert answers == [201, 201, 429]
    async with world.api("ada") as api:
        assert (await api.post(Route.PROJECTS, **NEW)).status_code == 201


async def test_uploads_are_few(world: World) -> None:
    project_id = world.project()
    async with world.api("ada") as api:
        upload = {"params": {"filename": "a.ipynb"}, "content": notebook()}
        address = path(Route.APPS, project_id=project_id)
        statuses = [(await api.post(address, **upload)).status_code for _ in range(3)]
    assert statuses[2] == 429
    assert 429 not in statuses[:2]


async def test_a_stranger_is_counted_by_the_address_that_no_header_of_theirs_changes(world: World) -> None:
    async with world.api(None) as api:
        for number in range(5):
            sent = {"X-Forwarded-For": f"10.0.0.{number}, 192.0.2.1, 127.0.0.1", "X-Real-Ip": f"10.1.1.{number}"}
            answer = await api.get(Route.HOME, headers=sent)
        assert answer.status_code == 429
        page = await api.get("static/page.js", headers=sent)
        assert page.status_code == 429
        assert int(page.headers["retry-after"]) >= 1
        assert (await api.get("oauth_callback?code=x&state=y", headers=sent)).status_code == 429
        other = await api.get(Route.HOME, headers={"X-Forwarded-For": "192.0.2.2"})
        assert other.status_code == 401


async def test_clients_come_back_when_they_are_told_to(world: World) -> None:
    answers = iter([httpx.Response(429, headers={"Retry-After": "0"}), httpx.Response(503)])
    async with AsyncServiceClient(Access(world.url, "token")) as client:
        transport = httpx.MockTransport(lambda _: next(answers))
        client._http = httpx.AsyncClient(base_url=world.url, transport=transport)
        with pytest.raises(Unreachable):  # the second answer
            await client.call(service_client.get_home())


def test_a_client_waits_no_longer_than_it_has_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(service_client.time, "sleep", waited.append)
    busy = httpx.Response(
        429, headers={"Retry-After": "25"}, json={"code": "too-many", "message": "m", "next_step": "n"}
    )
    client = ServiceClient(Access("http://service/", "token"))
    client._http = httpx.Client(base_url="http://service/", transport=httpx.MockTransport(lambda _: busy))
    with client, pytest.raises(Refused) as refused:
        client.call(service_client.get_home())
    assert (waited, refused.value.code) == ([25, 25], "too-many")


async def test_a_site_whose_nodes_ask_too_often_waits(world: World, tmp_path: Path) -> None:
    """Each of them less often than one node may. The nodes of other sites go on."""
    project_id, fab_hash = await world.shared_project()
    await world.coordinator.invite(world.principal("ada"), project_id, "cleo")
    world.coordinator.join(world.principal("cleo"), project_id, "scans")
    world.coordinator.decide(world.principal("sue"), project_id, fab_hash, "scans", "south", ApprovalState.APPROVED)
    nodes = {name: Member(name, 0.0) for name in ("ada", "ben", "cleo")}
    for name, node in nodes.items():
        participation_id = world.participation(project_id, name)
        world.coordinator.register_node(world.principal(name), participation_id, node.public_key)
    gateway = Gateway(
        grants=world.coordinator.node_grant,
        backend=FakeAggregators(tmp_path),
        seen=world.coordinator.node_seen,
        cut_off=world.coordinator.node_cut_off,
        clock=lambda: datetime.now(UTC),
        rate_limits=RateLimits({**LIMITS, Counted.NODE: "4 per 1 minute", Counted.SITE_NODES: "5 per 1 minute"}),
    )
    for name in ("ben", "ben", "ben", "cleo", "cleo"):
        gateway.admit(signed(nodes[name]), "192.0.2.1")
    for name in ("ben", "cleo"):  # both of south
        with pytest.raises(TooOften) as refused:
            gateway.admit(signed(nodes[name]), "192.0.2.1")
        assert 1 <= int(refused.value.headers["Retry-After"]) <= 60
    gateway.admit(signed(nodes["ada"]), "192.0.2.1")
    await gateway.close()


def test_what_is_counted_is_forgotten_in_time() -> None:
    limits = RateLimits({**LIMITS, Counted.NODE: "2 per 1 second"})
    assert [limits.wait_s(Counted.NODE, "a") for _ in range(2)] == [0, 0]
    assert limits.waiting_s(Counted.NODE, "a") >= 1
    assert limits.wait_s(Counted.NODE, "a") >= 1
    assert limits.wait_s(Counted.NODE, "b") == 0
