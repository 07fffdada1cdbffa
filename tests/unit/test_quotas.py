"""Quotas: what is refused, with which words, and what is told before."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from federator.contract import ModelFile, RunStatus

from hub_service.domain.errors import Conflict, FederationError, Invalid, TooLarge
from hub_service.domain.quotas import LARGEST_UPLOAD, Quotas, Use, stored_bytes
from hub_service.settings import Settings
from tests.fakes.hub import FakeHub
from tests.fakes.web_world import CELL, World, notebook, served_world
from tests.unit.test_app import environment
from tests.unit.test_run_timings import RUN

__all__ = ["environment"]

SMALL = Quotas(
    projects_per_user=2,
    members_per_project=2,
    runs=2,
    runs_per_user=1,
    runs_per_site=1,
    project_bytes=100_000,
    all_bytes=150_000,
    upload_bytes=5_000,
)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with served_world(tmp_path, FakeHub(), quotas=SMALL) as world:
        yield world


def said(refused: pytest.ExceptionInfo[FederationError]) -> str:
    return f"{refused.value.message} {refused.value.next_step}"


class TestQuotas:
    def test_those_of_the_deployment_are_read(self, environment: dict[str, str]) -> None:
        told = {**environment, "FEDERATION_QUOTAS": json.dumps({"runs": 3})}
        assert Settings.from_environment(told).quotas == Quotas(runs=3)
        assert Settings.from_environment(environment).quotas == Quotas()

    @pytest.mark.parametrize(
        "text", ["x", "[1]", '{"cakes": 1}', '{"runs": 0}', '{"runs": 1.5}', '{"runs": true}', '{"runs": "many"}']
    )
    def test_others_are_refused(self, environment: dict[str, str], text: str) -> None:
        with pytest.raises(Invalid, match="FEDERATION_QUOTAS"):
            Settings.from_environment({**environment, "FEDERATION_QUOTAS": text})

    def test_no_upload_is_larger_than_the_service_takes(self) -> None:
        with pytest.raises(ValueError, match="upload_bytes"):
            Quotas(upload_bytes=LARGEST_UPLOAD + 1)

    def test_the_last_one_has_room_and_the_next_has_not(self) -> None:
        Use("cakes of ada", 2, 3).require_room("the admin", "Eat one.")
        with pytest.raises(Conflict) as refused:
            Use("cakes of ada", 3, 3).require_room("the admin", "Eat one.")
        assert (
            said(refused)
            == "This is more than is allowed here: cakes of ada: 3 of 3. Eat one. Or ask the admin for more."
        )

    def test_bytes_are_said_for_people(self) -> None:
        for used, text in ((10, "10 bytes"), (2048, "2.0 KB"), (3 << 20, "3.0 MB"), (5 << 30, "5.0 GB")):
            assert Use("stored", used, 8 << 30, in_bytes=True).text == f"stored: {text} of 8.0 GB"
        with pytest.raises(TooLarge):
            Use("stored", 5, 8, in_bytes=True).require_room("the admin", "Delete.", more=4)

    def test_near_is_before_the_end(self) -> None:
        assert [Use("", used, 10).near for used in (7, 8, 10)] == [False, True, True]

    def test_a_file_that_two_runs_keep_counts_once(self) -> None:
        kept = replace(RUN, model_sha256="m", model_size=5, models=(ModelFile("m", 5, 3), ModelFile("n", 7, 2)))
        assert stored_bytes([], [kept, replace(kept, id="r2"), RUN]) == 12


class TestRefusals:
    async def test_projects(self, world: World) -> None:
        world.project()
        first = world.project(name="Two")
        with pytest.raises(Conflict, match="projects of ada: 2 of 2"):
            world.project(name="Three")
        world.project("ben")
        world.coordinator.delete_project(world.principal("ada"), first)
        world.project(name="Three")

    async def test_members(self, world: World) -> None:
        project_id = world.project()
        await world.coordinator.invite(world.principal("ada"), project_id, "ben")
        with pytest.raises(Conflict, match="invitations of this project: 2 of 2"):
            await world.coordinator.invite(world.principal("ada"), project_id, "cleo")
        world.coordinator.remove_member(world.principal("ada"), project_id, "ben")
        await world.coordinator.invite(world.principal("ada"), project_id, "cleo")

    async def test_an_upload(self, world: World) -> None:
        project_id = world.project()
        with pytest.raises(TooLarge, match="MB are taken here"):
            await world.coordinator.build_app(
                world.principal("ada"), project_id, "a.ipynb", notebook(CELL + "#" * 5_000)
            )
        assert not world.store.app_versions(project_id)

    async def test_storage_of_a_project_and_of_all(self, world: World) -> None:
        project_id, _ = await world.shared_project()
        run_id = world.start_run(project_id)
        run = world.store.run(run_id)
        assert run is not None
        world.store.put_run(replace(run, status=RunStatus.FINISHED, model_sha256="m", model_size=99_999))
        with pytest.raises(TooLarge, match="stored by this project"):
            world.add_app(project_id, source=CELL + "# newer\n")
        with pytest.raises(TooLarge, match="stored by this project"):
            world.start_run(project_id)
        other = world.project("ben")
        world.add_app(other, "ben")
        world.store.put_run(replace(run, status=RunStatus.FINISHED, model_sha256="n", model_size=149_999))
        with pytest.raises(TooLarge, match="stored by all projects"):
            world.add_app(other, "ben", source=CELL + "# newer\n")

    async def test_runs_of_an_owner_of_a_site_and_in_all(self, world: World) -> None:
        first, _ = await world.shared_project()
        run_id = world.start_run(first)
        run = world.store.run(run_id)
        second, _ = await world.shared_project()
        with pytest.raises(Conflict, match="runs in flight in projects of ada: 1 of 1"):
            world.start_run(second)
        assert run is not None
        project = world.store.project(first)
        assert project is not None
        world.store.put_project(replace(project, owner="ben"))
        with pytest.raises(Conflict, match="runs in flight at north: 1 of 1"):
            world.start_run(second)
        world.store.put_run(replace(run, id="another"))
        with pytest.raises(Conflict, match="runs in flight: 2 of 2"):
            world.start_run(second)
        for one in (run_id, "another"):
            world.store.put_run(replace(run, id=one, status=RunStatus.FINISHED))
        world.start_run(second)


async def test_the_owner_is_told_before(world: World) -> None:
    project_id, _ = await world.shared_project()
    owner = world.coordinator.project(world.principal("ada"), project_id)
    assert owner.limits_near == ("Nearly used up: members and invitations of this project: 2 of 2.",)
    assert world.coordinator.project(world.principal("ben"), project_id).limits_near == ()
    async with world.browser("ada") as browser:
        assert "Nearly used up" in (await browser.get(f"projects/{project_id}")).text
    state = await world.coordinator.federation_state(world.principal("robin"))
    assert {use.of for use in state.quotas} >= {"runs in flight", "stored by all projects", "projects of ada"}
