"""The line of JupyterLab's status bar that shows this server's Flower clients, and the ways to the Hub's pages."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from federator.contract import Assignment, ClientState, MemberState, Participant, RunStatus, RunSummary
from playwright.async_api import Page, async_playwright, expect

from tests.conftest import CHROMIUM, ROOT
from tests.fakes.notebook_server import ALL_BUT_LAB, NotebookServer, notebook_server, use_home
from tests.fakes.service import FakeService

SCREENSHOTS = ROOT / "test-output" / "screenshots"
KERNEL = "0f0c4a52-6b5d-4c55-9f43-222222222222"
ASSIGNMENT = Assignment("part1", "proj1", "Lungs", "north", "slides", KERNEL, "ab" * 32)
PAGE = "/services/federation/projects/proj1"


@pytest.fixture
def service() -> Iterator[FakeService]:
    with FakeService().running() as fake:
        fake.add_project("proj1", "Lungs & more")
        client_is(fake, ClientState.READY)
        yield fake


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    use_home(monkeypatch, tmp_path)
    return tmp_path


@pytest.fixture
async def server(service: FakeService, home: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[NotebookServer]:
    enter(service, monkeypatch)
    async with notebook_server(home) as running:
        yield running


def enter(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in service.environment().items():
        monkeypatch.setenv(name, value)


def client_is(service: FakeService, state: ClientState) -> None:
    service.participants["proj1"]["me"] = Participant(
        "me", "member", MemberState.JOINED, "north", "North", "slides", "part1", client=state
    )


def run_is_at(service: FakeService, phase: str) -> None:
    run = RunSummary("run1", 1, RunStatus.RUNNING, 10, 3, phase, "me", "2026-11-24T12:00:00+00:00")
    service.start_run("proj1", 10, compare=False)
    run_id, (project_id, detail) = next(iter(service.runs.items()))
    service.runs[run_id] = (project_id, replace(detail, summary=replace(run, id=run_id)))


async def status(server: NotebookServer) -> httpx.Response:
    return await server.http.get("federator/status")


async def clients(server: NotebookServer) -> list[dict[str, str]]:
    found: list[dict[str, str]] = (await status(server)).json()["clients"]
    return found


async def test_the_status_says_what_each_client_does(service: FakeService, server: NotebookServer) -> None:
    assert (await status(server)).json() == {"projects_url": "/services/federation/", "clients": []}
    service.assign(ASSIGNMENT)
    await server.until(lambda: clients(server))
    assert await clients(server) == [{"project": "Lungs & more", "state": "ready", "detail": "", "url": PAGE}]
    client_is(service, ClientState.WORKING)
    run_is_at(service, "round 3 of 10")
    assert [(one["state"], one["detail"]) for one in await clients(server)] == [("working", "round 3 of 10")]


async def test_the_status_says_when_the_hub_is_away(service: FakeService, server: NotebookServer) -> None:
    service.assign(ASSIGNMENT)
    await server.until(lambda: clients(server))
    service.answer_all_with(503)
    assert await clients(server) == [
        {"project": "Lungs", "state": "offline", "detail": "the Hub does not answer", "url": PAGE}
    ]


async def test_only_the_servers_own_people_read_it(server: NotebookServer) -> None:
    async with httpx.AsyncClient(base_url=server.http.base_url) as stranger:
        assert (await stranger.get("federator/status")).status_code == httpx.codes.FORBIDDEN


async def test_a_server_of_no_federation_has_no_status(home: Path) -> None:
    async with notebook_server(home) as server:
        assert (await status(server)).status_code == httpx.codes.NOT_FOUND


async def test_a_hub_at_another_host_is_linked_there(
    service: FakeService, server: NotebookServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTERHUB_HOST", "https://hub.example")
    assert (await status(server)).json()["projects_url"] == "https://hub.example/services/federation/"


# --- in JupyterLab


@pytest.fixture
async def lab(service: FakeService, home: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Page]:
    """JupyterLab's page, of a server with a client."""
    enter(service, monkeypatch)
    service.assign(ASSIGNMENT)
    async with notebook_server(home, without=ALL_BUT_LAB) as server, async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        page = await browser.new_page(viewport={"width": 1280, "height": 800})
        await page.goto(f"{server.http.base_url}lab?token=notebook&reset")
        yield page
        await browser.close()


@pytest.mark.needs_browser
async def test_jupyterlab_shows_the_client_and_leads_to_the_hub(service: FakeService, lab: Page) -> None:
    client = lab.locator(".federator-status a")
    await expect(client).to_have_text("Flower: Lungs & more - ready", timeout=60_000)
    assert await client.get_attribute("href") == PAGE
    assert await client.get_attribute("target") == "_blank"
    client_is(service, ClientState.WORKING)
    run_is_at(service, "round 3 of 10")
    await expect(client).to_have_text("Flower: Lungs & more - working, round 3 of 10", timeout=30_000)

    card = lab.locator(".jp-LauncherCard", has_text="Federation projects")
    await expect(card).to_be_visible()
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    await lab.screenshot(path=SCREENSHOTS / "jupyterlab-status.png")
    async with lab.context.expect_page() as opened:
        await card.click()
    assert "/services/federation" in (await opened.value).url

    await lab.keyboard.press("Control+Shift+C")
    await lab.locator("#command-palette input, .lm-CommandPalette-input").first.fill("Federation projects")
    await expect(lab.locator(".lm-CommandPalette-item", has_text="Federation projects").first).to_be_visible()


@pytest.mark.needs_browser
async def test_jupyterlab_of_no_federation_is_as_it_was(home: Path) -> None:
    async with notebook_server(home, without=ALL_BUT_LAB) as server, async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = await browser.new_page()
        await page.goto(f"{server.http.base_url}lab?token=notebook&reset")
        await expect(page.locator(".jp-LauncherCard").first).to_be_visible(timeout=60_000)
        await expect(page.locator(".federator-status")).to_have_count(0)
        await expect(page.locator(".jp-LauncherCard", has_text="Federation projects")).to_have_count(0)
        await browser.close()
