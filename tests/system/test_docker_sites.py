"""Hospitals on Docker engines of their own: where servers run, with what, and what nobody can change."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from examples.demo.browser import Browser, StepError
from examples.demo.people import COLLEAGUES, RESEARCHERS, STEWARDS, Person
from tests.system.docker_sites import SINGLEUSER_IMAGE, DockerSites

pytestmark = [pytest.mark.needs_docker, pytest.mark.needs_node]

AMARA, MATEU, PRIYA = RESEARCHERS
JONAS = COLLEAGUES[0]
INGRID = STEWARDS[0]


async def logged_in(person: Person, sites: DockerSites) -> Browser:
    browser = Browser(person.username, person.subject, sites.stack.origin)
    await browser.log_in()
    return browser


@pytest.fixture(scope="module")
async def amara(docker_sites: DockerSites) -> AsyncIterator[Browser]:
    """A researcher of St. Anna with a running server."""
    browser = await logged_in(AMARA, docker_sites)
    await browser.start_server()
    yield browser
    await browser.stop_server()
    await browser.close()


@pytest.fixture(scope="module")
async def mateu(docker_sites: DockerSites) -> AsyncIterator[Browser]:
    """A researcher of Vall Verde with a running server."""
    browser = await logged_in(MATEU, docker_sites)
    await browser.start_server()
    yield browser
    await browser.stop_server()
    await browser.close()


async def test_each_server_runs_at_its_persons_site(docker_sites: DockerSites, amara: Browser, mateu: Browser) -> None:
    for browser, own, other in ((amara, "st-anna", "vall-verde"), (mateu, "vall-verde", "st-anna")):
        assert len(docker_sites.servers(own, user=browser.username)) == 1
        assert docker_sites.servers(other, user=browser.username) == []
        assert await browser.run_cell("import os; print(os.environ['FEDERATOR_SITE'])") == f"{own}\n"


async def test_a_server_is_hardened(docker_sites: DockerSites, amara: Browser) -> None:
    (server,) = docker_sites.servers("st-anna", user=amara.username)
    host = server["HostConfig"]
    assert server["Config"]["Image"] == SINGLEUSER_IMAGE
    assert server["Config"]["User"] == "1000:100"
    assert (host["ReadonlyRootfs"], host["Privileged"], host["CapAdd"], host["CapDrop"]) == (True, False, None, ["ALL"])
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert (host["Memory"], host["MemorySwap"], host["PidsLimit"]) == (3 * 1024**3, 3 * 1024**3, 4096)
    assert host["CpuQuota"] == host["CpuPeriod"]
    assert (host["NetworkMode"], host["PidMode"], host["IpcMode"]) == ("federation", "", "private")
    assert [binding["HostIp"] for binding in host["PortBindings"]["8888/tcp"]] == [
        docker_sites.engines["st-anna"].address
    ]


async def test_a_server_sees_its_sites_data_and_its_persons_home_only(
    docker_sites: DockerSites, amara: Browser
) -> None:
    (server,) = docker_sites.servers("st-anna", user=amara.username)
    mounts = {mount["Destination"]: (mount["Type"], mount["RW"]) for mount in server["Mounts"]}
    assert mounts == {"/data/biopsies": ("bind", False), "/home/jovyan": ("volume", True)}


@pytest.mark.parametrize(
    "statement",
    [
        "open('/data/biopsies/new.csv', 'w')",
        "open('/data/biopsies/train.csv', 'a')",
        "os.remove('/data/biopsies/train.csv')",
        "os.rename('/data/biopsies/train.csv', '/data/biopsies/x')",
        "os.utime('/data/biopsies/train.csv')",
        "os.symlink('/etc', '/data/biopsies/link')",
        "os.mkdir('/data/other')",
        "open('/usr/lib/x', 'w')",
    ],
)
async def test_data_and_system_cannot_be_written(amara: Browser, statement: str) -> None:
    """The site's folder lets everybody write: it is the mount that does not."""
    with pytest.raises(StepError, match="Read-only file system"):
        await amara.run_cell(f"import os\n{statement}")


@pytest.mark.parametrize(
    "statement", ["os.setuid(0)", "os.mknod('/tmp/disk', 0o60666, os.makedev(254, 0))", "os.chown('/tmp', 0, 0)"]
)
async def test_nobody_becomes_more_than_a_user(amara: Browser, statement: str) -> None:
    with pytest.raises(StepError, match="PermissionError"):
        await amara.run_cell(f"import os\n{statement}")


