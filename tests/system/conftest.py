"""The whole stack, started once: identity provider, Hub, proxy, service. Tests use projects of their own in it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from federator.ports import free_port
from playwright.async_api import Browser, async_playwright

from examples.demo.browser import Browser as Person
from examples.demo.data import pool_tables, write_wisconsin_sites
from examples.demo.deployment import DatasetFolder
from examples.demo.people import RESEARCHERS, STEWARDS
from examples.demo.scenario import Study
from examples.demo.stack import ROOT, Stack, embedded_sites, running_stack
from tests.conftest import CHROMIUM
from tests.fakes.engines import BuildEngine
from tests.system.docker_sites import DockerSites, running_docker_sites, running_engines
from tests.system.visitors import QUIET

OUTPUT = ROOT / "test-output"


@pytest.fixture(scope="session")
def study_and_dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, DatasetFolder]:
    folder = tmp_path_factory.mktemp("wisconsin")
    sites = [one.site for one in RESEARCHERS]
    skew = write_wisconsin_sites(folder)
    folders = {site: folder / site for site in sites}
    pooled = tmp_path_factory.mktemp("pooled")
    pool_tables(pooled, [*folders.values()])
    dataset = DatasetFolder("biopsies", "Fine-needle aspirates", skew, folders)
    notebook = ROOT / "hub_service" / "starters" / "tabular.ipynb"
    return Study("Breast aspirates", notebook, dataset.name, 10, skew, pooled), dataset


@pytest.fixture(scope="session")
def study(study_and_dataset: tuple[Study, DatasetFolder]) -> Study:
    return study_and_dataset[0]


@pytest.fixture(scope="session")
def stack(study_and_dataset: tuple[Study, DatasetFolder], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A running stack; its logs are kept below test-output."""
    folder: Path = OUTPUT / "stack"
    with running_stack(folder, embedded_sites(study_and_dataset[1]), port=free_port()) as running:
        yield running


@pytest.fixture(scope="module")
async def people(stack: Stack) -> AsyncIterator[dict[str, Person]]:
    """The researchers, whose servers run, and the stewards, by user name: logged in."""
    browsers = {one.username: Person(one.username, one.subject, stack.origin) for one in (*RESEARCHERS, *STEWARDS)}
    await asyncio.gather(*(one.log_in() for one in browsers.values()))
    await asyncio.gather(*(browsers[one.username].start_server() for one in RESEARCHERS))
    yield browsers
    for one in browsers.values():
        await one.close()


@pytest.fixture(scope="module")
async def chromium() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        await browser.close()


@pytest.fixture(scope="session")
def docker_sites(study_and_dataset: tuple[Study, DatasetFolder], build_engine: BuildEngine) -> Iterator[DockerSites]:
    """A running stack with hospitals on Docker engines; its logs are kept below test-output."""
    for folder in study_and_dataset[1].folders.values():
        _let_everybody_write(folder)
    with (
        running_engines(build_engine) as engines,
        running_docker_sites(OUTPUT / "docker-sites", study_and_dataset[1].folders, engines, build_engine) as running,
    ):
        yield running


def _let_everybody_write(folder: Path) -> None:
    """So that it is the read-only mount, and nothing else, that keeps a server from writing."""
    folder.chmod(0o777)
    for path in folder.iterdir():
        path.chmod(0o666)
