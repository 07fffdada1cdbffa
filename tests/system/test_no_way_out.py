"""The probes of `python -m spawner.site check`, from inside what really runs: researchers' servers and ServerApps.

`test_isolation.py` holds that each probe gets through where nothing protects; here every one is refused.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import UTC, datetime
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from examples.demo.browser import Browser
from examples.demo.people import RESEARCHERS, Person
from hub_service.aggregators.base import Limits, ServerAppSpec
from hub_service.aggregators.docker import ROLE, DockerAggregators
from hub_service.aggregators.superlink import SuperLink
from spawner.site.isolation import Endpoint
from spawner.site.probes import EXPECTED_ANSWER, ProbeResult, probe_container, surroundings
from spawner.sites import NETWORK
from tests.fakes.engines import BuildEngine, Engine
from tests.fakes.federation import new_key
from tests.fakes.flower_apps import averaging_app
from tests.system.docker_sites import AGGREGATOR_IMAGE, SINGLEUSER_IMAGE, DockerSites

pytestmark = [pytest.mark.needs_docker, pytest.mark.needs_node]

AT_LEAST = 12
PEOPLE = RESEARCHERS[:2]


def probed_from_inside(sites: DockerSites, site: str, container: str, *, hub_answers: bool) -> list[ProbeResult]:
    """All probes, from inside a container of that site's engine that runs already."""
    engine = sites.engines[site]
    hub = Endpoint(IPv4Address(engine.hub_address), sites.port)
    with (
        closing(engine.client()) as client,
        surroundings(client, SINGLEUSER_IMAGE, NETWORK, hub, host=IPv4Address(engine.address)) as targets,
    ):
        return probe_container(client.containers.get(container), targets, hub_answers=hub_answers)


@pytest.fixture(params=PEOPLE, ids=lambda person: person.site)
async def person(request: pytest.FixtureRequest, docker_sites: DockerSites) -> AsyncIterator[Person]:
    """A researcher whose server runs."""
    person: Person = request.param
    browser = Browser(person.username, person.subject, docker_sites.stack.origin)
    await browser.log_in()
    await browser.start_server()
    yield person
    await browser.stop_server()
    await browser.close()


async def test_from_a_researchers_server_only_the_hub_answers(docker_sites: DockerSites, person: Person) -> None:
    (server,) = docker_sites.servers(person.site, user=person.username)
    results = probed_from_inside(docker_sites, person.site, server["Id"], hub_answers=True)
    assert len(results) > AT_LEAST
    assert [one for one in results if not one.ok] == []
    assert [one.name for one in results if one.expected == EXPECTED_ANSWER] == ["hub"]


async def serverapp_that_waits(engine: Engine, folder: Path) -> tuple[DockerAggregators, str]:
    """A ServerApp of a project, waiting for a node that never comes; its container's id."""
    backend = DockerAggregators(
        folder,
        engine=engine.host,
        tls_dir=None,
        image=AGGREGATOR_IMAGE,
        limits=Limits(memory_bytes=1024**3),
        clock=lambda: datetime.now(UTC),
        new_id=lambda: str(uuid.uuid4()),
    )
    superlink = SuperLink(await backend.start("p"))
    node_id = await superlink.register_node(new_key())
    run_id = await superlink.start_run(averaging_app(), {})
    await backend.start_serverapp("p", ServerAppSpec("r", run_id, (node_id,), 1, False, 600.0))
    (container,) = engine.docker("ps", "--quiet", f"--filter=label={ROLE}=serverapp").split()
    return backend, container


@pytest.mark.parametrize("site", [person.site for person in PEOPLE])
async def test_from_a_serverapp_nothing_answers(
    docker_sites: DockerSites, build_engine: BuildEngine, tmp_path: Path, site: str
) -> None:
    engine = docker_sites.engines[site]
    engine.load(AGGREGATOR_IMAGE, build_engine)
    backend, container = await serverapp_that_waits(engine, tmp_path)
    try:
        results = probed_from_inside(docker_sites, site, container, hub_answers=False)
        assert await backend.serverapp_exit("p", "r") is None  # it was alive all the time
    finally:
        await backend.stop("p")
        await backend.close()
    assert len(results) > AT_LEAST
    assert [one for one in results if not one.ok] == []
