"""The data steward's page: what changed, what the code reaches, what it returns, and decisions with conditions."""

from __future__ import annotations

import asyncio
import html
import re
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from federator.contract import ANY_LENGTH, ApprovalState, Conditions, DeclaredOutput, Route

from hub_service.apps.findings import find
from hub_service.web.pages import approvals, base
from hub_service.web.pages.approvals import Output, _most_bytes
from tests.fakes import web_world
from tests.fakes.hub import STEWARD, FakeHub
from tests.fakes.web_world import CELL, World, path, served_world
from tests.web.test_page_forms import alerts, token

HOSTILE = CELL.replace(
    "    return None",
    "    import socket\n    text = open('/etc/passwd').read()  # </code><script>alert(1)</script>\n    return text",
)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with served_world(tmp_path, FakeHub()) as world:
        yield world


@pytest.fixture
async def careful(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """The south wants two stewards."""
    monkeypatch.setitem(web_world.SITES, "south", replace(web_world.SITES["south"], four_eyes=True))
    async with served_world(tmp_path, FakeHub()) as world:
        world.hub.add("silas", "site-south", "steward-south", scopes=STEWARD)
        yield world


def words(page: httpx.Response) -> str:
    """The page's text without its markup."""
    assert page.status_code == 200, page.text
    text = re.sub(r"<(script|style)\b.*?</\1>", "", page.text, flags=re.DOTALL)
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text)))


def address(project_id: str, fab_hash: str, site: str = "south") -> str:
    return f"approvals/{project_id}/{fab_hash}/{site}/slides"


async def test_a_first_version_is_read_whole(world: World) -> None:
    project_id, fab_hash = await world.shared_project()
    other = world.project(name="Kidneys")
    waiting = world.add_app(other)
    world.coordinator.join(world.principal("ada"), other, "slides")
    async with world.browser("norma") as norma:
        new = words(await norma.get(address(other, waiting, "north")))
    assert "Nothing of this project was approved for this dataset before: read all of it." in new
    async with world.browser("sue") as sue:
        page = words(await sue.get(address(project_id, fab_hash)))
    assert "Nothing of this project was approved" not in page  # it is this version that was
    assert "Cell 2" in page
    assert "Not declared by the author; the largest message limit still holds." in page
    assert "ada (owner) , ben" in page
    assert "prove nothing" in page
    assert "approved version 1" in page  # the history
    assert "What changed since" not in page


async def test_what_changed_is_shown_against_the_version_approved_last(world: World) -> None:
    project_id, first = await world.shared_project()
    world.add_app(project_id, source=CELL + "\nskipped = 1\n")
    third = world.add_app(project_id, source=HOSTILE)
    async with world.browser("sue") as sue:
        changes = await sue.get(address(project_id, third))
        full = words(await sue.get(address(project_id, third) + "?show=all"))
    page = words(changes)
    assert "What changed since version 1" in page
    assert "You approved version 1 for this dataset" in page
    assert "New imports: socket" in page
    assert "3 lines added, 1 removed" in page
    assert "can open network connections" in page
    assert "opens a file at a place that is written into the code" in page
    assert f'href="/services/federation/{address(project_id, third)}?show=all#cell-2-4"' in changes.text
    assert "<script>alert" not in changes.text
    assert changes.text.count('class="dline added"') >= 3
    assert "def train" not in page.split("What it imports")[0].split("1 file")[0]
    assert "All files of the app" in full
    assert first[:12] not in full


