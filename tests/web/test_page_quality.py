"""Every page, in headless Chromium: accessible wide and as on a phone, light and dark; valid HTML; small.

Screenshots of each are kept below test-output/screenshots/pages: look at them after a change.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from federator.contract import ApprovalState, ClientState, RunStatus
from playwright.async_api import Browser, Page, async_playwright, expect

from hub_service.changes import project_topic
from tests.conftest import CHROMIUM, ROOT
from tests.fakes.hub_pages import FakeHubWithPages
from tests.fakes.web_world import CELL, World, notebook, public_key, served_world
from tests.page_quality import PageTools, page_tools

pytestmark = [pytest.mark.needs_browser, pytest.mark.needs_node, pytest.mark.timeout(300)]

SCREENSHOTS = ROOT / "test-output" / "screenshots" / "pages"
WIDTHS = (1280, 390)
THEMES = ("light", "dark")
# Settles once nothing is wider than the window; the page's own policy forbids Playwright's `wait_for_function`.
FITS = """(width) => new Promise((fits) => {
  const look = () => document.documentElement.scrollWidth <= width ? fits() : requestAnimationFrame(look);
  look();
})"""
FIRST_LOAD = 300 << 10  # bytes over the wire, without plotly

Scene = Callable[[World, Path], Awaitable[tuple[str, str]]]  # -> who looks, at which address
SCENES: dict[str, Scene] = {}


def scene(make: Scene) -> Scene:
    SCENES[make.__name__.replace("_", "-")] = make
    return make


@scene
async def projects_empty(world: World, folder: Path) -> tuple[str, str]:
    return "ada", ""


@scene
async def projects_without_a_site(world: World, folder: Path) -> tuple[str, str]:
    return "nowhere", ""


@scene
async def projects(world: World, folder: Path) -> tuple[str, str]:
    project_id, _ = await world.shared_project()
    world.report_round(project_id, world.start_run(project_id), 1)
    world.project(name="Retina")
    await world.coordinator.invite(world.principal("ben"), world.project("ben", "Knees <and> hips"), "ada")
    return "ada", ""


@scene
async def new_project(world: World, folder: Path) -> tuple[str, str]:
    return "ada", "projects/new"


@scene
async def project_empty(world: World, folder: Path) -> tuple[str, str]:
    return "ada", f"projects/{world.project()}"


@scene
async def project_waiting(world: World, folder: Path) -> tuple[str, str]:
    project_id = world.project()
    world.add_app(project_id)
    await world.coordinator.invite(world.principal("ada"), project_id, "ben")
    world.coordinator.join(world.principal("ada"), project_id, "slides")
    return "ada", f"projects/{project_id}"


@scene
async def project_invited(world: World, folder: Path) -> tuple[str, str]:
    project_id, _ = await world.shared_project()
    await world.coordinator.invite(world.principal("ada"), project_id, "cleo")
    return "cleo", f"projects/{project_id}"


@scene
async def project_rejected(world: World, folder: Path) -> tuple[str, str]:
    project_id, fab_hash = await world.shared_project()
    world.coordinator.decide(
        world.principal("sue"), project_id, fab_hash, "slides", "south", ApprovalState.REVOKED, "It reads too much."
    )
    return "ben", f"projects/{project_id}"


@scene
async def project_ready(world: World, folder: Path) -> tuple[str, str]:
    project_id, _ = await world.shared_project()
    world.make_ready(project_id)
    return "ada", f"projects/{project_id}"


@scene
async def project_client_failed(world: World, folder: Path) -> tuple[str, str]:
    project_id, _ = await world.shared_project()
    world.make_ready(project_id)
    world.coordinator.report_client(
        world.principal("ben"),
        world.participation(project_id, "ben"),
        ClientState.FAILED,
        "The app needs a GPU, and this site has none.",
    )
    return "ada", f"projects/{project_id}"


@scene
async def project_running(world: World, folder: Path) -> tuple[str, str]:
    project_id, _ = await world.shared_project()
    run_id = world.start_run(project_id)
    for number in (1, 2):
        world.report_round(project_id, run_id, number)
    return "ada", f"projects/{project_id}"


@scene
async def project_finished(world: World, folder: Path) -> tuple[str, str]:
    project_id, _ = await world.shared_project()
    run_id = world.start_run(project_id)
    for number in (1, 2, 3):
        world.report_round(project_id, run_id, number)
    world.finish_run(project_id, run_id, b"weights", folder)
    return "ben", f"projects/{project_id}"


@scene
async def project_failed(world: World, folder: Path) -> tuple[str, str]:
    project_id, _ = await world.shared_project()
    run_id = world.start_run(project_id)
    world.report_round(project_id, run_id, 1)
    run = world.store.run(run_id)
    assert run is not None
    why = "North Hospital ended: out of memory in round 2. Use a smaller batch."
    world.store.put_run(replace(run, status=RunStatus.FAILED, phase="failed", message=why, finished_at=world.clock[0]))
    world.changes.announce(project_topic(project_id))
    return "ada", f"projects/{project_id}"


@scene
async def project_with_supernode(world: World, folder: Path) -> tuple[str, str]:
    project_id, _ = await world.supernode_project()
    await world.coordinator.invite(world.principal("ada"), project_id, "stan")
    return "stan", f"projects/{project_id}"


@scene
async def project_delete(world: World, folder: Path) -> tuple[str, str]:
    project_id, _ = await world.shared_project()
    run_id = world.start_run(project_id)
    world.report_round(project_id, run_id, 1)
    world.finish_run(project_id, run_id, b"weights", folder)
    return "ada", f"projects/{project_id}/delete"


@scene
async def approvals_of_no_site(world: World, folder: Path) -> tuple[str, str]:
    return "ada", "approvals"


@scene
async def approvals_none(world: World, folder: Path) -> tuple[str, str]:
    return "norma", "approvals"


@scene
async def approvals(world: World, folder: Path) -> tuple[str, str]:
    project_id, _ = await world.shared_project()
    world.add_app(project_id, source=cell_with("# newer"))
    return "norma", "approvals"


@scene
async def approvals_with_supernodes(world: World, folder: Path) -> tuple[str, str]:
    await world.supernode_project()
    return "stan", "approvals"


@scene
async def review(world: World, folder: Path) -> tuple[str, str]:
    project_id, _ = await world.shared_project()
    fab_hash = world.add_app(project_id, source=cell_with("# newer"))
    return "norma", f"approvals/{project_id}/{fab_hash}/north/slides"


@scene
async def review_approved(world: World, folder: Path) -> tuple[str, str]:
    project_id, fab_hash = await world.shared_project()
    return "norma", f"approvals/{project_id}/{fab_hash}/north/slides"


@scene
async def review_with_supernode(world: World, folder: Path) -> tuple[str, str]:
    project_id, _ = await world.supernode_project()
    fab_hash = world.store.app_versions(project_id)[-1].fab_hash
    return "stan", f"approvals/{project_id}/{fab_hash}/harbour/slides"


@scene
async def node(world: World, folder: Path) -> tuple[str, str]:
    _, participation_id = await world.supernode_project()
    return "stan", f"participations/{participation_id}/node"


@scene
async def node_registered(world: World, folder: Path) -> tuple[str, str]:
    _, participation_id = await world.supernode_project()
    world.coordinator.register_node(world.principal("stan"), participation_id, public_key().encode())
    return "stan", f"participations/{participation_id}/node"


@scene
async def version(world: World, folder: Path) -> tuple[str, str]:
    project_id, fab_hash = await world.shared_project()
    return "ada", f"projects/{project_id}/apps/{fab_hash}"


@scene
async def error(world: World, folder: Path) -> tuple[str, str]:
    return "ada", "none"


@scene
async def administration_empty(world: World, folder: Path) -> tuple[str, str]:
    return "robin", "administration"


@scene
async def administration(world: World, folder: Path) -> tuple[str, str]:
    project_id, _ = await world.shared_project()
    run_id = world.start_run(project_id)
    world.report_round(project_id, run_id, 1)
    for one in (project_id, "a-project-that-is-gone"):
        await world.backend.start(one)
    world.coordinator.report_client(
        world.principal("ben"), world.participation(project_id, "ben"), ClientState.FAILED, "No GPU."
    )
    world.project("ben", "Knees <and> hips")
    return "robin", "administration"


@scene
async def panel_of_an_administrator(world: World, folder: Path) -> tuple[str, str]:
    return "robin", "../../hub/home"


@scene
async def panel_empty(world: World, folder: Path) -> tuple[str, str]:
    return "ada", "../../hub/home"


@scene
async def panel(world: World, folder: Path) -> tuple[str, str]:
    project_id, _ = await world.shared_project()
    world.start_run(project_id)
    world.add_app(project_id, source=cell_with("# newer"))
    await world.coordinator.invite(world.principal("ada"), project_id, "norma")
    world.project("norma", "Retina")
    return "norma", "../../hub/home"


@scene
async def panel_refused(world: World, folder: Path) -> tuple[str, str]:
    return "visitor", "../../hub/home"


def cell_with(more: str) -> str:
    return f"{CELL}{more}\n"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with served_world(tmp_path, FakeHubWithPages()) as world:
        yield world


@pytest.fixture(scope="module")
def tools() -> PageTools:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    return page_tools()


@pytest.fixture(scope="module")
async def chromium() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        yield browser
        await browser.close()


async def opened(chromium: Browser, world: World, person: str) -> Page:
    """A page of the person's own, in their time zone, without motion, so that no colour is half-way to another."""
    context = await chromium.new_context(
        viewport={"width": 1280, "height": 900}, reduced_motion="reduce", timezone_id="Europe/Madrid", locale="en-GB"
    )
    origin = world.url.partition("/services")[0]
    await context.add_cookies([{"name": "fake-hub-login", "value": person, "url": origin}])
    return await context.new_page()


