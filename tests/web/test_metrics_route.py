"""Who may read the metrics: a program with the Hub's scope for it, and nobody else."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from hub_service.rate_limits import Counted
from hub_service.web.metrics import CONTENT_TYPE
from hub_service.web.routes import API_ROUTES, PAGE_ROUTES, route_names
from tests.fakes.hub import FakeHub
from tests.fakes.web_world import UNLIMITED, World, served_world


async def test_prometheus_reads_them_with_its_token(world: World) -> None:
    project_id, _ = await world.shared_project()
    world.start_run(project_id)
    async with world.api("prometheus") as api:
        answer = await api.get("metrics")
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, CONTENT_TYPE)
    families = {one.name: one for one in text_string_to_metric_families(answer.text)}
    runs = {one.labels["status"]: one.value for one in families["federation_runs"].samples}
    assert runs == {"starting": 0, "waiting": 0, "running": 1}
    clients = {(one.labels["site"], one.labels["state"]): one.value for one in families["federation_clients"].samples}
    assert (clients["north", "ready"], clients["south", "ready"], clients["harbour", "ready"]) == (1, 1, 0)


@pytest.mark.parametrize(
    ("name", "status"), [(None, 401), ("ada", 403), ("robin", 403), ("robot", 403), ("outsider", 403)]
)
async def test_nobody_else_does(world: World, name: str | None, status: int) -> None:
    async with world.api(name) as api:
        answer = await api.get("metrics")
    assert answer.status_code == status
    assert "federation_" not in answer.text


async def test_strangers_are_counted_here_too(tmp_path: Path) -> None:
    limits = {**UNLIMITED, Counted.STRANGER: "2 per 1 minute"}
    async with served_world(tmp_path, FakeHub(), limits) as world, world.api(None) as api:
        assert [(await api.get("metrics")).status_code for _ in range(3)] == [401, 401, 429]


async def test_it_is_nobody_anywhere_else(world: World) -> None:
    async with world.api("prometheus") as api:
        assert (await api.get("api/home")).status_code == 403
        assert (await api.get("administration")).status_code == 403


async def test_no_project_and_no_person_is_named(world: World) -> None:
    project_id, _ = await world.shared_project()
    async with world.api("prometheus") as api:
        text = (await api.get("metrics")).text
    assert not any(word in text for word in (project_id, "Lungs", "ada", "ben"))


def test_every_route_has_a_name_of_its_own() -> None:
    names = route_names()
    assert set(names) == {handler for _, handler in (*API_ROUTES, *PAGE_ROUTES)}
    assert not any(sign in name for name in names.values() for sign in "()?+[]")
