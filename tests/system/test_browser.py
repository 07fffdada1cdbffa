"""One whole journey in headless Chromium, as people see it. Screenshots are kept below test-output/screenshots."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, BrowserContext, Page, async_playwright, expect

from examples.demo.people import COLLEAGUES, RESEARCHERS, STEWARDS, STRANGER, Person
from examples.demo.scenario import Study
from examples.demo.stack import Stack
from tests.conftest import CHROMIUM
from tests.system.conftest import OUTPUT

pytestmark = [pytest.mark.needs_node, pytest.mark.needs_browser, pytest.mark.timeout(600)]

SCREENSHOTS = OUTPUT / "screenshots"
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
PATIENCE_MS = 60_000
# Without these Chromium calls its maker's hosts, which a closed network refuses many at a time.
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# Settles once nothing is wider than the window; the page's own policy forbids Playwright's `wait_for_function`.
FITS = """(width) => new Promise((fits) => {
  const look = () => document.documentElement.scrollWidth <= width ? fits() : requestAnimationFrame(look);
  look();
})"""
OWNER, MEMBER = RESEARCHERS[0], COLLEAGUES[2]
PROJECT = "Breast aspirates, seen by people"


@pytest.fixture(scope="module")
async def chromium() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        await browser.close()


class Visitor:
    """A person with a browser window of their own. Page errors and broken requests are kept, to be asserted on."""

    def __init__(self, person: Person, context: BrowserContext, page: Page, origin: str) -> None:
        self.person, self.context, self.page, self.origin = person, context, page, origin
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    async def log_in(self) -> None:
        await self.page.goto(f"{self.origin}/hub/home")
        await self.page.get_by_role("button", name=re.compile("Sign in")).click()
        await self.page.get_by_role("button", name=self.person.name).click()

    async def look(self, name: str) -> None:
        """Take screenshots of the page, wide and as on a phone."""
        for width, size in (("1280", WIDE), ("390", PHONE)):
            await self.page.set_viewport_size(size)  # type: ignore[arg-type]
            async with asyncio.timeout(PATIENCE_MS / 1000):
                await self.page.evaluate(FITS, size["width"])
            await self.page.screenshot(path=SCREENSHOTS / f"{name}-{width}.png", full_page=True)
        await self.page.set_viewport_size(WIDE)  # type: ignore[arg-type]


async def visitor(chromium: Browser, person: Person, origin: str) -> Visitor:
    context = await chromium.new_context(viewport=WIDE, accept_downloads=True)  # type: ignore[arg-type]
    context.set_default_timeout(PATIENCE_MS)
    return Visitor(person, context, await context.new_page(), origin)


async def start_server(who: Visitor) -> None:
    """Press the button on the Hub's home page and wait for JupyterLab."""
    await who.page.goto(f"{who.origin}/hub/spawn/{who.person.username}")
    await who.page.wait_for_url(re.compile(rf"/user/{who.person.username}/lab"))


