"""Sites that are nodes of a Docker Swarm, through the whole stack: an engine that is a Swarm of one node, and a Hub.

St. Anna's label is on the node; Vall Verde's is on none.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from federator.ports import free_port

from examples.demo.browser import Browser, StepError
from examples.demo.deployment import Ports
from examples.demo.people import COLLEAGUES, RESEARCHERS, Person
from examples.demo.stack import ROOT, Stack, WriteDeployment, running_stack
from tests.fakes.engines import ENGINES, TLS_PORT, BuildEngine, Engine, bind
from tests.system.docker_sites import SINGLEUSER_IMAGE, DockerSites, deployment_tables

pytestmark = [pytest.mark.needs_docker, pytest.mark.needs_node]

AMARA, MATEU, _ = RESEARCHERS
JONAS = COLLEAGUES[0]
SITES = (AMARA.site, MATEU.site)
IMAGE = "notebook-federator/singleuser:swarm"  # a name of its own, for a test to take away
HUB_NAME = "hub.federation.example"
SECONDS_TO_A_REFUSAL = 10
SECONDS_TO_TIDY_UP = 30


@dataclass
class Swarm:
    """A running stack and the one node of its Swarm.

    Attributes:
        port: of the Hub.
        data: St. Anna's dataset, a folder of the node.
    """

    engine: Engine
    stack: Stack
    port: int
    data: Path

    def services(self, person: Person) -> list[dict[str, Any]]:
        """The person's services, as `docker service inspect` shows them."""
        found = self.engine.docker("service", "ls", "--quiet", *_of(person)).split()
        return self._inspected("service", *found) if found else []

    def container(self, person: Person) -> dict[str, Any]:
        """The person's one container on the node, as `docker inspect` shows it."""
        (found,) = self.container_ids(person)
        return self._inspected("container", found)[0]

    def container_ids(self, person: Person) -> list[str]:
        """The person's containers on the node, running or not."""
        return self.engine.docker("ps", "--all", "--quiet", "--no-trunc", *_of(person)).split()

    def _inspected(self, kind: str, *names: str) -> list[dict[str, Any]]:
        inspected: list[dict[str, Any]] = json.loads(self.engine.docker(kind, "inspect", *names))
        return inspected

    async def has_failed(self, service: str) -> None:
        """The node tells the manager some time after its container has ended."""
        async with asyncio.timeout(SECONDS_TO_TIDY_UP):
            while True:
                if self.engine.docker("service", "ps", "--format", "{{.CurrentState}}", service).startswith("Failed"):
                    return
                await asyncio.sleep(0.1)

    async def tidied_up(self, person: Person) -> None:
        """The node removes an ended container some time after it has said that it ended."""
        async with asyncio.timeout(SECONDS_TO_TIDY_UP):
            while True:
                if not self.container_ids(person):
                    return
                await asyncio.sleep(0.1)

    async def browser(self, person: Person) -> Browser:
        browser = Browser(person.username, person.subject, self.stack.origin)
        await browser.log_in()
        return browser


def _of(person: Person) -> tuple[str, str]:
    return ("--filter", f"label=org.notebook-federator.user={person.username}")