async def test_an_app_that_is_too_much_for_a_page(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the page leaves out it names, and it says where that can be read."""
    project_id, _ = await world.shared_project()
    second = world.add_app(project_id, source=CELL + "\nmore = 1\n")
    monkeypatch.setattr(base, "MOST_SHOWN", 1000)
    monkeypatch.setattr(approvals, "MOST_COLOURED", 1000)
    api = path(Route.APP, project_id=project_id, fab_hash=second)
    everything = f'href="/services/federation/{api}"'
    async with world.browser("sue") as sue:
        page = await sue.get(address(project_id, second) + "?show=all")
        assert everything in page.text
        assert "Not shown: too much for this page" in words(page)
        assert '<span class="k">def</span>' not in page.text
        assert "federated_model/notebook.py" in (await sue.get(api)).text
    async with world.browser("ada") as ada:
        assert everything in (await ada.get(f"projects/{project_id}/apps/{second}")).text
    monkeypatch.undo()
    async with world.browser("sue") as sue:
        page = await sue.get(address(project_id, second) + "?show=all")
        assert everything not in page.text
        assert '<span class="k">def</span>' in page.text


async def test_no_page_shows_code_in_another_order_than_it_runs(world: World) -> None:
    """Trojan Source, CVE-2021-42574: marks of the direction of writing, in a cell and in a text file."""
    project_id, _ = await world.shared_project()
    turned = world.add_app(project_id, source=f"{CELL}\nCONFIG = {{'note': 'x\u202ey'}}  # \u2066\n")
    async with world.browser("sue") as sue, world.browser("ada") as ada:
        review = address(project_id, turned)
        pages = [
            await sue.get(review),
            await sue.get(f"{review}?show=all"),
            await ada.get(f"projects/{project_id}/apps/{turned}"),
        ]
    for page in pages:
        assert "[U+202E]" in page.text
        assert not {"\u202e", "\u2066"} & set(page.text)
    assert "Cell 2, line 14 holds a character that is not seen" in words(pages[0])


async def test_a_review_that_takes_long_holds_up_nobody(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    project_id, first = await world.shared_project()
    started, answered = threading.Event(), threading.Event()

    def find_late(*arguments: Any) -> Any:
        started.set()
        assert answered.wait(10), "others had to wait for the review"
        return find(*arguments)

    monkeypatch.setattr(approvals, "find", find_late)
    async with world.browser("sue") as sue, world.api("ada") as api, asyncio.TaskGroup() as group:
        reading = group.create_task(sue.get(address(project_id, first)))
        assert await asyncio.to_thread(started.wait, 10)
        assert (await api.get(path(Route.PROJECTS))).status_code == 200
        answered.set()
        assert (await reading).status_code == 200


async def test_somebody_elses_approval_is_named(world: World) -> None:
    project_id, _ = await world.shared_project()
    world.hub.add("silas", "site-south", "steward-south", scopes=STEWARD)
    second = world.add_app(project_id, source=CELL + "\nmore = 1\n")
    async with world.browser("silas") as silas:
        assert "sue approved version 1 for this dataset" in words(await silas.get(address(project_id, second)))


async def test_conditions_are_decided_by_the_form(world: World) -> None:
    project_id, _ = await world.shared_project()
    newest = world.add_app(project_id, source=HOSTILE)
    async with world.browser("sue") as sue:
        page = await sue.get(address(project_id, newest))
        form = {**token(sue), "member": re.findall(r'name="member" value="(\w+)"', page.text)}
        assert form["member"] == ["ada", "ben"]
        filled = {"state": "approved", "rounds": "7", "largest": "2.5", "only_members": "yes", "expires": "2099-01-01"}
        for wrong in ({"rounds": "many"}, {"largest": "huge"}, {"largest": "nan"}, {"largest": "0.001"}):
            refused = await sue.post(address(project_id, newest), data={**form, **filled, **wrong})
            assert refused.status_code == 400, wrong
            assert 'value="2099-01-01"' in refused.text
            assert re.search(r'id="only-members"[^>]* checked', refused.text)
        no_reason = await sue.post(address(project_id, newest), data={**form, "state": "rejected"})
        assert no_reason.status_code == 400
        assert "A rejection needs a reason." in no_reason.text
        done = await sue.post(address(project_id, newest), data={**form, **filled})
        assert "Version 2 of Lungs is approved." in alerts(done)
        assert "runs of at most 7 rounds; messages of at most 2.5 MB; only with ada, ben" in words(done)
    decided = next(one for one in world.store.approvals(project_id) if one.fab_hash == newest and one.site == "south")
    assert decided.conditions == Conditions(7, 5 << 19, ("ada", "ben"))


async def test_who_joined_meanwhile_is_named(world: World) -> None:
    project_id, fab_hash = await world.shared_project()
    async with world.browser("sue") as sue:
        await sue.get(address(project_id, fab_hash))
        form = {**token(sue), "member": ["ada"], "state": "approved", "only_members": "yes"}
        refused = await sue.post(address(project_id, fab_hash), data=form)
    assert refused.status_code == 409
    assert "ben has joined the project meanwhile." in refused.text


async def test_a_lapsed_approval_asks_again_and_says_why(world: World) -> None:
    project_id, fab_hash = await world.shared_project()
    limits = Conditions(members=("ada", "ben"))
    steward = world.principal("sue")
    world.coordinator.decide(
        steward, project_id, fab_hash, "slides", "south", ApprovalState.APPROVED, conditions=limits
    )
    await world.coordinator.invite(world.principal("ada"), project_id, "cleo")
    world.coordinator.join(world.principal("cleo"), project_id, "scans")
    async with world.browser("sue") as sue:
        listed = words(await sue.get("approvals"))
        page = words(await sue.get(address(project_id, fab_hash)))
    assert "approved for other members" in listed.split("Decided")[0]
    assert "You are asked again. The approval was for other members: cleo has joined since." in page


async def test_four_eyes_in_the_browser(careful: World) -> None:
    project_id, fab_hash = await careful.shared_project()  # sue has approved
    async with careful.browser("sue") as sue:
        page = words(await sue.get(address(project_id, fab_hash)))
        assert "one of two has approved" in page
        assert "You have approved; a second data steward decides now." in page
        assert "Waits for others" in words(await sue.get("approvals"))
    async with careful.browser("silas") as silas:
        assert "1 approval waiting for you" in words(await silas.get("panel"))
        shown = await silas.get(address(project_id, fab_hash))
        assert "You approve with the conditions of sue" in words(shown)
        hidden = dict(re.findall(r'type="hidden" name="(rounds|largest|expires_at)" value="([^"]*)"', shown.text))
        done = await silas.post(address(project_id, fab_hash), data={**token(silas), **hidden, "state": "approved"})
        assert "is approved" in alerts(done)
    async with careful.api("sue") as api:
        (request,) = [one for one in (await api.get("api/approvals")).json() if one["fab_hash"] == fab_hash]
        history = (await api.get(f"api/approvals/south/{project_id}")).json()
    assert (request["state"], request["first_steward"], request["decided_by"]) == ("approved", "sue", "silas")
    assert [one["state"] for one in history] == ["approved", "approved-once"]


async def test_the_second_steward_repeats_limits_exactly(careful: World) -> None:
    project_id, fab_hash = await careful.shared_project()
    sue = careful.principal("sue")
    place = (project_id, fab_hash, "slides", "south")
    careful.coordinator.decide(sue, *place, ApprovalState.REVOKED)
    ends = careful.clock[0].replace(year=2031, microsecond=123_456)
    odd = Conditions(3, 1_234_567, ("ada", "ben"))
    careful.coordinator.decide(sue, *place, ApprovalState.APPROVED, "", ends, odd)
    async with careful.browser("silas") as silas:
        shown = await silas.get(address(project_id, fab_hash))
        names = "rounds|largest|expires_at|only_members"
        fields = re.findall(rf'type="hidden" name="({names})" value="([^"]*)"', shown.text)
        form = {**token(silas), **dict(fields), "member": ["ada", "ben"], "state": "approved"}
        assert "is approved" in alerts(await silas.post(address(project_id, fab_hash), data=form))


def test_sizes_of_declared_outputs() -> None:
    weight = Output.of(DeclaredOutput("train", "arrays", "arrays", "weight", "float32", (10, 784)))
    assert (weight.key, weight.type, weight.bytes) == ("arrays/weight", "float32[10,784]", 31360)
    loss = Output.of(DeclaredOutput("train", "metrics", "metrics", "loss", "number"))
    flag = Output.of(DeclaredOutput("evaluate", "metrics", "metrics", "flag", "bool", (3,)))
    assert (loss.bytes, flag.bytes) == (8, 3)
    assert _most_bytes((weight, loss, flag)) == 31368
    grows = Output.of(DeclaredOutput("train", "arrays", "arrays", "trees", "uint8", (ANY_LENGTH,)))
    text = Output.of(DeclaredOutput("train", "metrics", "config", "note", "text"))
    assert (grows.bytes, text.bytes) == (0, 0)
    assert _most_bytes((weight, grows)) == _most_bytes(()) == 0
