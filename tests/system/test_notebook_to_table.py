"""From a private notebook to a shared result, as people see it: JupyterLab, the Hub's pages, and nothing else.

amara takes a starter into her server, tries it, publishes it and runs it, all in her notebook; mateu takes part by the
pages. Screenshots are kept below test-output/screenshots/show.
"""

from __future__ import annotations

import re

import pytest
from playwright.async_api import Browser, Page, expect

from examples.demo.people import RESEARCHERS, STEWARDS
from examples.demo.stack import Stack
from tests.system.jupyterlab import OpenNotebook
from tests.system.visitors import PATIENCE_MS, SCREENSHOTS, Visitor, approve, start_server, visitor

pytestmark = [pytest.mark.needs_node, pytest.mark.needs_browser, pytest.mark.timeout(600)]

OWNER, MEMBER = RESEARCHERS[:2]
DATASET = "biopsies"
PROJECT = "Breast aspirates, from a notebook"
ROUNDS = 30  # of a twentieth of a second each: enough for a curve to be seen growing
PICTURES = "show/"
# Notes how many marks of curves the page has each time that their number changes.
COUNT_MARKS = """(marks) => {
  window.marks = [];
  new MutationObserver(() => {
    const count = document.querySelectorAll(marks).length;
    if (count !== window.marks.at(-1)) window.marks.push(count);
  }).observe(document.body, { subtree: true, childList: true });
}"""
PHOTO_HEIGHT = 1500  # pixels of a window that shows a long cell whole


async def test_from_notebook_to_table(chromium: Browser, stack: Stack) -> None:
    owner = await visitor(chromium, OWNER, stack.origin)
    member = await visitor(chromium, MEMBER, stack.origin)
    await owner.log_in()
    await start_server(owner)
    await member.log_in()
    await start_server(member)
    server = f"{stack.origin}/user/{OWNER.username}/"

    notebook = await open_starter(owner, server)
    await notebook.run_all()
    await try_and_publish(notebook)
    await take_part(owner, member, stack)
    for steward in STEWARDS[:2]:
        await approve(await visitor(chromium, steward, stack.origin), PROJECT, PICTURES)
    await expect(member.page.get_by_text("client ready", exact=True)).to_have_count(2, timeout=PATIENCE_MS)
    await member.look(f"{PICTURES}5-project-ready")

    await watch_in_both_places(notebook, member)
    await read_the_table(notebook, member)
    await use_the_model(notebook)
    await see_it_in_jupyterlab(owner, server)
    assert owner.errors == []
    assert member.errors == []
    await owner.context.close()
    await member.context.close()


async def open_starter(owner: Visitor, server: str) -> OpenNotebook:
    """Fetch the starter in a first notebook, and open it."""
    first = OpenNotebook(owner.page, server, "Untitled.ipynb")
    await first.new()
    await first.run_cell('import federator\nfederator.starter("tabular")')
    notebook = OpenNotebook(owner.page, server, "tabular.ipynb")
    await notebook.open()
    await picture(owner.page, "1-starter")
    return notebook


async def try_and_publish(notebook: OpenNotebook) -> None:
    tried = await notebook.run_cell("import federator\nfederator.try_here()")
    await expect(tried.locator("svg[role=img]").last).to_be_visible(timeout=PATIENCE_MS)
    await expect(tried.last).to_contain_text("Trial with 3 pretended sites: 3 rounds")
    await picture(notebook.page, "2-tried")
    published = await notebook.run_cell(f'project = federator.publish(name="{PROJECT}")\nproject')
    await expect(published.last).to_contain_text("app version 1")
    await picture(notebook.page, "3-published")
    joined = await notebook.run_cell(f'project.join("{DATASET}").invite("{MEMBER.username}")')
    await expect(joined.last).to_contain_text(MEMBER.username)


async def take_part(owner: Visitor, member: Visitor, stack: Stack) -> None:
    """The member follows the invitation, and stays on the project's page."""
    await member.page.goto(f"{stack.origin}/services/federation/")
    invitation = member.page.get_by_role("listitem").filter(has_text=PROJECT)
    await invitation.get_by_role("link", name="Look and answer").click()
    await expect(member.page.get_by_role("heading", name=PROJECT)).to_be_visible()
    await member.look(f"{PICTURES}4-invited")
    await member.page.get_by_role("button", name="Take part").click()
    await expect(member.page.locator("#participants")).to_contain_text(DATASET)


