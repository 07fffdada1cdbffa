"""Three people and two GPUs on an engine that says it has two: never two on one, never one lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from examples.demo.browser import Browser, StepError
from examples.demo.people import COLLEAGUES, RESEARCHERS, STEWARDS
from tests.system.docker_sites import GPUS, SINGLEUSER_IMAGE, DockerSites

pytestmark = [pytest.mark.needs_docker, pytest.mark.needs_node]

SITE = "st-anna"
PEOPLE = (RESEARCHERS[0], COLLEAGUES[0], STEWARDS[0])
WITH_GPU = {"gpu": True}  # said each time: a start without a word repeats the last choice
PATIENCE_S = 60
GPU_LABEL = "org.notebook-federator.gpu"


@pytest.fixture
async def three(docker_sites: DockerSites) -> AsyncIterator[list[Browser]]:
    """Three people of one site, logged in; their servers are stopped at the end."""
    people = [Browser(one.username, one.subject, docker_sites.stack.origin) for one in PEOPLE]
    for one in people:
        await one.log_in()
    yield people
    for one in people:
        await one.stop_server()
        await one.close()


def held(sites: DockerSites) -> dict[str, str]:
    """Who has which GPU, by what the containers were really given."""
    found = {}
    for server in sites.servers(SITE):
        requests = server["HostConfig"]["DeviceRequests"] or []
        if server["State"]["Running"] and requests:
            ((gpu,),) = (request["DeviceIDs"] for request in requests)
            assert server["Config"]["Labels"][GPU_LABEL] == gpu
            found[server["Config"]["Labels"]["org.notebook-federator.user"]] = gpu
    return found


async def test_three_people_and_two_gpus(docker_sites: DockerSites, three: list[Browser]) -> None:
    amara, jonas, ingrid = three
    engine = docker_sites.engines[SITE]
    await amara.start_server(WITH_GPU)
    await jonas.start_server(WITH_GPU)
    assert sorted(held(docker_sites).values()) == list(GPUS)
    (visible,) = {(await amara.run_cell("import os; print(os.environ['NVIDIA_VISIBLE_DEVICES'])")).strip()}
    assert visible == held(docker_sites)[amara.username]

    with pytest.raises(StepError, match=r"All GPUs of St\. Anna Hospital are taken") as refused:
        await ingrid.start_server(WITH_GPU)
    for lease in held(docker_sites).items():
        user, gpu = lease
        assert f"{gpu}: {user} since " in str(refused.value)

    await ingrid.start_server({"gpu": False})
    assert ingrid.username not in held(docker_sites)
    assert await ingrid.run_cell("import os; print(os.environ['NVIDIA_VISIBLE_DEVICES'])") == "void\n"
    await ingrid.stop_server()

    # A crash frees it, without anybody's doing.
    freed = held(docker_sites)[amara.username]
    engine.docker("kill", docker_sites.servers(SITE, user=amara.username)[0]["Id"])
    await ingrid.start_server(WITH_GPU)
    assert held(docker_sites)[ingrid.username] == freed

    # A Hub that crashes forgets nothing.
    docker_sites.stack.crash_hub()
    docker_sites.stack.start_hub_again()
    with pytest.raises(StepError, match="are taken"):
        await amara.start_server(WITH_GPU)
    assert sorted(held(docker_sites).values()) == list(GPUS)

    # A stop frees it.
    freed = held(docker_sites)[jonas.username]
    await jonas.stop_server()
    await amara.start_server(WITH_GPU)
    assert held(docker_sites)[amara.username] == freed


async def test_what_a_crashed_hub_was_making_holds_no_gpu(docker_sites: DockerSites, three: list[Browser]) -> None:
    """A container that was made and never started: its Hub crashed in between."""
    engine = docker_sites.engines[SITE]
    made = [
        engine.docker("create", f"--label={GPU_LABEL}={gpu}", f"--name=left-{gpu}", SINGLEUSER_IMAGE).strip()
        for gpu in GPUS
    ]
    try:
        await three[0].start_server(WITH_GPU)
        await three[1].start_server(WITH_GPU)
        assert sorted(held(docker_sites).values()) == list(GPUS)
    finally:
        engine.docker("rm", *made)


async def test_a_hub_that_crashes_in_the_middle_of_a_start_loses_no_gpu(
    docker_sites: DockerSites, three: list[Browser]
) -> None:
    """The next Hub finds the server of which it knows no address, and ends it."""
    starting = asyncio.create_task(three[0].start_server(WITH_GPU))
    async with asyncio.timeout(PATIENCE_S):
        while not held(docker_sites):  # noqa: ASYNC110 - the engine tells nobody
            await asyncio.sleep(0.05)
    docker_sites.stack.crash_hub()
    with pytest.raises(httpx.TransportError):
        await starting
    docker_sites.stack.start_hub_again()
    async with asyncio.timeout(PATIENCE_S):
        while held(docker_sites):  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.5)
    await three[0].stop_server()  # returns once the Hub, too, is done with ending it
    await three[0].start_server(WITH_GPU)
    assert list(held(docker_sites)) == [three[0].username]


async def test_the_form_offers_a_start_without_a_gpu(docker_sites: DockerSites, three: list[Browser]) -> None:
    page = await three[2].http.get("/hub/spawn")
    assert 'name="gpu"' in page.text
    assert "Without one: starts even if all are taken." in page.text
    token = {"_xsrf": three[2].http.cookies.get("_xsrf", path="/hub/") or ""}
    await three[2].http.post("/hub/spawn", params=token, data={"gpu": "no"}, follow_redirects=False)
    await three[2].start_server()  # waits for the one that the form began
    assert held(docker_sites) == {}
