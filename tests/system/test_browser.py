"""One whole journey in headless Chromium, as people see it. Screenshots are kept below test-output/screenshots."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from examples.demo.people import COLLEAGUES, RESEARCHERS, STEWARDS, STRANGER
from examples.demo.scenario import Study
from examples.demo.stack import Stack
from tests.system.visitors import PATIENCE_MS, SCREENSHOTS, Visitor, approve, start_server, visitor

pytestmark = [pytest.mark.needs_node, pytest.mark.needs_browser, pytest.mark.timeout(600)]

OWNER, MEMBER = RESEARCHERS[0], COLLEAGUES[2]
PROJECT = "Breast aspirates, seen by people"


async def test_the_journey(chromium: Browser, stack: Stack, study: Study, tmp_path: Path) -> None:
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
    await expect(owner.page.locator("#participants strong", has_text=MEMBER.username)).to_be_visible()
    await owner.look("project-waiting")

    await member.page.goto(f"{stack.origin}/services/federation/")
    await member.look("invited")
    await member.page.get_by_role("link", name="Look and answer").click()
    await member.page.get_by_role("button", name="Take part").click()

    for known in (STEWARDS[0], STEWARDS[2]):
        await approve(await visitor(chromium, known, stack.origin), PROJECT)

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
        await expect(who.page.locator("table.result:visible tbody tr")).to_have_count(3)
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


async def see_launcher_tile(owner: Visitor) -> None:
    """JupyterLab offers the running client as a launcher tile."""
    page = owner.page
    await page.goto(f"{owner.origin}/user/{owner.person.username}/lab?reset")
    tile = page.locator(".jp-LauncherCard", has_text=f"Flower client: {PROJECT}"[:24]).first
    await expect(tile).to_be_visible(timeout=PATIENCE_MS)
    await page.screenshot(path=SCREENSHOTS / "jupyterlab-launcher.png")


async def test_a_starter_becomes_a_project_by_one_click(chromium: Browser, stack: Stack) -> None:
    owner = await visitor(chromium, OWNER, stack.origin)
    await owner.log_in()
    await owner.page.goto(f"{stack.origin}/services/federation/projects/new")
    starter = owner.page.get_by_role("listitem").filter(has_text="Survival analysis")
    await starter.get_by_role("button", name="Use it").click()
    await expect(owner.page.get_by_role("heading", name="Survival analysis")).to_be_visible()
    await expect(owner.page.locator("#versions")).to_contain_text("Version 1: survival")
    await owner.look("project-from-starter")
    assert owner.errors == []
    await owner.context.close()


async def test_a_person_of_an_unknown_institution_reads_whom_to_ask(chromium: Browser, stack: Stack) -> None:
    stranger = await visitor(chromium, STRANGER, stack.origin)
    await stranger.log_in()
    await expect(stranger.page.get_by_text(STRANGER.institution.domain).first).to_be_visible()
    await stranger.look("unknown-institution")
    await stranger.context.close()