async def settled(page: Page) -> None:
    """Wait for what comes after the page itself: the panel, and the curve of a run that has one."""
    await page.wait_for_load_state("load")
    if await page.locator("#federation-panel").count():
        await expect(page.locator("#federation-panel > *").first).to_be_visible()


async def grave_faults(page: Page, tools: PageTools, name: str) -> list[str]:
    """The page's serious and critical violations at every width, in both themes. Takes the screenshots on the way."""
    faults = []
    for width in WIDTHS:
        await page.set_viewport_size({"width": width, "height": 900})
        for theme in THEMES:
            await page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
            await expect(page.locator("html")).to_have_attribute("data-bs-theme", theme)
            async with asyncio.timeout(10):
                await page.evaluate(FITS, width)
            await page.screenshot(path=SCREENSHOTS / f"{name}-{width}-{theme}.png", full_page=True)
            found = await tools.violations(page)
            faults += [f"{name} at {width}, {theme}: {one}" for one in found if one.grave]
    return faults


@pytest.mark.parametrize("name", SCENES)
async def test_a_page_is_accessible_and_valid(
    world: World, chromium: Browser, tools: PageTools, tmp_path: Path, name: str
) -> None:
    person, address = await SCENES[name](world, tmp_path)
    page = await opened(chromium, world, person)
    answer = await page.goto(world.url + address)
    assert answer is not None
    assert answer.status < 500, answer.status
    await settled(page)
    faults = await grave_faults(page, tools, name)
    await page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    faults += [f"{name}, all open: {one}" for one in await tools.violations(page) if one.grave]
    assert await page.evaluate("document.documentElement.scrollWidth") <= WIDTHS[-1]
    pages = tmp_path / "pages"
    pages.mkdir()
    faults += tools.invalid({name: await answer.text()}, pages)
    await page.context.close()
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("name", ["carried", "preview"])
async def test_a_new_project_in_the_making_is_accessible_and_valid(
    world: World, chromium: Browser, tools: PageTools, tmp_path: Path, name: str
) -> None:
    """Pages that are answers to a form: a notebook's preview, and the form again with the file that came along."""
    page = await opened(chromium, world, "ben")
    await page.goto(f"{world.url}projects/new")
    await page.get_by_label("Name").fill("Lungs")
    chosen = {"name": "lungs & more.ipynb", "mimeType": "application/json", "buffer": notebook()}
    await page.get_by_label("Notebook or Flower app").set_input_files(chosen)  # type: ignore[arg-type]
    async with page.expect_navigation() as shown:
        await page.get_by_role("button", name="Next").click()
    await expect(page.get_by_role("heading", name="Stays", exact=True)).to_be_visible()
    if name == "carried":
        async with page.expect_navigation() as shown:
            await page.get_by_role("button", name="Back").click()
        await expect(page.get_by_text("lungs & more.ipynb is kept")).to_be_visible()
    faults = await grave_faults(page, tools, f"new-project-{name}")
    pages = tmp_path / "pages"
    pages.mkdir()
    faults += tools.invalid({name: await (await shown.value).text()}, pages)
    await page.context.close()
    assert not faults, "\n".join(faults)


