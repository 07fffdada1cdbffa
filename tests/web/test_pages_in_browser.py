"""The pages' own scripts, in headless Chromium, under the pages' own security policy."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from jupyterhub._data import DATA_FILES_PATH
from playwright.async_api import Browser, ConsoleMessage, Dialog, Page, Route, async_playwright, expect
from tornado.web import Application, RequestHandler, StaticFileHandler

from tests.fakes.hub import FakeHub
from tests.fakes.web_world import CELL, World, public_key, served_world

pytestmark = pytest.mark.needs_browser

CHROMIUM = "/usr/bin/chromium"
STATIC = Path(DATA_FILES_PATH) / "static"
WIDTHS = (1280, 390)


class _Home(RequestHandler):
    """The Hub's home page, as far as the federation panel sees it."""

    def get(self) -> None:
        self.finish(
            '<!DOCTYPE html><title>Home</title><section id="federation-panel" data-src="/services/federation/panel">'
            '</section><script src="/services/federation/static/panel.js" defer></script>'
        )


class FakeHubWithPages(FakeHub):
    def serve_in(self, application: Application) -> None:
        super().serve_in(application)
        logo = {"path": STATIC / "images", "default_filename": "jupyterhub-80.png"}
        application.add_handlers(
            ".*",
            [
                (r"/hub/static/(.*)", StaticFileHandler, {"path": STATIC}),
                (r"/hub/()logo", StaticFileHandler, logo),
                (r"/hub/home", _Home),
            ],
        )


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
        await page.fill("#rounds", "42")
        await page.uncheck("#compare")
        await page.focus("#rounds")
        world.make_ready(project_id)
        await expect(page.locator("#participants")).to_contain_text("client ready")
        assert await page.input_value("#rounds") == "42"

        world.add_app(project_id, source=CELL + "# newer")
        await expect(page.locator("#versions")).to_contain_text("Version 2")
        assert not await page.is_checked("#compare")
        assert await page.evaluate("document.activeElement.id") == "rounds"

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


async def test_a_stream_that_is_refused_for_good_brings_a_fresh_page(world: World, visit: Visit) -> None:
    project_id, _ = await world.shared_project()
    async with visit.page("ada") as page:
        refused = []

        async def refuse_once(route: Route) -> None:
            if refused:
                await route.continue_()
            else:
                refused.append(route.request.url)
                await route.fulfill(status=403)

        await page.route("**/events*", refuse_once)
        async with page.expect_response(lambda response: "/events" in response.url and response.ok):
            await page.goto(f"{world.url}projects/{project_id}")
        await expect(page.locator("#connection")).to_be_hidden()
        assert len(refused) == 1


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
