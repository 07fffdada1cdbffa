"""Whose requests go before what nodes and runs ask of the service: those that a person at a browser waits for."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from tests.fakes.web_world import World


@dataclass
class Pages:
    """Those that went first, in order, and those of them that are not answered yet."""

    begun: list[object] = field(default_factory=list)
    open: set[object] = field(default_factory=set)

    def begin(self, page: object) -> None:
        self.begun.append(page)
        self.open.add(page)


@pytest.fixture
def pages(world: World, monkeypatch: pytest.MonkeyPatch) -> Pages:
    pages = Pages()
    monkeypatch.setattr(world.turns, "page_begins", pages.begin)
    monkeypatch.setattr(world.turns, "page_ends", pages.open.discard)
    return pages


async def test_a_page_and_what_a_browser_asks_goes_first_until_it_is_answered(world: World, pages: Pages) -> None:
    project_id = world.project()
    async with world.browser("ada") as browser:
        for path in ("", f"projects/{project_id}", "projects/unknown", "api/projects"):
            before = len(pages.begun)
            await browser.get(path)
            assert len(pages.begun) > before, path
    assert not pages.open


async def test_a_script_and_a_notebook_server_wait_with_the_others(world: World, pages: Pages) -> None:
    async with world.api("ada") as script:
        assert (await script.get("api/projects")).is_success
    assert not pages.begun


async def test_a_live_page_waits_with_the_others_for_what_is_new(
    world: World, pages: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    project_id, asked, its_turn = world.project(), asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        asked.set()
        await its_turn.wait()

    monkeypatch.setattr(world.turns, "wait", wait)
    async with world.browser("ada") as browser:
        await browser.get("")
        before = len(pages.begun)

        async def first_line() -> str:
            async with browser.stream("GET", f"projects/{project_id}/events") as response:
                return await anext(response.aiter_lines())

        line = asyncio.ensure_future(first_line())
        async with asyncio.timeout(20):
            await asked.wait()
            assert not line.done()
            its_turn.set()
            assert await line == "event: section"
        assert len(pages.begun) == before
