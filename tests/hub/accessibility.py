"""What axe-core finds on the Hub's pages that are ours, or hold a part that is."""

from __future__ import annotations

from collections.abc import Mapping

from playwright.async_api import async_playwright, expect

from tests.conftest import CHROMIUM, ROOT
from tests.hub.actors import Browser
from tests.page_quality import page_tools

SCREENSHOTS = ROOT / "test-output" / "screenshots" / "pages"


async def grave_faults(browser: Browser, width: int, pages: Mapping[str, str]) -> list[str]:
    """Serious and critical violations in the main part of each page, light and dark, with everything unfolded.

    Args:
        browser: somebody who is logged in.
        pages: a name for the screenshot -> the page's path.
    """
    tools = page_tools()
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    origin = str(browser.http.base_url).rstrip("/")
    faults = []
    async with (
        async_playwright() as playwright,
        await playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        ) as chromium,
    ):
        context = await chromium.new_context(viewport={"width": width, "height": 900}, reduced_motion="reduce")
        await context.add_cookies(
            [{"name": one.name, "value": one.value or "", "url": origin + one.path} for one in browser.http.cookies.jar]
        )
        page = await context.new_page()
        for name, path in pages.items():
            await page.goto(origin + path, wait_until="networkidle")
            await page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
            for theme in ("light", "dark"):
                await page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
                await expect(page.locator("html")).to_have_attribute("data-bs-theme", theme)
                await page.screenshot(path=SCREENSHOTS / f"hub-{name}-{width}-{theme}.png", full_page=True)
                found = await tools.violations(page, ".container.sites, #federation-panel")
                faults += [f"{name} at {width}, {theme}: {one}" for one in found if one.grave]
    return faults
