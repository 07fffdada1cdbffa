"""The administrators' page: what it shows, what it keeps to itself, and its repairs."""

from __future__ import annotations

import re
from dataclasses import replace

import httpx
import pytest
from federator.contract import ClientState, RunStatus

from hub_service.audit import Decision
from hub_service.changes import LEAVING_TOPIC
from hub_service.domain.errors import Forbidden, Unavailable
from hub_service.domain.runs import RunTarget
from hub_service.operations.administration import Repair
from tests.fakes.web_world import CELL, World


async def page(world: World, name: str = "robin") -> httpx.Response:
    async with world.browser(name) as browser:
        return await browser.get("administration")


async def repaired(world: World, repair: str, target: str, name: str = "robin") -> httpx.Response:
    """As the button does it."""
    async with world.browser(name) as browser:
        shown = await browser.get("")
        token = re.search(r'name="_xsrf" value="([^"]+)"', (await browser.get("administration")).text)
        xsrf = token[1] if token else browser.cookies.get("_xsrf", "")
        assert shown.status_code == 200
        return await browser.post("administration/repairs", data={"_xsrf": xsrf, "repair": repair, "target": target})


def audited(world: World) -> list[tuple[str, str]]:
    return [(one.actor, one.detail["repair"]) for one in world.store.audit_lines() if one.action == Decision.REPAIRED]


@pytest.mark.parametrize("name", ["ada", "norma", "visitor", "outsider"])
async def test_it_is_for_administrators_only(world: World, name: str) -> None:
    project_id, _ = await world.shared_project()
    run_id = world.start_run(project_id)
    assert (await page(world, name)).status_code == 403
    with pytest.raises(Forbidden):
        await world.coordinator.repair(world.principal(name), Repair.STOP_RUN, run_id)
    with pytest.raises(Forbidden):
        await world.coordinator.federation_state(world.principal(name))
    assert not audited(world)


async def test_others_are_not_led_there(world: World) -> None:
    async with world.browser("ada") as browser:
        assert "Administration" not in (await browser.get("")).text
    async with world.browser("robin") as browser:
        assert "administration" in (await browser.get("")).text
        assert "administration" in (await browser.get("panel")).text


async def test_it_shows_what_runs_and_nothing_of_what_is_computed(world: World) -> None:
    project_id, _ = await world.shared_project()
    run_id = world.start_run(project_id)
    await world.backend.start(project_id)
    await world.backend.start("orphaned-project")
    world.report_round(project_id, run_id, 1)
    run = world.store.run(run_id)
    assert run is not None
    world.store.put_run(replace(run, resumed=2, message="Its last words: accuracy 0.987"))
    world.coordinator.report_client(
        world.principal("ben"), world.participation(project_id, "ben"), ClientState.FAILED, "KeyError: 'diagnosis'"
    )
    text = (await page(world)).text
    for shown in ("Lungs", "round 1 of 3", "resumed 2 times", "orphaned-project", "South Clinic", "client failed"):
        assert shown in text
    assert "It broke." in text
    for kept in ("0.987", "diagnosis", "Finds nodules", "accuracy", CELL.strip().splitlines()[0]):
        assert kept not in text


