"""Markup in every text that somebody can write is text on every page, in a real browser; and one line in the log."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from federator import logs
from federator.contract import ApprovalState, ClientState, Route
from playwright.async_api import async_playwright

from hub_service.changes import project_topic
from hub_service.domain.runs import EventKind, RunEvent
from tests.conftest import CHROMIUM
from tests.fakes.hub_pages import FakeHubWithPages
from tests.fakes.web_world import CELL, World, notebook, path, served_world

# 80 characters at most: a project's name. What breaks out of an attribute, a text area, a title or a script leaves an
# element behind that no page has, also where the page's security policy stops the script.
MARK = "data-owned"
SCRIPT = f"\"'></title></textarea></script><i {MARK}></i><img src=x onerror=owned=1>"
LINK = f'<a {MARK} href="javascript:owned=1">x</a><script>owned=1</script>{{{{7*7}}}}'
TEXTS = (SCRIPT, LINK)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with served_world(tmp_path, FakeHubWithPages()) as world:
        yield world


async def written(world: World, text: str, folder: Path) -> dict[str, str]:
    """A project in which everybody who can write something has written the text; the ids of what is in it."""
    ada, sue, coordinator = world.principal("ada"), world.principal("sue"), world.coordinator
    project_id = coordinator.create_project(ada, text, f"{text}\n{text}").id
    content = notebook(f"{CELL}\n# {text}\nWORDS = {text!r}\n")
    fab_hash = world.add_file(project_id, f"{text.replace('/', '')}.ipynb", content).fab_hash
    await coordinator.invite(ada, project_id, "ben")
    for user, steward, site in (("ada", "norma", "north"), ("ben", "sue", "south")):
        coordinator.join(world.principal(user), project_id, "slides")
        coordinator.decide(
            world.principal(steward), project_id, fab_hash, "slides", site, ApprovalState.APPROVED, reason=text
        )
    run_id = world.start_run(project_id)
    metrics = {text: 0.5, f"{text}-loss": 0.1}
    events = [
        RunEvent(EventKind.REPLY, 1.0, "federated", 1, "evaluate", int(node), metrics=metrics, examples=10, text=text)
        for node in world._run(run_id).nodes
    ]
    world.store.add_events(run_id, events)
    world.finish_run(project_id, run_id, b"weights", folder)
    run = world._run(run_id)
    world.store.put_run(replace(run, phase=text, message=text))
    world.logs[run_id] = f"{text}\n".encode() * 3
    participation_id = world.participation(project_id, "ben")
    coordinator.report_client(world.principal("ben"), participation_id, ClientState.FAILED, text)
    newer = world.add_file(project_id, "newer.ipynb", notebook(f"{CELL}# {text} again\n")).fab_hash
    coordinator.decide(sue, project_id, newer, "slides", "south", ApprovalState.REJECTED, reason=text)
    world.changes.announce(project_topic(project_id))
    return {"project_id": project_id, "fab_hash": fab_hash, "newer": newer, "run_id": run_id}


LOOKS = (
    ("ada", ""),
    ("ada", "projects/new"),
    ("ada", "projects/{project_id}"),
    ("ben", "projects/{project_id}?run={run_id}"),
    ("ada", "projects/{project_id}/apps/{fab_hash}"),
    ("ada", "projects/{project_id}/delete"),
    ("sue", "approvals"),
    ("sue", "approvals/{project_id}/{fab_hash}/south/slides"),
    ("sue", "approvals/{project_id}/{newer}/south/slides?show=all"),
    ("ben", "panel"),
    ("ben", "../../hub/home"),
)


@pytest.mark.needs_browser
@pytest.mark.parametrize("text", TEXTS, ids=["breaks out", "link and script"])
async def test_what_people_write_is_text_on_every_page(world: World, tmp_path: Path, text: str) -> None:
    ids = await written(world, text, tmp_path)
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        for name in ("ada", "ben", "sue"):
            context = await chromium.new_context()
            origin = world.url.partition("/services")[0]
            await context.add_cookies([{"name": "fake-hub-login", "value": name, "url": origin}])
            page = await context.new_page()
            complaints: list[str] = []
            page.on("console", lambda message, told=complaints: told.append(message.text))  # type: ignore[misc]
            page.on("dialog", lambda dialog, told=complaints: told.append(dialog.message))  # type: ignore[misc]
            for who, address in LOOKS:
                if who != name:
                    continue
                answer = await page.goto(world.url + address.format(**ids))
                assert answer is not None
                assert answer.status == 200, address
                await page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
                if "projects/{project_id}" in address and "/" not in address.partition("}")[2]:
                    await page.wait_for_selector("#curve .scatterlayer .trace", state="attached", timeout=30_000)
                    await page.wait_for_function(
                        "text => document.getElementById('log-lines').textContent.includes(text)", arg=text
                    )
                assert await page.locator(f"[{MARK}], a[href^='javascript']").count() == 0, address
                assert await page.evaluate("typeof owned") == "undefined", address
                assert "49" not in await page.title()
                shown = await page.locator("body").inner_text()
                if address not in ("projects/new",):
                    assert MARK in shown, address
            assert not [one for one in complaints if "Content Security Policy" in one], complaints
            await context.close()
        await chromium.close()


async def test_a_file_is_named_by_the_service(world: World, tmp_path: Path) -> None:
    """Nothing that somebody wrote stands in a header."""
    ids = await written(world, SCRIPT, tmp_path)
    async with world.api("ada") as api:
        for route in (Route.RUN_MODEL, Route.RUN_RECORD, Route.RUN_CARD, Route.RUN_SIGNED, Route.RUN_CAPSULE):
            answer = await api.get(path(route, **ids))
            assert answer.status_code == 200
            told = answer.headers["content-disposition"]
            assert told.startswith(f'attachment; filename="{ids["run_id"]}'), told
            assert MARK not in json.dumps(dict(answer.headers))


async def test_nothing_that_is_sent_begins_a_line_of_the_log(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Line ends and control characters, in addresses, names and headers."""
    forged = "ben\r\n2026-11-23 ERROR hub_service: all is lost\x1b[2J\u2028"
    with caplog.at_level(logging.DEBUG):
        async with world.api("ada") as api:
            project_id = world.project()
            await api.post(path(Route.INVITATIONS, project_id=project_id), json={"user": forged})
            await api.post(path(Route.PARTICIPATION, project_id=project_id), json={"dataset": forged})
            await api.get("projects/x%0d%0aERROR%1b%5b2J")
            await api.get(Route.HOME, headers={"X-Request-ID": "a b c", "User-Agent": "x\tERROR"})
            await api.post(path(Route.APPS, project_id=project_id), params={"filename": forged}, content=b"no notebook")
    records = [record for record in caplog.records if record.exc_info is None]
    assert any("all is lost" in record.getMessage() for record in records)
    for form in (logs.TextLines(), logs.JsonLines()):
        for record in records:
            assert form.format(record).isprintable()
