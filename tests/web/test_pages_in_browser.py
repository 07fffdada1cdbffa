"""The pages' own scripts, in headless Chromium, under the pages' own security policy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.async_api import Browser, ConsoleMessage, Dialog, Page, Route, async_playwright, expect

from hub_service.domain.runs import EventKind, RunEvent
from hub_service.site_stages import Stage
from tests.fakes.hub_pages import FakeHubWithPages
from tests.fakes.web_world import CELL, World, notebook, public_key, served_world

pytestmark = pytest.mark.needs_browser

CHROMIUM = "/usr/bin/chromium"
WIDTHS = (1280, 390)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with served_world(tmp_path, FakeHubWithPages()) as world:
        yield world


@pytest.fixture(scope="module")
async def chromium() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        yield browser
        await browser.close()


@dataclass
class Visit:
    """Opens pages of people's browsers, and notes what their scripts or their security policy complain of."""

    world: World
    chromium: Browser
    faults: list[str] = field(default_factory=list)

    @property
    def origin(self) -> str:
        return self.world.url.partition("/services")[0]

    @asynccontextmanager
    async def page(self, name: str, width: int = 1280) -> AsyncIterator[Page]:
        context = await self.chromium.new_context(viewport={"width": width, "height": 900})
        await context.add_cookies([{"name": "fake-hub-login", "value": name, "url": self.origin}])
        page = await context.new_page()
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("console", self._note)
        try:
            yield page
        finally:
            await context.close()

    def _note(self, message: ConsoleMessage) -> None:
        # The browser also reports each 403 and 404 that is asked for here.
        if message.type == "error" and "the server responded with a status" not in message.text:
            self.faults.append(message.text)


@pytest.fixture
def visit(world: World, chromium: Browser) -> Iterator[Visit]:
    visit = Visit(world, chromium)
    yield visit
    assert not visit.faults


async def test_the_page_is_live_and_keeps_what_a_person_is_typing(world: World, visit: Visit, tmp_path: Path) -> None:
    project_id, _ = await world.shared_project()
    async with visit.page("ada") as page:
        await page.goto(f"{world.url}projects/{project_id}")
        await page.fill("#run-rounds", "42")
        await page.uncheck("#compare")
        await page.focus("#run-rounds")
        world.make_ready(project_id)
        await expect(page.locator("#participants")).to_contain_text("client ready")
        assert await page.input_value("#run-rounds") == "42"

        world.add_app(project_id, source=CELL + "# newer")
        await expect(page.locator("#versions")).to_contain_text("Version 2")
        assert not await page.is_checked("#compare")
        assert await page.evaluate("document.activeElement.id") == "run-rounds"

        world.coordinator.remove_member(world.principal("ada"), project_id, "ben")
        await expect(page.locator("#participants")).to_contain_text("removed")


async def test_the_curve_is_drawn_and_the_result_follows_without_a_reload(
    world: World, visit: Visit, tmp_path: Path
) -> None:
    project_id, _ = await world.shared_project()
    run_id = world.start_run(project_id)
    async with visit.page("ben") as page:
        await page.goto(f"{world.url}projects/{project_id}")
        await page.evaluate("window.sameDocument = true")
        for number in (1, 2):
            world.report_round(project_id, run_id, number)
            await expect(page.locator("#curve .scatterlayer .trace")).to_have_count(3)
            await expect(page.locator("#curve .scatterlayer .trace").first.locator(".point")).to_have_count(number)
        world.finish_run(project_id, run_id, b"weights", tmp_path)
        await expect(page.locator("#result")).to_contain_text("North Hospital alone")
        assert await page.evaluate("window.sameDocument")
        async with page.expect_download() as download:
            await page.click("text=Download the model")
        assert (await download.value).suggested_filename == f"{run_id}.safetensors"

        world.coordinator.remove_member(world.principal("ada"), project_id, "ben")
        await expect(page.locator("h1")).to_have_text("404 : Not Found")


