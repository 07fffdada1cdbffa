"""BUILD and SITE_PACKAGES: what an app would become, and which site lacks what, before anybody waits."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import threading
from typing import Any

import pytest
from federator.contract import ApprovalState, Route

from hub_service.domain.errors import Conflict
from tests.fakes.notebooks import code, mean_notebook, notebook
from tests.fakes.web_world import BUILDER, CELL, World, path
from tests.web.test_page_forms import token

NEEDS = f'DEPENDENCIES = ["lifelines>=0.27"]\nimport lifelines\n{CELL}'
EVERYTHING = {"flwr": "1.41.0", "lifelines": "0.30.0"}


async def build(world: World, content: bytes, name: str = "ada", **query: str) -> Any:
    async with world.api(name) as api:
        return await api.post(path(Route.BUILD), params={"filename": "mean.ipynb", **query}, content=content)


async def report(world: World, name: str, distributions: dict[str, str]) -> int:
    body = {"distributions": distributions, "modules": sorted(distributions)}
    async with world.api(name) as api:
        return (await api.put(path(Route.SITE_PACKAGES), json=body)).status_code


async def shared(world: World) -> tuple[str, str]:
    """A project of ada's (north) and ben's (south) whose app needs lifelines; all is approved."""
    project_id, _ = await world.shared_project()
    fab_hash = world.add_app(project_id, source=NEEDS)
    for steward, site in (("norma", "north"), ("sue", "south")):
        world.coordinator.decide(world.principal(steward), project_id, fab_hash, "slides", site, ApprovalState.APPROVED)
    return project_id, fab_hash


def details(world: World, project_id: str) -> dict[str, str]:
    detail = world.coordinator.project(world.principal("ada"), project_id)
    return {one.user: one.detail for one in detail.participants}


async def test_a_build_stores_nothing_and_gives_all(world: World) -> None:
    content = notebook(code("secret = 1"), code(CELL, "federated"))
    answer = (await build(world, content)).json()
    assert hashlib.sha256(base64.b64decode(answer["fab"])).hexdigest() == answer["fab_hash"]
    assert [cell["number"] for cell in answer["cells"]] == [2]
    assert answer["private_cells"] == [1]
    assert answer["config"]["num-server-rounds"] == 10
    assert answer["dependencies"] == ["flwr<2,>=1.41"]
    assert answer["packages"] == [{"site": "north", "site_title": "North Hospital", "known": False, "lacking": []}], (
        "nothing is known of a site that has not reported"
    )
    async with world.api("ada") as api:
        assert (await api.get(path(Route.PROJECTS))).json() == []
    project_id = world.project()
    version = world.add_file(project_id, "mean.ipynb", content)
    assert version.fab_hash == answer["fab_hash"], "a project's build is the same"


async def test_a_build_that_takes_long_holds_up_nobody(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The builder goes on only once somebody else was answered."""
    started, answered = threading.Event(), threading.Event()
    build_at_once = BUILDER.build

    def build_late(*arguments: Any) -> Any:
        started.set()
        assert answered.wait(10), "others had to wait for the build"
        return build_at_once(*arguments)

    monkeypatch.setattr(BUILDER, "build", build_late)
    uploads = {
        path(Route.BUILD): 200,
        path(Route.APPS, project_id=world.project()): 201,
        "projects/new": 200,
        f"projects/{world.project()}/apps": 200,
    }
    async with world.api("ada") as api, world.browser("ada") as ada:
        await ada.get("")
        for address, status in uploads.items():
            started.clear()
            answered.clear()
            name, content = {"filename": "mean.ipynb"}, mean_notebook()
            sending = (
                api.post(address, params=name, content=content)
                if address.startswith("api")
                else ada.post(address, data=token(ada) | {"name": "Lungs"}, files={"app": ("mean.ipynb", content)})
            )
            async with asyncio.TaskGroup() as group:
                upload = group.create_task(sending)
                assert await asyncio.to_thread(started.wait, 10)
                assert (await api.get(path(Route.PROJECTS))).status_code == 200
                answered.set()
            assert (await upload).status_code == status, address


