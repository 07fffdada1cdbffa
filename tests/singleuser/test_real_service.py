"""The notebook API, the service client and the service's real routes understand each other."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import federator
import pytest
from federator import notebook
from federator import service_client as api
from federator.contract import ApprovalState, ClientState, MemberState
from federator.supervisor import POLL_WAIT

from tests.fakes.hub import FakeHub
from tests.fakes.web_world import World, public_key, served_world
from tests.fakes.web_world import notebook as a_notebook


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with served_world(tmp_path, FakeHub()) as served:
        yield served
    forget_who_asks()


def access(world: World, name: str) -> api.Access:
    """What the spawner and the Hub set on this person's server."""
    return api.Access(world.url, world.person(name).token)


def become(world: World, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `import federator` in this process be this person's."""
    monkeypatch.setenv("FEDERATOR_SERVICE_URL", access(world, name).url)
    monkeypatch.setenv("JUPYTERHUB_API_TOKEN", access(world, name).token)
    forget_who_asks()


def forget_who_asks() -> None:
    if notebook._service.cache_info().currsize:
        notebook._service().close()
    notebook._service.cache_clear()


async def test_what_a_notebook_server_asks_and_reports(world: World) -> None:
    project_id, fab_hash = await world.shared_project()
    async with api.AsyncServiceClient(access(world, "ben")) as service:
        first = await service.call(api.get_assignments("", POLL_WAIT))
        (assignment,) = first.assignments
        assert (assignment.project_id, assignment.site, assignment.fab_hash) == (project_id, "south", fab_hash)
        approvals = await service.call(api.register_node(assignment.participation_id, public_key().encode()))
        assert approvals.fab_hashes == (fab_hash,)
        assert await service.call(api.get_site_approvals(assignment.participation_id)) == approvals
        app = await service.call(api.get_approved_app(assignment.participation_id, fab_hash))
        assert hashlib.sha256(app).hexdigest() == fab_hash
        await service.call(api.report_client(assignment.participation_id, ClientState.PAUSED, "by " * 1000))

        news = asyncio.create_task(service.call(api.get_assignments(first.version, POLL_WAIT)))
        principal = world.principal("sue")
        world.coordinator.decide(principal, project_id, fab_hash, "slides", "south", ApprovalState.REVOKED, "no more")
        async with asyncio.timeout(10):
            assert (await news).assignments == ()
        with pytest.raises(api.NotFound, match="approved"):
            await service.call(api.get_approved_app(assignment.participation_id, fab_hash))


async def test_the_journey_in_notebooks(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train.ipynb").write_bytes(a_notebook())
    become(world, "ada", monkeypatch)
    project = await asyncio.to_thread(federator.publish, tmp_path / "train.ipynb", "Lungs", "Finds nodules")
    await asyncio.to_thread(project.invite, "ben")
    await asyncio.to_thread(project.join, "slides")
    with pytest.raises(federator.ServiceError) as not_ready:
        await asyncio.to_thread(project.run, 3)
    assert not_ready.value.next_step

    become(world, "ben", monkeypatch)
    (invitation,) = await asyncio.to_thread(federator.projects)
    assert invitation.summary.member_state is MemberState.INVITED
    with pytest.raises(federator.ServiceError):
        await asyncio.to_thread(invitation.join, "no such dataset")
    with pytest.raises(federator.ServiceError, match="2 datasets"):
        await asyncio.to_thread(invitation.join)
    await asyncio.to_thread(invitation.join, "slides")
    detail = await asyncio.to_thread(lambda: invitation.refresh().detail)
    assert {p.user: p.dataset for p in detail.participants} == {"ada": "slides", "ben": "slides"}
    await asyncio.to_thread(invitation.leave)


async def test_a_run_seen_from_a_notebook(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    project_id, _ = await world.shared_project()
    run_id = world.start_run(project_id)
    become(world, "ada", monkeypatch)
    project = await asyncio.to_thread(federator.project, "Lungs")
    (run,) = await asyncio.to_thread(lambda: project.runs)
    assert run.id == run_id
    assert "run 1" in await asyncio.to_thread(repr, run)
    with pytest.raises(federator.ServiceError):
        await asyncio.to_thread(run.model)


async def test_a_bad_notebook_is_refused_with_its_cell(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad.ipynb").write_bytes(a_notebook("def train(:\n"))
    become(world, "ada", monkeypatch)
    with pytest.raises(federator.ServiceError, match=r"[Cc]ell 2"):
        await asyncio.to_thread(federator.publish, tmp_path / "bad.ipynb")


async def test_strangers_see_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    project_id, _ = await world.shared_project()
    participation_id = world.participation(project_id, "ben")
    stranger = next(name for name in world.hub.people if name not in ("ada", "ben"))
    async with api.AsyncServiceClient(access(world, stranger)) as service:
        for request in (api.get_project(project_id), api.get_site_approvals(participation_id)):
            with pytest.raises((api.NotFound, api.NotAllowed)):
                await service.call(request)