async def test_the_first_load_is_small(world: World, chromium: Browser, tools: PageTools) -> None:
    project_id, _ = await world.shared_project()
    page = await opened(chromium, world, "ada")
    await page.goto(world.url)  # logs in; a fresh context below has the cookies and an empty cache
    cookies = await page.context.cookies()
    await page.context.close()
    context = await chromium.new_context()
    await context.add_cookies(cookies)  # type: ignore[arg-type]
    page = await context.new_page()
    devtools = await context.new_cdp_session(page)
    await devtools.send("Network.enable")
    urls: dict[str, str] = {}
    sizes: dict[str, int] = {}
    devtools.on("Network.requestWillBeSent", lambda event: urls.update({event["requestId"]: event["request"]["url"]}))
    devtools.on(
        "Network.loadingFinished",
        lambda event: sizes.update({urls[event["requestId"]]: int(event["encodedDataLength"])}),
    )
    await page.goto(f"{world.url}projects/{project_id}", wait_until="load")
    sent = {url.rpartition("/")[2].partition("?")[0]: size for url, size in sizes.items() if "plotly" not in url}
    seconds = await page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd / 1000")
    (SCREENSHOTS / "first-load.json").write_text(json.dumps({"seconds": seconds, "bytes": sent}, indent=2), "utf-8")
    await context.close()
    assert "federation.css" in sent
    assert sum(sent.values()) < FIRST_LOAD, sent


async def test_the_checks_see_what_is_wrong(chromium: Browser, tools: PageTools, tmp_path: Path) -> None:
    page = await chromium.new_page()
    wrong = '<!DOCTYPE html><html><head><title>t</title></head><body><main><input name="a"><p><div></div></p></main>'
    await page.set_content(wrong)
    assert {"label", "html-has-lang"} <= {one.rule for one in await tools.violations(page) if one.grave}
    assert tools.invalid({"wrong": wrong}, tmp_path)
    await page.close()
