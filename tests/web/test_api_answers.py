"""What the API answers when all is right, read with the contract's own types; long polls; a Hub that is silent."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
from federator.contract import (
    AppReview,
    ApprovalRequest,
    ApprovalState,
    AppVersion,
    Assignments,
    Home,
    MemberState,
    Participant,
    ProjectDetail,
    ProjectSummary,
    Route,
    RunDetail,
    RunStatus,
    RunSummary,
    Site,
    SiteApprovals,
)
from pydantic import TypeAdapter

from tests.fakes.hub import SilentHub
from tests.fakes.web_world import World, notebook, path, plain, public_key, served_world


def read(answer: Any, response: Any, status: int = 200) -> Any:
    assert response.status_code == status, response.text
    return TypeAdapter(answer).validate_json(response.content)


async def test_a_project_from_its_creation_to_its_model(world: World, tmp_path: Path) -> None:
    async with world.api("ada") as ada, world.api("ben") as ben, world.api("norma") as norma:
        project = read(ProjectSummary, await ada.post(Route.PROJECTS, json={"name": "Lungs"}), 201)
        at = {"project_id": project.id, "user": "ben"}
        upload = {"params": {"filename": "lungs.ipynb"}, "content": notebook()}
        version = read(AppVersion, await ada.post(path(Route.APPS, **at), **upload), 201)
        assert (version.number, version.source, version.created_by) == (1, "notebook", "ada")
        invited = read(Participant, await ada.post(path(Route.INVITATIONS, **at), json={"user": "ben"}), 201)
        assert invited.state is MemberState.INVITED
        assert [one.id for one in read(Home, await ben.get(Route.HOME)).invitations] == [project.id]
        assert read(Site, await ada.get(Route.MY_SITE)).slug == "north"

        joined = read(Participant, await ada.post(path(Route.PARTICIPATION, **at), json={"dataset": "slides"}))
        assert joined.approval is ApprovalState.WAITING
        (request,) = read(tuple[ApprovalRequest, ...], await norma.get(Route.APPROVALS))
        review = read(AppReview, await norma.get(path(Route.APP, fab_hash=request.fab_hash, **at)))
        assert review.cells[0].number == 2
        decision = {"project_id": project.id, "fab_hash": request.fab_hash, "site": "north", "dataset": "slides"}
        approved = await norma.post(Route.APPROVALS, json={**decision, "state": "approved", "reason": "Read"})
        assert read(ApprovalRequest, approved).decided_by == "norma"

        mine = {"participation_id": joined.participation_id}
        (assignment,) = read(Assignments, await ada.get(Route.ASSIGNMENTS)).assignments
        assert assignment.participation_id == joined.participation_id
        key = {"public_key": public_key()}
        registered = read(SiteApprovals, await ada.put(path(Route.NODE, **mine), json=key))
        assert registered.fab_hashes == (request.fab_hash,)
        assert read(SiteApprovals, await ada.get(path(Route.SITE_APPROVALS, **mine))) == registered
        reported = await ada.put(path(Route.CLIENT, **mine), json={"state": "ready"})
        assert (reported.status_code, reported.content) == (204, b"")

        run = read(RunSummary, await ada.post(path(Route.RUNS, **at), json={"rounds": 2, "compare": True}), 201)
        assert read(RunSummary, await ada.post(path(Route.RUN_STOP, run_id=run.id))).phase == "stopping"
        world.finish_run(project.id, run.id, b"weights" * 500_000, tmp_path)
        detail = read(RunDetail, await ada.get(path(Route.RUN, run_id=run.id)))
        assert detail.summary.status is RunStatus.FINISHED
        model = await ada.get(path(Route.RUN_MODEL, run_id=run.id))
        assert model.content == b"weights" * 500_000
        assert model.headers["content-disposition"] == f'attachment; filename="{run.id}.safetensors"'
        assert model.headers["content-length"] == "3500000"
        record = await ada.get(path(Route.RUN_RECORD, run_id=run.id))
        assert record.json()["run"]["id"] == run.id

        assert (await ben.post(path(Route.DECLINE, **at))).status_code == 204
        assert (await ada.delete(path(Route.PARTICIPATION, **at))).status_code == 204
        assert read(ProjectDetail, await ada.get(path(Route.PROJECT, **at))).participants[0].participation_id is None
        assert [one.id for one in read(tuple[ProjectSummary, ...], await ada.get(Route.PROJECTS))] == [project.id]


async def test_an_assignment_ends_the_wait_for_it(world: World) -> None:
    async with world.api("ada") as api:
        known = read(Assignments, await api.get(Route.ASSIGNMENTS)).version
        waiting = asyncio.create_task(api.get(Route.ASSIGNMENTS, params={"version": known, "wait": "20"}))
        project_id = world.project()
        world.add_app(project_id)
        world.coordinator.join(world.principal("ada"), project_id, "slides")
        assert read(Assignments, await waiting).version != known


async def test_a_wait_ends_without_a_change(world: World) -> None:
    async with world.api("ada") as api:
        known = read(Assignments, await api.get(Route.ASSIGNMENTS)).version
        answer = await api.get(Route.ASSIGNMENTS, params={"version": known, "wait": "0.05"})
        assert read(Assignments, answer).version == known


@pytest.mark.parametrize("version", ["", "17", "not-a-number"])
async def test_an_unknown_version_is_answered_at_once(world: World, version: str) -> None:
    async with world.api("ada") as api, asyncio.timeout(10):
        assert read(Assignments, await api.get(Route.ASSIGNMENTS, params={"version": version, "wait": "30"}))


async def test_a_silent_hub_is_named(tmp_path: Path) -> None:
    async with served_world(tmp_path, SilentHub()) as world, world.api("ada") as api:
        answer = await api.get(Route.HOME)
    assert answer.status_code == 503
    assert plain(answer)["code"] == "unavailable"


async def test_a_fault_of_ours_tells_nothing_of_itself(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(principal: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(world.coordinator, "home", broken)
    async with world.api("ada") as api, world.browser("ada") as browser:
        answer, page = await api.get(Route.HOME), await browser.get("")
    assert answer.status_code == page.status_code == 500
    assert plain(answer)["code"] == "internal"
    assert "secret detail" not in answer.text + page.text
    assert "administrators" in page.text
    assert "secret detail" in caplog.text  # for who reads the log


async def test_a_refusal_is_one_line_in_the_log_without_a_token(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with world.api("ada") as api:
        await api.get(path(Route.PROJECT, project_id="none"), params={"_xsrf": "a-token"})
    (line,) = [record for record in caplog.records if record.name == "hub_service.web.base"]
    assert "api/projects/none: not-found" in line.getMessage()
    assert line.exc_info is None
    ours = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("hub_service"))
    assert "a-token" not in ours
    assert world.person("ada").token not in ours
