"""The production example as it stands in deploy/compose: driven through the journey, and its parts killed under way."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from examples.demo.browser import Browser, StepError
from examples.demo.deployment import DatasetFolder
from examples.demo.display import Display
from examples.demo.people import RESEARCHERS, STEWARDS
from examples.demo.scenario import Study, run_journey
from examples.demo.stack import ROOT
from spawner.container_site_spawner import DATA
from tests.fakes.engines import BuildEngine
from tests.system.compose import ComposeHub, running_compose
from tests.system.docker_sites import running_engines

pytestmark = [pytest.mark.needs_docker, pytest.mark.needs_compose]

PEOPLE = RESEARCHERS[:2]
FINAL = ("finished", "failed", "stopped")
ROUNDS = 40
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


@pytest.mark.parametrize("killed", [("database",), OURS])
async def test_a_run_goes_on_while_a_part_is_killed(hub: ComposeHub, project_id: str, killed: tuple[str, ...]) -> None:
    owner = Browser(PEOPLE[0].username, PEOPLE[0].subject, hub.origin)
    await owner.log_in()
    started = await owner.post(f"api/projects/{project_id}/runs", {"rounds": ROUNDS, "compare": False})
    await _until(owner, started["id"], lambda run: run["round"] >= 3)
    for service in killed:
        hub.kill(service)
    ended = await _until(owner, started["id"], lambda run: run["status"] in FINAL)
    await owner.close()
    assert (ended["status"], ended["round"]) == ("finished", ROUNDS), ended


async def _until(owner: Browser, run_id: str, reached: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The run's summary, once it is so; meanwhile nobody may answer."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with contextlib.suppress(httpx.TransportError, StepError):
                answer = await owner.request("GET", f"api/runs/{run_id}")
                if answer.status_code == httpx.codes.OK and reached(run := answer.json()["summary"]):
                    return dict(run)
                if answer.status_code == httpx.codes.UNAUTHORIZED:
                    await owner.log_in()  # a Hub whose database is away knows nobody
            await asyncio.sleep(0.2)
