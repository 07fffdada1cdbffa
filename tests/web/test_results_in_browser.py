"""The result on a project's page, in headless Chromium: metric, heat map, and both widths."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.async_api import expect

from tests.fakes.web_world import World
from tests.web.test_pages_in_browser import WIDTHS, Visit, chromium, visit, world
from tests.web.test_results import finished_run

__all__ = ["chromium", "visit", "world"]  # fixtures

pytestmark = pytest.mark.needs_browser


@pytest.mark.parametrize("width", WIDTHS)
async def test_the_metric_is_chosen_and_the_heat_map_follows(
    world: World,
    visit: Visit,
    tmp_path: Path,
    width: int,
) -> None:
    project_id, _ = await world.shared_project()
    await finished_run(world, tmp_path, project_id)
    async with visit.page("ben", width) as page:
        await page.goto(f"{world.url}projects/{project_id}")
        await expect(page.locator("#result")).to_contain_text("The federated model is better")
        await page.click("#heat-map-details summary")
        await expect(page.locator("#heat-map .heatmaplayer")).to_be_visible()
        await expect(page.locator("#heat-map")).to_contain_text("Accuracy")
        await page.select_option("#result-metric", "loss")
        await expect(page.locator("#heat-map")).to_contain_text("Loss")
        await expect(page.locator(".result-by-metric:visible")).to_contain_text("No intervals")
        await page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
        assert await page.evaluate("document.documentElement.scrollWidth") <= width
        await page.locator("#result").screenshot(path=tmp_path / f"result-{width}.png")


async def test_a_heat_map_that_did_not_come_is_asked_for_again(world: World, visit: Visit, tmp_path: Path) -> None:
    """Also where there was no answer at all, as on a train."""
    project_id, _ = await world.shared_project()
    await finished_run(world, tmp_path, project_id)
    async with visit.page("ben") as page:
        await page.goto(f"{world.url}projects/{project_id}")
        await page.route("**/result?*", lambda route: route.abort())
        await page.click("#heat-map-details summary")
        await expect(page.locator("#heat-map")).to_contain_text("could not be loaded")
        await page.unroute_all()
        await page.click("#heat-map-details summary")
        await page.click("#heat-map-details summary")
        await expect(page.locator("#heat-map .heatmaplayer")).to_be_visible()
    visit.faults = [one for one in visit.faults if "net::ERR_FAILED" not in one]