async def watch_in_both_places(notebook: OpenNotebook, member: Visitor) -> None:
    """The curve grows in the owner's cell and on the member's page, which nobody reloads."""
    await member.page.evaluate("window.notReloaded = true")
    await notebook.page.evaluate(COUNT_MARKS, ".jp-OutputArea svg[role=img] path")
    await member.page.evaluate(COUNT_MARKS, "#curve path.point")
    watched = await notebook.start_cell(f"run = project.run(rounds={ROUNDS})\nrun.watch()")
    mine, theirs = watched.locator("svg[role=img]"), member.page.locator("#curve .js-line")
    await expect(mine).to_be_visible(timeout=PATIENCE_MS)
    await expect(theirs.first).to_be_visible(timeout=PATIENCE_MS)
    await picture(notebook.page, "6-watched")
    await member.look(f"{PICTURES}6-project-running")
    await expect(watched.first).to_contain_text(re.compile("finished"), timeout=2 * PATIENCE_MS)
    await notebook.done()
    await picture(notebook.page, "7-finished")
    for page in (notebook.page, member.page):
        grown = [count for count in await page.evaluate("window.marks") if count > 0]
        assert len(set(grown)) > 2, grown


async def read_the_table(notebook: OpenNotebook, member: Visitor) -> None:
    rows = member.page.locator("table.result:visible tbody tr")
    await expect(rows).to_have_count(3, timeout=PATIENCE_MS)
    await expect(rows.last.locator(".interval").last).to_have_text(re.compile(r"\[\d\.\d+, \d\.\d+\]"))
    assert await member.page.evaluate("window.notReloaded") is True
    await member.look(f"{PICTURES}8-result")
    await member.page.get_by_text("As a heat map").click()
    await expect(member.page.locator("#heat-map .js-plotly-plot, #heat-map.js-plotly-plot")).to_be_visible()
    for name in ("Each class", "What is skewed", "Rounds in numbers"):
        await member.page.get_by_text(name, exact=True).click()
    await member.look(f"{PICTURES}9-result-in-full")
    table = await notebook.run_cell("run.compare()")
    await expect(table.locator("tbody tr")).to_have_count(9)
    await expect(table.locator("thead")).to_contain_text("accuracy low")
    await picture(notebook.page, "10-compared")


async def use_the_model(notebook: OpenNotebook) -> None:
    told = await notebook.run_cell('print(run.verify(run.model("model.safetensors")))')
    await expect(told).to_contain_text(f"model after round {ROUNDS}; the record is signed")
    used = await notebook.run_cell(
        "features, labels = test_data\nfederator.load_model(run)(features).argmax(1).shape == labels.shape"
    )
    await expect(used).to_have_text("True")
    await picture(notebook.page, "11-model")


async def see_it_in_jupyterlab(owner: Visitor, server: str) -> None:
    """The status bar shows the client, the launcher leads to the projects."""
    await owner.page.goto(f"{server}lab?reset")
    await expect(owner.page.locator(".jp-LauncherCard", has_text="Federation projects")).to_be_visible()
    # Where other projects have clients in the server, too, the names are in the one link's tooltip.
    status = owner.page.locator(".federator-status a")
    await expect(status.filter(has_text=PROJECT).or_(status.and_(owner.page.get_by_title(PROJECT)))).to_be_visible()
    await picture(owner.page, "12-launcher")


async def picture(page: Page, name: str) -> None:
    """JupyterLab as it is, in a window that is high enough for a long cell."""
    size = page.viewport_size
    assert size is not None
    SCREENSHOTS.joinpath(PICTURES).mkdir(parents=True, exist_ok=True)
    await page.set_viewport_size({"width": size["width"], "height": PHOTO_HEIGHT})
    await page.screenshot(path=SCREENSHOTS / f"{PICTURES}{name}.png")
    await page.set_viewport_size(size)
