"""Who goes next in the service's one thread."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import pytest

from hub_service import turns
from hub_service.turns import Turns

PATIENCE_S = 10.0


async def passes(number: int = 5) -> None:
    """Let the loop come round so often."""
    for _ in range(number):
        await asyncio.sleep(0)


async def in_time(awaited: Awaitable[None]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        await awaited


async def test_nobody_waits_where_nobody_else_is() -> None:
    await in_time(Turns().wait())


async def test_while_a_page_is_made_the_others_wait() -> None:
    its = Turns()
    its.page_begins("one")
    its.page_begins("two")
    waiting = asyncio.ensure_future(its.wait())
    await passes()
    its.page_ends("one")
    await passes()
    assert not waiting.done()
    its.page_ends("two")
    await in_time(waiting)


async def test_a_page_that_takes_long_holds_the_others_up_for_a_while_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "LONGEST_S", 0.01)
    its = Turns()
    its.page_begins("a download, or of a person who has gone")
    await in_time(its.wait())


async def after_a_slow_page(monkeypatch: pytest.MonkeyPatch, others_s: float) -> Turns:
    """It has held the others up for as long as it may; they have so many seconds for themselves now."""
    its = Turns()
    monkeypatch.setattr(turns, "LONGEST_S", 0.0)
    its.page_begins("slow")
    monkeypatch.setattr(turns, "LONGEST_S", others_s)
    await in_time(its.wait())
    monkeypatch.setattr(turns, "LONGEST_S", 3600)
    return its


async def test_then_the_others_have_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for page after page stops no run."""
    its = await after_a_slow_page(monkeypatch, others_s=3600)
    its.page_begins("the next")
    await in_time(its.wait())


async def test_a_page_that_ends_late_ends_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    its = await after_a_slow_page(monkeypatch, others_s=0.0)
    its.page_begins("quick")
    waiting = asyncio.ensure_future(its.wait())
    its.page_ends("slow")
    await passes()
    assert not waiting.done()
    its.page_ends("quick")
    await in_time(waiting)


async def test_the_others_begin_one_by_one_and_what_is_under_way_goes_on() -> None:
    its = Turns()
    began: list[int] = []
    rounds = 0

    async def work() -> None:
        await its.wait()
        began.append(rounds)

    waiting = [asyncio.ensure_future(work()) for _ in range(5)]
    while not all(one.done() for one in waiting):
        await asyncio.sleep(0)
        rounds += 1
    assert began == sorted(set(began))


async def test_who_gives_up_keeps_nobody_from_their_turn() -> None:
    its = Turns()
    its.page_begins("page")
    first, second = asyncio.ensure_future(its.wait()), asyncio.ensure_future(its.wait())
    await passes()
    first.cancel()
    await passes()
    its.page_ends("page")
    await in_time(second)