async def test_what_fails_is_shown_with_its_reason(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken() -> None:
        raise Unavailable("No.", debug="no such image")

    monkeypatch.setattr(world.coordinator._machinery.readiness, "_checks", {"aggregators": broken})
    text = (await page(world)).text
    assert "no such image" in text
    assert "does not do its work" in text


async def test_a_run_is_stopped_once(world: World) -> None:
    project_id, _ = await world.shared_project()
    run_id = world.start_run(project_id)
    assert "The run is being stopped." in (await repaired(world, "stop-run", run_id)).text
    run = world.store.run(run_id)
    assert run is not None
    assert run.target is RunTarget.STOPPED
    assert "being stopped already" in (await repaired(world, "stop-run", run_id)).text
    world.store.put_run(replace(run, status=RunStatus.STOPPED))
    assert "has ended already" in (await repaired(world, "stop-run", run_id)).text
    assert audited(world) == [("robin", "stop-run")]


async def test_an_aggregator_is_begun_anew_once(world: World) -> None:
    project_id, _ = await world.shared_project()
    assert "no run in flight" in (await repaired(world, "restart-aggregator", project_id)).text
    world.start_run(project_id)
    await world.backend.start(project_id)
    assert "last finished round" in (await repaired(world, "restart-aggregator", project_id)).text
    assert "begun anew already" in (await repaired(world, "restart-aggregator", project_id)).text
    assert world.backend.stopped == [project_id]
    assert audited(world) == [("robin", "restart-aggregator")]


async def test_only_an_orphaned_aggregator_is_ended(world: World) -> None:
    project_id, _ = await world.shared_project()
    world.start_run(project_id)
    for one in (project_id, "orphan"):
        await world.backend.start(one)
    assert "No such aggregator" in (await repaired(world, "end-aggregator", project_id)).text
    assert "was ended" in (await repaired(world, "end-aggregator", "orphan")).text
    assert "No such aggregator" in (await repaired(world, "end-aggregator", "orphan")).text
    assert world.backend.stopped == ["orphan"]
    assert audited(world) == [("robin", "end-aggregator")]


async def test_a_client_is_disconnected_and_its_key_opens_nothing(world: World) -> None:
    project_id, _ = await world.shared_project()
    world.make_ready(project_id)
    participation_id = world.participation(project_id, "ben")
    before = world.store.participation(participation_id)
    assert before is not None
    assert before.public_key is not None
    assert world.coordinator.node_grant(before.public_key) is not None
    assert "is disconnected" in (await repaired(world, "disconnect-client", participation_id)).text
    assert world.coordinator.node_grant(before.public_key) is None
    assert "disconnected already" in (await repaired(world, "disconnect-client", participation_id)).text
    assert audited(world) == [("robin", "disconnect-client")]


async def test_a_stuck_participation_is_cleared(world: World) -> None:
    project_id, _ = await world.shared_project()
    world.make_ready(project_id)
    participation_id = world.participation(project_id, "ben")
    before = world.store.participation(participation_id)
    assert before is not None
    assert "starts another one" in (await repaired(world, "clear-participation", participation_id)).text
    after = world.store.participation(participation_id)
    assert after is not None
    assert (after.client, after.public_key, after.active) == (ClientState.OFFLINE, None, True)
    (assignment,) = world.coordinator.assignments(world.principal("ben")).assignments
    assert assignment.kernel_id not in ("", before.kernel_id)
    assert "nothing to clear" in (await repaired(world, "clear-participation", participation_id)).text
    assert audited(world) == [("robin", "clear-participation")]


async def test_with_no_notice_given_up_there_is_nothing_to_send(world: World) -> None:
    assert "No notice waits" in (await repaired(world, "send-notices", "")).text
    assert not audited(world)


async def test_a_sweep_wakes_the_sweeper(world: World) -> None:
    before = world.changes.revision(LEAVING_TOPIC)
    assert "is being removed" in (await repaired(world, "sweep-artifacts", "")).text
    assert world.changes.revision(LEAVING_TOPIC) == before + 1
    assert audited(world) == [("robin", "sweep-artifacts")]


@pytest.mark.parametrize(
    ("repair", "status"), [("stop-run", 404), ("disconnect-client", 404), ("clear-participation", 404), ("burn", 400)]
)
async def test_what_is_not_there_is_said_on_the_page(world: World, repair: str, status: int) -> None:
    answer = await repaired(world, repair, "nothing")
    assert answer.status_code == status
    assert "Administration</h1>" in answer.text


async def test_a_form_of_another_page_does_nothing(world: World) -> None:
    project_id, _ = await world.shared_project()
    run_id = world.start_run(project_id)
    async with world.browser("robin") as browser:
        await browser.get("administration")
        answer = await browser.post("administration/repairs", data={"repair": "stop-run", "target": run_id})
    assert answer.status_code == 403
    assert not audited(world)


async def test_aggregators_that_cannot_be_asked_are_not_known(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent() -> list[str]:
        raise Unavailable("The engine does not answer.")

    project_id, _ = await world.shared_project()
    world.start_run(project_id)
    monkeypatch.setattr(world.backend, "running", silent)
    assert "not known" in (await page(world)).text
    answer = await repaired(world, "restart-aggregator", project_id)
    assert answer.status_code == 503
    assert "not known now" in answer.text


async def test_an_error_page_says_what_to_quote(world: World) -> None:
    async with world.browser("ada") as browser:
        answer = await browser.get("projects/none", headers={"X-Request-ID": "quoted-1"})
    assert answer.status_code == 404
    assert answer.headers["X-Request-ID"] == "quoted-1"
    assert "say <code>quoted-1</code>" in answer.text