async def test_a_page_stays_while_the_service_restarts(world: World, visit: Visit) -> None:
    """What was typed is still there, and the page is live again once the service is back."""
    project_id, _ = await world.shared_project()
    asked: list[str] = []

    async def refuse(route: Route) -> None:
        if route.request.is_navigation_request():
            await route.continue_()
            return
        asked.append(route.request.resource_type)
        await route.fulfill(status=503, content_type="text/html", body="Service Unavailable")

    async with visit.page("ada") as page:
        await page.route(f"**/projects/{project_id}*", refuse)
        await page.route(f"**/projects/{project_id}/events*", refuse)
        await page.goto(f"{world.url}projects/{project_id}")
        await page.evaluate("window.sameDocument = true")
        await page.fill("#run-rounds", "42")
        await expect(page.locator("#connection")).to_be_visible()
        async with asyncio.timeout(20):
            while asked.count("fetch") < 2:
                await page.wait_for_event("requestfinished")
        await page.unroute_all()
        await expect(page.locator("#connection")).to_be_hidden(timeout=20_000)
        world.make_ready(project_id)
        await expect(page.locator("#participants")).to_contain_text("client ready")
        assert await page.input_value("#run-rounds") == "42"
        assert await page.evaluate("window.sameDocument")
    assert asked[:2] == ["eventsource", "fetch"]


@pytest.mark.parametrize("stale", [True, False])
async def test_a_login_that_has_ended_brings_a_fresh_page(world: World, visit: Visit, stale: bool) -> None:
    """As does a token of before a second login in another tab. It is not fetched again and again."""
    project_id, _ = await world.shared_project()
    loads = 0

    async def refuse(route: Route) -> None:
        nonlocal loads
        if route.request.is_navigation_request():
            loads += 1
            await route.continue_()
        elif stale or "events" in route.request.url:
            await route.fulfill(status=403, headers={"X-Federation-API": "1"})
        else:
            await route.fulfill(status=302, headers={"Location": "/hub/login"})

    async with visit.page("ada") as page:
        await page.route(f"**/projects/{project_id}*", refuse)
        await page.route(f"**/projects/{project_id}/events*", refuse)
        await page.goto(f"{world.url}projects/{project_id}#runs")
        for _ in range(3):  # the third is of the second document, which was renewed a moment ago
            await page.wait_for_event("request", lambda request: request.resource_type == "fetch")
        assert loads == 2
        await page.unroute_all()
        await expect(page.locator("#connection")).to_be_hidden(timeout=20_000)
        assert loads == 2


@pytest.mark.parametrize("width", WIDTHS)
async def test_no_page_is_wider_than_the_screen(world: World, visit: Visit, tmp_path: Path, width: int) -> None:
    project_id, fab_hash = await world.shared_project()
    run_id = world.start_run(project_id)
    world.report_round(project_id, run_id, 1)
    world.finish_run(project_id, run_id, b"weights", tmp_path)
    supernode_project, participation_id = await world.supernode_project()
    await world.coordinator.invite(world.principal("ada"), supernode_project, "stan")
    supernode_hash = world.store.app_versions(supernode_project)[-1].fab_hash
    pages = {
        "ada": ("", "projects/new", f"projects/{project_id}", f"projects/{project_id}/apps/{fab_hash}", "none"),
        "norma": ("approvals", f"approvals/{project_id}/{fab_hash}/north/slides"),
        "stan": (
            "approvals",
            f"participations/{participation_id}/node",
            f"approvals/{supernode_project}/{supernode_hash}/harbour/slides",
            f"projects/{supernode_project}",
        ),
    }
    world.coordinator.register_node(world.principal("stan"), participation_id, public_key().encode())
    for name, addresses in pages.items():
        async with visit.page(name, width) as page:
            for address in addresses:
                await page.goto(world.url + address)
                await page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
                assert await page.evaluate("document.documentElement.scrollWidth") <= width, address


async def test_the_panel_comes_into_the_hubs_home_page(world: World, visit: Visit) -> None:
    world.project(name="Lungs & more")
    async with visit.page("ada") as page:
        await page.goto(f"{visit.origin}/hub/home")
        await expect(page.locator("#federation-panel")).to_contain_text("Lungs & more")
        await page.click("text=New project")
        await page.wait_for_url("**/projects/new")
    async with visit.page("outsider") as page:
        await page.goto(f"{visit.origin}/hub/home")
        await expect(page.locator("#federation-panel")).to_contain_text("You have no access")