async def test_a_build_needs_a_name_and_ones_own_project(world: World) -> None:
    project_id = world.project()
    async with world.api("ada") as api:
        assert (await api.post(path(Route.BUILD), content=mean_notebook())).status_code == 400
    assert (await build(world, mean_notebook(), "cleo", project=project_id)).status_code == 404
    assert (await build(world, b"nothing")).status_code == 400


async def test_what_sites_lack_is_told_with_the_build(world: World) -> None:
    project_id, _ = await shared(world)
    assert await report(world, "ada", EVERYTHING) == 204
    assert await report(world, "ben", {"flwr": "1.41.0"}) == 204
    content = notebook(code(NEEDS, "federated"))
    own = (await build(world, content)).json()["packages"]
    both = (await build(world, content, project=project_id)).json()["packages"]
    assert [(one["site"], one["known"], one["lacking"]) for one in own] == [("north", True, [])]
    assert [(one["site"], one["lacking"]) for one in both] == [("north", []), ("south", ["lifelines>=0.27"])]


async def test_a_site_that_lacks_something_is_in_no_run(world: World) -> None:
    project_id, _ = await shared(world)
    await report(world, "ada", EVERYTHING)
    await report(world, "ben", {"flwr": "1.41.0"})
    world.make_ready(project_id)
    assert details(world, project_id)["ben"].startswith("South Clinic's image has no lifelines>=0.27: no run includes")
    assert "lifelines" not in details(world, project_id)["ada"]
    run = world.coordinator.start_run(world.principal("ada"), project_id, 1, compare=False)
    assert list(world._run(run.id).sites.values()) == ["north"]


async def test_a_run_that_no_site_can_work_on_is_refused_with_the_reason(world: World) -> None:
    project_id, _ = await shared(world)
    for name in ("ada", "ben"):
        await report(world, name, {"flwr": "1.41.0"})
    world.make_ready(project_id)
    with pytest.raises(Conflict) as refused:
        world.coordinator.start_run(world.principal("ada"), project_id, 1, compare=False)
    assert "North Hospital's image has no lifelines>=0.27" in refused.value.next_step
    await report(world, "ben", EVERYTHING)
    assert world.coordinator.start_run(world.principal("ada"), project_id, 1, compare=False).number == 1


async def test_who_waits_for_approval_hears_it_too(world: World) -> None:
    project_id, _ = await world.shared_project()
    await report(world, "ben", {"flwr": "1.41.0"})
    world.add_app(project_id, source=NEEDS)
    assert "Waits for a data steward of South Clinic" in details(world, project_id)["ben"]
    assert "South Clinic's image has no lifelines" in details(world, project_id)["ben"]


async def test_a_report_tells_the_projects_of_the_site(world: World) -> None:
    project_id, _ = await shared(world)
    topic = world.coordinator.watch_topic(world.principal("ada"), project_id)
    before = world.changes.revision(topic)
    await report(world, "ben", EVERYTHING)
    told = world.changes.revision(topic)
    await report(world, "ben", EVERYTHING)
    assert before < told == world.changes.revision(topic), "the same report again is no news"


@pytest.mark.parametrize(
    "body",
    [
        {"distributions": {"numpy": 2}, "modules": []},
        {"distributions": {"": "2"}, "modules": []},
        {"distributions": {"a\u0000": "2"}, "modules": []},
        {"distributions": {}, "modules": ["x" * 201]},
        {"distributions": {}},
    ],
)
async def test_a_report_that_is_none_is_refused(world: World, body: dict[str, Any]) -> None:
    async with world.api("ada") as api:
        answer = await api.put(path(Route.SITE_PACKAGES), json=body)
    assert answer.status_code == 400
    assert answer.json()["next_step"]


async def test_a_module_that_a_site_has_reported_needs_no_declaration(world: World) -> None:
    content = notebook(code(f"import lifelines\n{CELL}", "federated"))
    assert "lifelines" in (await build(world, content)).json()["message"]
    await report(world, "ben", EVERYTHING)
    assert (await build(world, content)).json()["imports"] == ["lifelines"]