async def test_what_is_written_at_home_is_there_after_a_restart(docker_sites: DockerSites) -> None:
    jonas = await logged_in(JONAS, docker_sites)
    for statement in ("open('kept.txt', 'w').write('mine')", "assert open('kept.txt').read() == 'mine'"):
        await jonas.start_server()
        await jonas.run_cell(statement)
        await jonas.stop_server()
    assert docker_sites.servers("st-anna", user=JONAS.username) == []
    await jonas.close()


# --- what nobody can choose


CHOICES: dict[str, Any] = {
    "site": "vall-verde",
    "image": "busybox:latest",
    "engine": "tcp://10.0.0.1:2376",
    "volumes": {"/": "/host"},
    "network_name": "host",
    "environment": {"FEDERATOR_SITE": "vall-verde"},
    "cmd": ["sh"],
}


@pytest.mark.parametrize("option", CHOICES)
async def test_an_option_of_an_api_call_is_refused(docker_sites: DockerSites, option: str) -> None:
    jonas = await logged_in(JONAS, docker_sites)
    answer = await jonas.hub("POST", f"/hub/api/users/{JONAS.username}/server", {option: CHOICES[option]})
    assert answer.status_code == httpx.codes.BAD_REQUEST
    assert f"no option {option}" in answer.text
    assert docker_sites.servers("st-anna", user=JONAS.username) == []
    assert docker_sites.servers("vall-verde", user=JONAS.username) == []
    await jonas.close()


async def test_a_field_of_the_form_counts_for_nothing(docker_sites: DockerSites) -> None:
    jonas = await logged_in(JONAS, docker_sites)
    await jonas.http.get("/hub/spawn")
    fields = {"gpu": "no", **{name: json.dumps(value) for name, value in CHOICES.items()}}
    token = {"_xsrf": jonas.http.cookies.get("_xsrf", path="/hub/") or ""}
    await jonas.http.post("/hub/spawn", params=token, data=fields, follow_redirects=False)
    await jonas.start_server()  # waits for the one that the form began
    (server,) = docker_sites.servers("st-anna", user=JONAS.username)
    assert server["Config"]["Image"] == SINGLEUSER_IMAGE
    assert {mount["Destination"] for mount in server["Mounts"]} == {"/data/biopsies", "/home/jovyan"}
    assert docker_sites.servers("vall-verde", user=JONAS.username) == []
    await jonas.stop_server()
    await jonas.close()


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/hub/api/users/{other}/server", {}),
        ("DELETE", "/hub/api/users/{other}/server", None),
        ("POST", "/hub/api/users/{own}/servers/second", {"site": "vall-verde"}),
        ("POST", "/hub/api/users/{own}/servers/second", {}),
        ("POST", "/hub/api/groups/site-vall-verde/users", {"users": ["{own}"]}),
        ("PATCH", "/hub/api/users/{own}", {"admin": True}),
        ("GET", "/hub/api/users/{other}", None),
        ("GET", "/user/{other}/api/contents", None),
        ("GET", "/hub/spawn/{other}", None),
    ],
)
@pytest.mark.parametrize("by", ["browser", "server token"])
async def test_no_call_leads_to_another_site(
    docker_sites: DockerSites, amara: Browser, mateu: Browser, method: str, path: str, body: Any, by: str
) -> None:
    names = {"own": amara.username, "other": mateu.username}
    path = path.format(**names)
    body = json.loads(json.dumps(body).replace("{own}", amara.username))
    if by == "browser":
        answer = await amara.hub(method, path, body)
    else:
        token = (await amara.run_cell("import os; print(os.environ['JUPYTERHUB_API_TOKEN'])")).strip()
        async with httpx.AsyncClient(base_url=docker_sites.stack.origin) as client:
            answer = await client.request(method, path, json=body, headers={"Authorization": f"token {token}"})
    refused = answer.status_code in (400, 403, 404) or "/hub/login" in answer.headers.get("location", "")
    assert refused, f"{answer.status_code}: {answer.text[:200]}"
    assert docker_sites.servers("vall-verde", user=amara.username) == []
    assert len(docker_sites.servers("vall-verde", user=mateu.username)) == 1


async def test_a_steward_is_pinned_too(docker_sites: DockerSites) -> None:
    ingrid = await logged_in(INGRID, docker_sites)
    await ingrid.start_server()
    assert len(docker_sites.servers("st-anna", user=INGRID.username)) == 1
    await ingrid.stop_server()
    await ingrid.close()


# --- faults