async def test_a_key_that_is_being_pasted_survives_what_happens_meanwhile(world: World, visit: Visit) -> None:
    project_id, participation_id = await world.supernode_project()
    await world.coordinator.invite(world.principal("ada"), project_id, "stan")
    async with visit.page("stan") as page:
        await page.goto(f"{world.url}projects/{project_id}")
        await page.click("text=Register its key")
        await page.fill("textarea", public_key())
        world.add_app(project_id, source=CELL + "# newer")
        await expect(page.locator("#participants")).to_contain_text("version 2")
        await page.click("text=Register the key")
        await expect(page.locator("#flash")).to_contain_text("The key is registered")

        async def say_yes(dialog: Dialog) -> None:
            assert "refused at once" in dialog.message
            await dialog.accept()

        page.on("dialog", say_yes)
        await page.click("text=Remove the key")
        await expect(page.locator("#flash")).to_contain_text("The key is removed")
    participation = world.store.participation(participation_id)
    assert participation is not None
    assert participation.public_key is None


async def test_what_cannot_be_undone_is_asked_first(world: World, visit: Visit) -> None:
    project_id, _ = await world.shared_project()
    async with visit.page("ada") as page:
        await page.goto(f"{world.url}projects/{project_id}")
        questions: list[str] = []

        async def say_no(dialog: Dialog) -> None:
            questions.append(dialog.message)
            await dialog.dismiss()

        page.on("dialog", say_no)
        await page.click("text=Remove")
        assert questions == ["Remove ben? Their Flower client ends at once."]
        assert [one.user for one in world.store.participations(project_id) if one.active] == ["ada", "ben"]


async def test_a_metric_is_chosen_by_keyboard_and_stays_chosen(world: World, visit: Visit) -> None:
    project_id, _ = await world.shared_project()
    run_id = world.start_run(project_id)
    world.report_round(project_id, run_id, 1)
    async with visit.page("ben") as page:
        await page.goto(f"{world.url}projects/{project_id}")
        await expect(page.locator("#curve .ytitle")).to_have_text("Accuracy")
        await page.focus("#metric")
        await page.keyboard.press("ArrowDown")
        await expect(page.locator("#curve .ytitle")).to_have_text("Loss")
        world.report_round(project_id, run_id, 2)
        points = page.locator("#curve .scatterlayer .trace").first.locator(".point")
        await expect(points).to_have_count(2)
        await expect(page.locator("#curve .ytitle")).to_have_text("Loss")
        assert await page.input_value("#metric") == "evaluate/loss"
        assert await page.evaluate("document.activeElement.id") == "metric"


async def test_the_log_grows_while_it_is_read_and_is_no_markup(world: World, visit: Visit) -> None:
    project_id, _ = await world.shared_project()
    async with visit.page("ben") as page:
        await page.goto(f"{world.url}projects/{project_id}")
        await expect(page.locator("#log")).to_be_hidden()
        run_id = world.start_run(project_id)
        world.report_round(project_id, run_id, 1)
        world.logs[run_id] = b"INFO <img src=x onerror=alert(1)>\n"
        await page.click("#log summary")
        lines = page.locator("#log-lines")
        await expect(lines).to_have_text("INFO <img src=x onerror=alert(1)>\n")
        world.logs[run_id] += b"INFO round 2\n"
        await expect(lines).to_have_text("INFO <img src=x onerror=alert(1)>\nINFO round 2\n")
        world.logs[run_id] = b"cut\n"
        await expect(lines).to_have_text("cut\n")
        assert await page.evaluate("document.querySelectorAll('#log-lines *').length") == 0


async def test_who_computes_and_for_how_long_is_told(world: World, visit: Visit) -> None:
    project_id, _ = await world.shared_project()
    run_id = world.start_run(project_id)
    world.store.add_events(
        run_id, [RunEvent(EventKind.SENT, 1.0, "federated", 1, "train", node, size=9) for node in (10, 11)]
    )
    async with visit.page("ben") as page:
        await page.goto(f"{world.url}projects/{project_id}")
        row = page.locator(".activity tr", has_text="North Hospital")
        for stage, word in ((Stage.RECEIVING, "receiving"), (Stage.COMPUTING, "computing"), (Stage.SENDING, "sending")):
            world.coordinator.node_moved(world.participation(project_id, "ada"), stage)
            await expect(row).to_contain_text(word)
            await expect(row.locator(".since")).to_contain_text("for ")


