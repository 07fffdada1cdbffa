"""Nodes while the service's database is gone: who asks anew is told to come again, and what goes on is not held up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NoReturn

import pytest

from hub_service.domain.errors import DatabaseUnavailable
from tests.fakes.fleet import Fleet, Member, fleet
from tests.singleuser.test_gateway import post, pull, signed


class NoDatabase(dict[bytes, object]):
    """Whatever is asked or told, the database does not answer."""

    def get(self, *_: object) -> NoReturn:
        self.asked.set()
        raise DatabaseUnavailable("The service's database does not answer.")

    append = get

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()


class Heard(list[object]):
    """Tells when something is appended."""

    def __init__(self) -> None:
        super().__init__()
        self.something = asyncio.Event()

    def append(self, what: object) -> None:
        self.something.set()


@pytest.fixture
async def it(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with fleet(tmp_path) as it:
        yield it


async def known(it: Fleet, name: str) -> Member:
    member = it.admit(name)
    await it.register(member)
    return member


async def test_a_node_that_asks_is_told_to_come_again(it: Fleet) -> None:
    member = await known(it, "a")
    grants, it.grants = it.grants, NoDatabase()  # type: ignore[assignment]
    answer = await post(it, "pull-messages", pull(member), signed(member))
    assert answer.status_code == 503
    assert "database does not answer" in answer.json()["detail"]
    it.grants = grants
    assert (await post(it, "pull-messages", pull(member), signed(member))).status_code == 200


async def test_a_poll_that_waits_goes_on_and_still_hears_of_the_end_of_its_right(it: Fleet) -> None:
    member = await known(it, "a")
    it.seen = heard = Heard()  # type: ignore[assignment]
    waiting = asyncio.create_task(post(it, "pull-messages", pull(member), signed(member), wait=30.0))
    gone = NoDatabase()
    async with asyncio.timeout(60):
        await heard.something.wait()  # its poll has begun
        it.grants = gone  # type: ignore[assignment]
        await gone.asked.wait()
        gone.asked.clear()
        await gone.asked.wait()  # it was asked twice, and the poll is open still
    assert not waiting.done()
    it.grants = {}
    assert (await waiting).status_code == 401


async def test_what_cannot_be_noted_holds_nobody_up(it: Fleet) -> None:
    member = await known(it, "a")
    it.seen = it.moved = NoDatabase()  # type: ignore[assignment]
    assert (await post(it, "pull-messages", pull(member), signed(member))).status_code == 200