async def test_a_gpu_that_the_engine_cannot_give_is_told_in_words(docker_sites: DockerSites) -> None:
    priya = await logged_in(PRIYA, docker_sites)
    with pytest.raises(StepError, match=r"Northside Clinic could not start.*NVIDIA container runtime.*without a GPU"):
        await priya.start_server()
    assert docker_sites.servers("northside", user=PRIYA.username) == []  # what was made of it is gone
    await priya.start_server({"gpu": False})
    await priya.stop_server()
    await priya.close()


async def test_a_server_that_ends_is_noticed_and_removed(docker_sites: DockerSites) -> None:
    jonas = await logged_in(JONAS, docker_sites)
    await jonas.start_server()
    (server,) = docker_sites.servers("st-anna", user=JONAS.username)
    docker_sites.engines["st-anna"].docker("kill", server["Id"])
    await jonas.start_server()
    (another,) = docker_sites.servers("st-anna", user=JONAS.username)
    assert another["Id"] != server["Id"]
    await jonas.stop_server()
    await jonas.close()


async def test_a_frozen_site_delays_no_other(docker_sites: DockerSites, amara: Browser, mateu: Browser) -> None:
    """While one engine answers nothing, a start there is still pending when a start elsewhere has ended."""
    jonas = await logged_in(JONAS, docker_sites)
    clara = await logged_in(COLLEAGUES[1], docker_sites)
    engine = docker_sites.engines["vall-verde"]
    engine.freeze()
    try:
        frozen = asyncio.create_task(clara.start_server())
        await jonas.start_server()
        assert await jonas.run_cell("print(1)") == "1\n"
        assert not frozen.done()
        await jonas.stop_server()
        with pytest.raises(StepError, match=r"The engine of Vall Verde Cancer Institute does not answer.*Núria Puig"):
            await frozen
        assert await mateu.run_cell("print(2)") == "2\n"  # the engine is frozen, its containers are not
    finally:
        engine.thaw()
    await start_in_the_end(clara)
    await clara.stop_server()
    for browser in (jonas, clara):
        await browser.close()


async def start_in_the_end(browser: Browser) -> None:
    """Press the button again: the Hub lets an engine that did not answer rest for a while."""
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(StepError):
                return await browser.start_server()
            await asyncio.sleep(1)


async def test_servers_outlive_the_hub(docker_sites: DockerSites, amara: Browser, mateu: Browser) -> None:
    before = {
        browser.username: docker_sites.servers(site) for browser, site in ((amara, "st-anna"), (mateu, "vall-verde"))
    }
    docker_sites.stack.crash_hub()
    docker_sites.stack.start_hub_again()
    for browser, site in ((amara, "st-anna"), (mateu, "vall-verde")):
        assert await browser.run_cell("print(3)") == "3\n"
        (server,) = docker_sites.servers(site, user=browser.username)
        assert server["Id"] in {one["Id"] for one in before[browser.username]}


async def test_a_hub_that_is_started_while_a_site_is_cut_off_knows_its_servers_still(
    docker_sites: DockerSites, mateu: Browser
) -> None:
    (before,) = docker_sites.servers("vall-verde", user=mateu.username)
    engine = docker_sites.engines["vall-verde"]
    engine.freeze()
    try:
        docker_sites.stack.crash_hub()
        docker_sites.stack.start_hub_again()
        async with asyncio.timeout(90), httpx.AsyncClient(base_url=docker_sites.stack.origin) as anybody:
            while (await anybody.get(f"/user/{mateu.username}/api")).status_code != httpx.codes.OK:  # noqa: ASYNC110
                await asyncio.sleep(1)  # until the Hub has given up to ask: the server is taken to run on
        assert await mateu.run_cell("print(4)") == "4\n"  # what is cut off is the engine
    finally:
        engine.thaw()
    assert await mateu.run_cell("print(5)") == "5\n"
    (after,) = docker_sites.servers("vall-verde", user=mateu.username)
    assert after["Id"] == before["Id"]


async def test_a_server_that_could_not_be_stopped_goes_once_its_site_answers(docker_sites: DockerSites) -> None:
    clara = await logged_in(COLLEAGUES[1], docker_sites)
    await start_in_the_end(clara)
    engine = docker_sites.engines["vall-verde"]
    engine.freeze()
    try:
        with contextlib.suppress(StepError):  # where the Hub answers before it has given up, nothing is raised
            await clara.stop_server()
    finally:
        engine.thaw()
    async with asyncio.timeout(120):
        while docker_sites.servers("vall-verde", user=clara.username):  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(1)
    await clara.close()