@pytest.fixture(scope="module")
def swarm(build_engine: BuildEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    data = tmp_path_factory.mktemp("swarm") / "biopsies"
    data.mkdir()  # one that a server's user may read, unlike the folder that pytest makes
    (data / "train.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    for left in ("swarm", "network"):  # by a test run that was killed
        shutil.rmtree(ENGINES / "swarm" / "docker" / left, ignore_errors=True)
    engine = Engine(ENGINES / "swarm", options=("--no-new-privileges",))
    # A node asks the registry for an image that is named by tag. There is no registry; this resolver says so at once.
    engine.nameserver = "127.0.0.1"
    with engine:
        engine.load(SINGLEUSER_IMAGE, build_engine)
        engine.docker("tag", SINGLEUSER_IMAGE, IMAGE)
        port = free_port()
        make_swarm(engine, port)
        try:
            write = deployment_of(engine, build_engine, data)
            with running_stack(ROOT / "test-output" / "swarm", write, port=port) as stack:
                yield Swarm(engine, stack, port, data)
        finally:
            engine.docker("swarm", "leave", "--force")


def make_swarm(engine: Engine, port: int) -> None:
    """The commands of docs/swarm.md."""
    engine.docker("swarm", "init", "--advertise-addr", engine.address, "--dispatcher-heartbeat", "1m")
    engine.docker("node", "update", "--label-add", "site=st-anna", node_of(engine))
    script = subprocess.run(
        [sys.executable, "-m", "spawner.site", "up", "--hub", f"{engine.hub_address}:{port}", "--print"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    engine.on_host("sh", "-s", "rules", stdin=script)
    engine.docker(
        *("network", "create", "--config-only"),
        *("--opt", "com.docker.network.bridge.name=nfed0", "--opt", "com.docker.network.bridge.enable_icc=false"),
        "federation-node",
    )
    engine.docker(
        *("network", "create", "--driver", "bridge", "--scope", "swarm", "--attachable"),
        *("--config-from", "federation-node", "federation"),
    )


def node_of(engine: Engine) -> str:
    return engine.docker("node", "ls", "--quiet").strip()


def deployment_of(engine: Engine, build: BuildEngine, data: Path) -> WriteDeployment:
    """Two of the Docker sites, as sites of the Swarm."""

    def write(folder: Path, ports: Ports, proxy_command: Sequence[str]) -> Path:
        as_docker_sites = DockerSites(dict.fromkeys(SITES, engine), build, ports.public)
        tables = deployment_tables(as_docker_sites, dict.fromkeys(SITES, data), ports, proxy_command)
        for site in tables["sites"].values():
            site.pop("gpus", None)
            site |= {
                "kind": "swarm",
                "image": IMAGE,
                "hub_url": f"http://{HUB_NAME}:{ports.public}",
                "hub_address": engine.hub_address,
            }
        path = folder / "deployment.toml"
        path.write_text(tomli_w.dumps(tables), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="module")
async def amara(swarm: Swarm) -> AsyncIterator[Browser]:
    """A researcher of St. Anna with a running server."""
    browser = await swarm.browser(AMARA)
    await browser.start_server()
    yield browser
    await browser.stop_server()
    await browser.close()


@pytest.fixture
async def jonas(swarm: Swarm) -> AsyncIterator[Browser]:
    """Another one, without a server."""
    browser = await swarm.browser(JONAS)
    yield browser
    await browser.close()


# --- what a server is


async def test_a_server_is_one_task_on_the_sites_node(swarm: Swarm, amara: Browser) -> None:
    assert await amara.run_cell("print(6 * 7)") == "42\n"
    (service,) = swarm.services(AMARA)
    spec = service["Spec"]
    labels = {"hub": swarm.stack.origin, "server": "", "site": "st-anna", "user": amara.username}
    assert spec["Labels"] == {f"org.notebook-federator.{name}": value for name, value in labels.items()}
    assert spec["Mode"] == {"Replicated": {"Replicas": 1}}
    task = spec["TaskTemplate"]
    assert task["Placement"]["Constraints"] == ["node.labels.site==st-anna"]
    assert task["RestartPolicy"]["Condition"] == "none"
    assert spec["EndpointSpec"]["Ports"] == [{"Protocol": "tcp", "TargetPort": 8888, "PublishMode": "host"}]
    container = swarm.container(AMARA)
    assert container["Config"]["Labels"]["com.docker.swarm.node.id"] == node_of(swarm.engine)


async def test_a_server_may_do_little(swarm: Swarm, amara: Browser) -> None:
    container = swarm.container(AMARA)
    host = container["HostConfig"]
    assert (container["Config"]["Image"], container["Config"]["User"]) == (IMAGE, "1000:100")
    assert (host["ReadonlyRootfs"], host["Privileged"], host["CapAdd"], host["CapDrop"]) == (True, False, None, ["ALL"])
    assert (host["Memory"], host["NanoCpus"], host["PidsLimit"]) == (3 * 1024**3, 10**9, 4096)
    assert (host["PidMode"], host["IpcMode"], host["Init"]) == ("", "private", True)
    assert host["Dns"] == ["127.0.0.1"]
    assert host["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "2"}}
    assert list(container["NetworkSettings"]["Networks"]) == ["federation"]
    mounts = {mount["Destination"]: (mount["Type"], mount["RW"]) for mount in container["Mounts"]}
    assert mounts == {
        "/data/biopsies": ("bind", False),
        "/home/jovyan": ("volume", True),
        "/tmp": ("tmpfs", True),  # noqa: S108
        "/dev/shm": ("tmpfs", True),  # noqa: S108
    }


async def test_the_nodes_own_setting_locks_privileges(amara: Browser) -> None:
    """Docker 20.10 cannot be told to by a service; `no-new-privileges` of the node's daemon does it."""
    status = await amara.run_cell("print(open('/proc/self/status').read())")
    assert "NoNewPrivs:\t1" in status
    assert "CapBnd:\t0000000000000000" in status


@pytest.mark.parametrize(
    "statement",
    [
        "open('/data/biopsies/new.csv', 'w')",
        "open('/data/biopsies/train.csv', 'a')",
        "open('/etc/passwd', 'a')",
        "os.setuid(0)",
    ],
)
async def test_data_and_system_cannot_be_written(amara: Browser, statement: str) -> None:
    assert await amara.run_cell("print(open('/data/biopsies/train.csv').read())") == "a,b\n1,2\n\n"
    with pytest.raises(StepError, match=r"OSError|PermissionError"):
        await amara.run_cell(f"import os\n{statement}")


async def test_nothing_answers_a_server_but_the_hub(swarm: Swarm, amara: Browser) -> None:
    engine = swarm.engine
    with (
        bind(socket.SOCK_STREAM, engine.hub_address, 0) as other,
        bind(socket.SOCK_STREAM, engine.internet_address, 0) as far,
    ):
        targets = {
            "hub": (HUB_NAME, swarm.port),
            "another port of the Hub's host": other.getsockname(),
            "internet": far.getsockname(),
            "engine": (engine.address, TLS_PORT),
            "swarm": (engine.address, 2377),
        }
        answered = json.loads(await amara.run_cell(REACH.format(targets=list(targets.values()))))
    assert {name for name, reached in zip(targets, answered, strict=True) if reached} == {"hub"}
    with pytest.raises(StepError, match="gaierror"):
        await amara.run_cell("import socket\nsocket.getaddrinfo('www.example.org', 443)")


REACH = """
import json, socket

def reached(host, port):
    try:
        socket.create_connection((host, port), 3).close()
    except OSError:
        return False
    return True

print(json.dumps([reached(*target) for target in {targets}]))
"""


async def test_the_nodes_administrator_can_check(swarm: Swarm) -> None:
    """`python -m spawner.site check` on the servers' network: every probe from a container there as expected."""
    engine = swarm.engine
    command = [sys.executable, "-m", "spawner.site", "check", "--hub", f"{engine.hub_address}:{swarm.port}"]
    engine.on_host(*command, "--image", IMAGE, "--internet", engine.internet_address, "--docker-host", engine.host)


# --- its life


async def test_a_stopped_server_leaves_its_persons_files_and_nothing_else(swarm: Swarm, jonas: Browser) -> None:
    for statement in ("open('kept.txt', 'w').write('mine')", "assert open('kept.txt').read() == 'mine'"):
        await jonas.start_server()
        await jonas.run_cell(statement)
        await jonas.stop_server()
        assert swarm.services(JONAS) == []
        await swarm.tidied_up(JONAS)


async def test_a_server_that_ends_is_noticed_and_not_started_by_the_swarm(swarm: Swarm, jonas: Browser) -> None:
    await jonas.start_server()
    (service,) = swarm.services(JONAS)
    swarm.engine.docker("kill", *swarm.container_ids(JONAS))
    await swarm.has_failed(service["ID"])
    await jonas.start_server()
    (another,) = swarm.services(JONAS)
    assert another["ID"] != service["ID"]
    assert await jonas.run_cell("print(1)") == "1\n"
    await jonas.stop_server()


# --- what cannot be started is told in words, and at once


async def refusal(browser: Browser) -> str:
    with pytest.raises(StepError) as refused:
        async with asyncio.timeout(SECONDS_TO_A_REFUSAL):
            await browser.start_server()
    return str(refused.value)


async def test_a_site_without_a_node_is_refused(swarm: Swarm) -> None:
    mateu = await swarm.browser(MATEU)
    text = await refusal(mateu)
    assert "Vall Verde Cancer Institute could not start your server: no machine of the Swarm carries its label" in text
    assert "docker node update --label-add site=vall-verde" in text
    assert "Robin Hale" in text
    assert swarm.services(MATEU) == []
    await mateu.close()


async def test_a_folder_that_is_not_there_is_named(swarm: Swarm, jonas: Browser) -> None:
    away = swarm.data.rename(swarm.data.with_name("away"))
    try:
        text = await refusal(jonas)
    finally:
        away.rename(swarm.data)
    assert f"St. Anna Hospital could not start your server: the folder {swarm.data} of one of its datasets" in text
    assert "Ingrid Solberg" in text
    assert swarm.services(JONAS) == []


async def test_an_image_that_is_not_there_is_named(swarm: Swarm, jonas: Browser) -> None:
    swarm.engine.docker("rmi", IMAGE)
    try:
        text = await refusal(jonas)
    finally:
        swarm.engine.docker("tag", SINGLEUSER_IMAGE, IMAGE)
    assert f"it does not have the notebook image, and could not fetch it ({IMAGE})" in text


# --- the Hub's own faults


async def test_servers_outlive_the_hub(swarm: Swarm, amara: Browser) -> None:
    (before,) = swarm.services(AMARA)
    swarm.stack.crash_hub()
    swarm.stack.start_hub_again()
    assert await amara.run_cell("print(2)") == "2\n"
    (after,) = swarm.services(AMARA)
    assert after["ID"] == before["ID"]