async def test_the_journey(chromium: Browser, stack: Stack, study: Study, tmp_path: Path) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    owner = await visitor(chromium, OWNER, stack.origin)
    member = await visitor(chromium, MEMBER, stack.origin)

    await owner.log_in()
    panel = owner.page.locator("#federation-panel")
    await expect(panel.get_by_role("link", name="New project")).to_be_visible()
    await owner.look("home")
    await start_server(owner)
    await member.log_in()
    await start_server(member)

    await create_project(owner, study)
    project_url = owner.page.url
    await owner.page.get_by_role("button", name="Take part").click()
    await owner.page.get_by_label("Invite by Hub name").fill(MEMBER.username)
    await owner.page.get_by_role("button", name="Invite").click()
    await expect(owner.page.get_by_text(MEMBER.username, exact=True)).to_be_visible()
    await owner.look("project-waiting")

    await member.page.goto(f"{stack.origin}/services/federation/")
    await member.look("invited")
    await member.page.get_by_role("link", name="Look and answer").click()
    await member.page.get_by_role("button", name="Take part").click()

    for known in (STEWARDS[0], STEWARDS[2]):
        await approve(await visitor(chromium, known, stack.origin))

    await expect(owner.page.get_by_text("client ready", exact=True)).to_have_count(2, timeout=PATIENCE_MS)
    await see_launcher_tile(owner)
    await owner.page.goto(project_url)
    await owner.page.get_by_role("spinbutton", name="Rounds").fill("4")
    await owner.page.get_by_role("button", name="Start a run").click()

    # Nobody reloads: both pages must show the curve and the result by themselves.
    await expect(member.page.locator("#curve .js-plotly-plot, #curve.js-plotly-plot")).to_be_visible(
        timeout=PATIENCE_MS
    )
    await owner.look("project-running")
    for who in (owner, member):
        await expect(who.page.get_by_role("link", name="Download the model")).to_be_visible(timeout=2 * PATIENCE_MS)
        await expect(who.page.locator("table.result tbody tr")).to_have_count(3)
    await owner.look("project-finished")
    await owner.page.goto(f"{stack.origin}/services/federation/")
    await owner.look("projects")
    await member.page.get_by_text("Rounds in numbers").click()
    async with member.page.expect_download() as download:
        await member.page.get_by_role("link", name="Download the model").click()
    model = tmp_path / "model.safetensors"
    await (await download.value).save_as(model)
    assert model.stat().st_size > 0
    assert owner.errors == []
    assert member.errors == []
    await owner.context.close()
    await member.context.close()


async def create_project(owner: Visitor, study: Study) -> None:
    page = owner.page
    await page.goto(f"{owner.origin}/services/federation/projects/new")
    await owner.look("new-project")
    await page.get_by_label("Name").fill(PROJECT)
    await page.get_by_label("Description").fill("Is this tumour malignant? <b>Markup stays text.</b>")
    await page.get_by_label("Notebook or Flower app").set_input_files(study.notebook)
    await page.get_by_role("button", name="Next").click()
    await expect(page.get_by_role("heading", name="Stays", exact=True)).to_be_visible()
    await owner.look("new-project-preview")
    await page.get_by_role("button", name="Create project").click()
    await expect(page.get_by_role("heading", name=PROJECT)).to_be_visible()
    await expect(page.get_by_text("<b>Markup stays text.</b>")).to_be_visible()


async def approve(steward: Visitor) -> None:
    """Log in as a data steward, follow the panel to the request, read it, approve."""
    await steward.log_in()
    await steward.page.locator("#federation-panel").get_by_role("link", name=re.compile("approval")).click()
    await steward.look(f"approvals-{steward.person.site}")
    request = steward.page.get_by_role("listitem").filter(has_text=PROJECT)
    await request.get_by_role("link", name="Review").click()
    await expect(steward.page.get_by_text("def train").first).to_be_visible()
    await steward.look(f"review-{steward.person.site}")
    await steward.page.get_by_role("button", name="Approve").click()
    assert steward.errors == []
    await steward.context.close()


async def see_launcher_tile(owner: Visitor) -> None:
    """JupyterLab offers the running client as a launcher tile."""
    page = owner.page
    await page.goto(f"{owner.origin}/user/{owner.person.username}/lab?reset")
    tile = page.locator(".jp-LauncherCard", has_text=f"Flower client: {PROJECT}"[:24]).first
    await expect(tile).to_be_visible(timeout=PATIENCE_MS)
    await page.screenshot(path=SCREENSHOTS / "jupyterlab-launcher.png")


async def test_a_person_of_an_unknown_institution_reads_whom_to_ask(chromium: Browser, stack: Stack) -> None:
    stranger = await visitor(chromium, STRANGER, stack.origin)
    await stranger.log_in()
    await expect(stranger.page.get_by_text(STRANGER.institution.domain).first).to_be_visible()
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    await stranger.look("unknown-institution")
    await stranger.context.close()
