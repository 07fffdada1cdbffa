"""The production example as it stands in deploy/compose: driven through the journey, and its parts killed under way."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from examples.demo.deployment import DatasetFolder
from examples.demo.display import Display
from examples.demo.people import RESEARCHERS, STEWARDS
from examples.demo.scenario import Study, run_journey
from examples.demo.stack import ROOT
from spawner.container_site_spawner import DATA
from tests.fakes.engines import BuildEngine
from tests.fakes.paced_app import paced_app
from tests.system import chaos
from tests.system.chaos import Project
from tests.system.compose import ComposeHub, running_compose
from tests.system.docker_sites import running_engines

pytestmark = [pytest.mark.needs_docker, pytest.mark.needs_compose]

PEOPLE = RESEARCHERS[:2]
ROUNDS = 10
PACE_S = 0.5
SEED = 20230119
PATIENCE_S = 300.0
OURS = ("proxy", "hub", "service")


@pytest.fixture(scope="module")
def hub(study_and_dataset: tuple[Study, DatasetFolder], build_engine: BuildEngine) -> Iterator[ComposeHub]:
    datasets = study_and_dataset[1].folders
    with (
        running_engines(build_engine) as engines,
        running_compose(
            ROOT / "test-output" / "compose",
            datasets,
            {site: engines[site] for site in ("st-anna", "vall-verde")},
            build_engine,
        ) as running,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("SSL_CERT_FILE", str(running.authority))  # what people's browsers trust
        yield running


@pytest.fixture(scope="module")
async def project_id(hub: ComposeHub, study: Study) -> str:
    """A project that has gone through the whole journey."""
    # No hospital's server sees both hospitals' data: the site's own stands for the pooled.
    two = replace(study, title="Composed", rounds=5, pooled=Path(DATA, study.dataset))
    outcome = await run_journey(hub.origin, two, PEOPLE, STEWARDS[:2], Display())
    assert outcome.federated > outcome.best_alone
    return outcome.project_id


@pytest.mark.parametrize("service", OURS)
def test_our_containers_may_do_nothing_but_their_work(hub: ComposeHub, service: str) -> None:
    container = hub.container(service)
    host = container["HostConfig"]
    assert container["Config"]["User"] == "1000"
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("service", ["hub", "service", "database"])
def test_only_the_proxy_is_reached_from_outside(hub: ComposeHub, service: str) -> None:
    assert not hub.container(service)["HostConfig"]["PortBindings"]


@pytest.mark.parametrize("service", ["hub", "service", "database"])
def test_what_is_looked_after_is_healthy(hub: ComposeHub, service: str) -> None:
    assert hub.health(service) == "healthy"


async def test_the_journey_goes_through(project_id: str) -> None:
    assert project_id


@dataclass(frozen=True)
class Undisturbed:
    """A project, and the model of its run when nothing happens."""

    project: Project
    model: dict[str, bytes]


@pytest.fixture(scope="module")
async def undisturbed(
    hub: ComposeHub, project_id: str, study: Study, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Undisturbed]:
    del project_id  # its people's servers run
    app, folder = paced_app(len(PEOPLE), PACE_S), tmp_path_factory.mktemp("app")
    async with chaos.people(hub.origin, len(PEOPLE)) as them:
        project = await chaos.new_project(them, "Killed", app, study.dataset, folder, PATIENCE_S)
        run_id = await project.start(ROUNDS, SEED)
        chaos.check_rounds(await project.end_of(run_id), ROUNDS, PEOPLE)
        yield Undisturbed(project, await project.model_of(run_id))


@pytest.mark.parametrize("killed", [("database",), OURS])
async def test_a_run_ends_as_if_no_part_had_been_killed(
    hub: ComposeHub, undisturbed: Undisturbed, killed: tuple[str, ...]
) -> None:
    project = undisturbed.project
    async with project.run(ROUNDS, SEED) as run_id:
        await project.round_of(run_id, 3)
        for service in killed:
            hub.kill(service)
        chaos.check_rounds(await project.end_of(run_id), ROUNDS, PEOPLE)
        assert await project.model_whatever_happens(run_id) == undisturbed.model
