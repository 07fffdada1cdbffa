"""Two hospitals, two engines, one model: the whole journey, with the aggregator in a container without a network."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from examples.demo.browser import Browser
from examples.demo.display import Display
from examples.demo.people import RESEARCHERS, STEWARDS
from examples.demo.scenario import Outcome, Study, run_journey
from spawner.container_site_spawner import DATA
from tests.fakes.engines import Daemon, EngineError
from tests.system.docker_sites import DockerSites

pytestmark = [pytest.mark.needs_docker, pytest.mark.needs_node]

PEOPLE = RESEARCHERS[:2]
OURS = "org.notebook-federator."


def containers(engine: Daemon) -> list[dict[str, Any]]:
    """What we have made in an engine and is there, ended or not."""
    found = engine.docker("ps", "--all", "--quiet", "--no-trunc").split()
    inspected: list[dict[str, Any]] = json.loads(engine.docker("inspect", *found)) if found else []
    return [one for one in inspected if any(label.startswith(OURS) for label in one["Config"]["Labels"])]


class Watched:
    """The journey's end, and every container that was seen on the aggregators' engine meanwhile."""

    def __init__(self, outcome: Outcome, aggregators: dict[str, dict[str, Any]]) -> None:
        self.outcome = outcome
        self.aggregators = aggregators  # by role, as `docker inspect` shows them


@pytest.fixture(scope="module")
async def watched(docker_sites: DockerSites, study: Study) -> AsyncIterator[Watched]:
    seen: dict[str, dict[str, Any]] = {}

    async def look() -> None:
        while True:
            with contextlib.suppress(EngineError):  # one has gone between its listing and its inspection
                for one in await asyncio.to_thread(containers, docker_sites.aggregators):
                    seen[one["Config"]["Labels"][f"{OURS}role"]] = one
            await asyncio.sleep(0.5)

    looking = asyncio.create_task(look())
    # No hospital's server sees both hospitals' data: the site's own stands for the pooled.
    two_engines = replace(study, title="Two engines", rounds=5, pooled=Path(DATA, study.dataset))
    outcome = await run_journey(docker_sites.stack.origin, two_engines, PEOPLE, STEWARDS[:2], Display())
    looking.cancel()
    await asyncio.wait({looking})
    return Watched(outcome, seen)


async def test_federated_beats_each_site_alone(watched: Watched) -> None:
    assert watched.outcome.federated > watched.outcome.best_alone


async def test_the_aggregator_ran_in_containers_without_a_network(watched: Watched) -> None:
    superlink, serverapp = (watched.aggregators[role] for role in ("superlink", "serverapp"))
    assert superlink["HostConfig"]["NetworkMode"] == "none"
    assert serverapp["HostConfig"]["NetworkMode"] == f"container:{superlink['Id']}"
    for one in (superlink, serverapp):
        names = {variable.partition("=")[0] for variable in one["Config"]["Env"]}
        assert not {name for name in names if name.startswith(("JUPYTERHUB_", "FEDERATION_", "NOTEBOOK_FEDERATOR_"))}
        assert one["HostConfig"]["ReadonlyRootfs"]
        assert one["HostConfig"]["CapDrop"] == ["ALL"]


async def test_after_it_nothing_is_left_running(docker_sites: DockerSites, watched: Watched) -> None:
    for person in PEOPLE:
        browser = Browser(person.username, person.subject, docker_sites.stack.origin)
        await browser.log_in()
        await browser.stop_server()
        await browser.close()
    for person in PEOPLE:
        assert docker_sites.servers(person.site, user=person.username) == []
    assert [one["Name"] for one in containers(docker_sites.aggregators)] == []
