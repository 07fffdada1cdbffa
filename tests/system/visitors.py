"""People with browser windows of their own, in headless Chromium; screenshots go below test-output/screenshots."""

from __future__ import annotations

import asyncio
import re

from playwright.async_api import Browser, BrowserContext, Page, expect

from examples.demo.people import Person
from examples.demo.stack import ROOT

SCREENSHOTS = ROOT / "test-output" / "screenshots"
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
# Settles once nothing is wider than the window, nor a figure wider than its place, which hides the rest of it; the
# page's own policy forbids Playwright's `wait_for_function`.
FITS = """(width) => new Promise((fits) => {
  const isWide = (figure) => figure.clientWidth > figure.closest(".js-plotly-plot").clientWidth;
  const look = () => {
    const figures = [...document.querySelectorAll(".main-svg")];
    const fit = document.documentElement.scrollWidth <= width && !figures.some(isWide);
    return fit ? fits() : requestAnimationFrame(look);
  };
  look();
})"""


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
        await self.page.wait_for_url(re.compile(rf"^{re.escape(self.origin)}/hub/"))  # going on sooner would end it

    async def look(self, name: str) -> None:
        """Take screenshots of the page, wide and as on a phone."""
        SCREENSHOTS.joinpath(name).parent.mkdir(parents=True, exist_ok=True)
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


async def approve(steward: Visitor, project: str, pictures: str = "") -> None:
    """Log in as a data steward, follow the panel to the request, read it, approve, and go.

    Args:
        pictures: what the names of the screenshots begin with.
    """
    await steward.log_in()
    await steward.page.locator("#federation-panel").get_by_role("link", name=re.compile("approval")).click()
    await steward.look(f"{pictures}approvals-{steward.person.site}")
    request = steward.page.get_by_role("listitem").filter(has_text=project)
    await request.get_by_role("link", name="Review").click()
    await expect(steward.page.get_by_text("def train").first).to_be_visible()
    await steward.look(f"{pictures}review-{steward.person.site}")
    await steward.page.get_by_role("button", name="Approve").click()
    assert steward.errors == []
    await steward.context.close()
