"""A Hub of our own configuration, an identity provider, and people with browsers. One of each for a test module."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from federator.ports import free_port

from examples.demo import deployment
from spawner.deployment import CLIENT_SECRET_VARIABLE, CONFIG_VARIABLE, METRICS_TOKEN_VARIABLE
from tests.fakes import echo_service
from tests.fakes.in_process_hub import InProcessHub, start_hub, stop_hub
from tests.hub.actors import HUB_SECRET, METRICS_TOKEN, Browser, IdentityProvider

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def provider() -> Iterator[IdentityProvider]:
    (port,) = free_ports(1)
    with subprocess.Popen(
        [sys.executable, "-m", "examples.demo.identity_provider", "--port", str(port)], cwd=ROOT
    ) as process:
        started = IdentityProvider(port)
        while not started.answers():
            assert process.poll() is None, "the identity provider ended at once"
            time.sleep(0.05)
        yield started
        process.terminate()


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("deployment")


@pytest.fixture(scope="module")
def service_command(request: pytest.FixtureRequest) -> list[str]:
    """What runs as the federation service. A module that wants the real one sets SERVICE_COMMAND."""
    command: list[str] = getattr(request.module, "SERVICE_COMMAND", [sys.executable, echo_service.__file__])
    return command


@pytest.fixture(scope="module")
def configured(provider: IdentityProvider, state: Path) -> Iterator[None]:
    """A deployment of embedded sites, which the environment names."""
    folders = {slug: state / "data" / slug for slug in ("st-anna", "vall-verde", "northside")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    dataset = deployment.DatasetFolder("biopsies", "Biopsies", "The site's own cases.", folders)
    public, hub_port, service, proxy_api = free_ports(4)
    ports = deployment.Ports(public, hub_port, service, proxy_api, int(provider.origin.rpartition(":")[2]))
    config = deployment.write(state, dataset, ports, ["no-such-proxy"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CONFIG_VARIABLE, str(config))
        patch.setenv(CLIENT_SECRET_VARIABLE, HUB_SECRET)
        patch.setenv(METRICS_TOKEN_VARIABLE, METRICS_TOKEN)
        yield


@pytest.fixture(scope="module")
async def hub(configured: None, service_command: list[str]) -> AsyncIterator[InProcessHub]:
    running = await start_hub(service_command)
    yield running
    await stop_hub(running)


@pytest.fixture
async def browser(hub: InProcessHub) -> AsyncIterator[Browser]:
    opened = Browser(hub.bind_url.rstrip("/"))
    yield opened
    await opened.http.aclose()


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, no two the same."""
    found: set[int] = set()
    while len(found) < count:
        found.add(free_port())
    return list(found)