async def test_times_are_told_in_the_readers_zone_and_in_utc_without_scripts(world: World, chromium: Browser) -> None:
    project_id = world.project()
    shown = {}
    for scripts in (True, False):
        context = await chromium.new_context(
            timezone_id="America/New_York", locale="en-US", java_script_enabled=scripts
        )
        await context.add_cookies(
            [{"name": "fake-hub-login", "value": "ada", "url": world.url.partition("/services")[0]}]
        )
        page = await context.new_page()
        await page.goto(f"{world.url}projects/{project_id}")
        time = page.locator("main time").first
        assert await time.get_attribute("datetime") == "2026-11-23T12:00:00+00:00"
        shown[scripts] = await time.inner_text()
        await context.close()
    assert shown[False] == "23 Nov 2026, 12:00 UTC"
    assert "7:00" in shown[True]


async def test_a_screen_reader_hears_a_new_step_once(world: World, visit: Visit) -> None:
    project_id, _ = await world.shared_project()
    async with visit.page("ada") as page:
        await page.goto(f"{world.url}projects/{project_id}")
        said = page.locator("#said[aria-live=polite]")
        await expect(said).to_have_text("")
        world.make_ready(project_id)
        await expect(said).to_contain_text("start a run")
        await page.evaluate(
            "new MutationObserver(() => { document.body.dataset.chatter = 'yes'; })"
            ".observe(document.getElementById('said'), {childList: true, characterData: true, subtree: true})"
        )
        world.add_app(project_id, owner="ada", source=CELL + "# newer")
        await expect(page.locator("#versions")).to_contain_text("Version 2")
        await expect(said).to_contain_text("Waiting for the data stewards")
        world.coordinator.remove_member(world.principal("ada"), project_id, "ben")
        await expect(page.locator("#participants")).to_contain_text("removed")
        await expect(said).to_have_text("Waiting for the data stewards of North Hospital to approve version 2.")


async def test_the_keyboard_skips_to_the_content(world: World, visit: Visit) -> None:
    async with visit.page("ada") as page:
        await page.goto(world.url)
        await page.keyboard.press("Tab")
        skip = page.locator("a.skip")
        await expect(skip).to_be_focused()
        await expect(skip).to_be_in_viewport()
        await page.keyboard.press("Enter")
        assert await page.evaluate("document.activeElement.id") == "content"


async def test_a_new_project_is_made_without_scripts(world: World, chromium: Browser) -> None:
    context = await chromium.new_context(java_script_enabled=False)
    await context.add_cookies([{"name": "fake-hub-login", "value": "ada", "url": world.url.partition("/services")[0]}])
    page = await context.new_page()
    await page.goto(f"{world.url}projects/new")
    await page.get_by_label("Name").fill("Without scripts")
    chosen = {"name": "lungs.ipynb", "mimeType": "application/json", "buffer": notebook()}
    await page.get_by_label("Notebook or Flower app").set_input_files(chosen)  # type: ignore[arg-type]
    await page.get_by_role("button", name="Next").click()
    await page.get_by_role("button", name="Create project").click()
    await expect(page.get_by_role("heading", name="Without scripts")).to_be_visible()
    await expect(page.locator("[aria-current=step]")).to_contain_text("Sites")
    await context.close()


async def test_a_file_that_is_too_large_never_leaves_the_browser(world: World, visit: Visit, tmp_path: Path) -> None:
    large = tmp_path / "large.ipynb"
    large.write_bytes(b" " * ((20 << 20) + 1))
    async with visit.page("ada") as page:
        await page.goto(f"{world.url}projects/new")
        await page.get_by_label("Name").fill("Kept")
        await page.get_by_label("Notebook or Flower app").set_input_files(large)
        await page.get_by_role("button", name="Next").click()
        assert "20 MB" in await page.locator("#app").evaluate("field => field.validationMessage")
        assert await page.input_value("#name") == "Kept"
