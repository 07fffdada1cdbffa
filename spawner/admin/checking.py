"""Checks that go on in the background of the Hub, one at a time for each site, and what the last ones have shown."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime

from spawner.admin.checks import Result, check_site
from spawner.deployment import Hub
from spawner.sites import Site


class CheckRun:
    """One check of a site, while it goes on and after.

    Attributes:
        results: in the order in which they came.
        ended: None while it goes on.
        whole: False for one that ended before its end: the Hub's log says why.
    """

    def __init__(self, started: datetime) -> None:
        self.started = started
        self.results: list[Result] = []
        self.ended: datetime | None = None
        self.whole = False
        self._news = asyncio.Event()

    async def beyond(self, seen: int, timeout_s: float) -> None:
        """Return once there are more results than `seen`, or the check has ended, or the time is over."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.ended is None and len(self.results) <= seen:
                    await self._news.wait()
        except TimeoutError:
            return

    def add(self, result: Result) -> None:
        self.results.append(result)
        self._wake()

    def end(self, now: datetime) -> None:
        self.ended = now
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


class Checking:
    """The checks of all sites. Made once for a Hub; forgets with it.

    Args:
        new_id: draws a part of the names of the containers that a check makes.
    """

    def __init__(self, now: Callable[[], datetime], new_id: Callable[[], str]) -> None:
        self._now = now
        self._new_id = new_id
        self._runs: dict[str, CheckRun] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def last(self, slug: str) -> CheckRun | None:
        return self._runs.get(slug)

    def start(self, slug: str, site: Site, hub: Hub) -> CheckRun:
        """Start a check, unless one of this site goes on, and return what will hold its results."""
        current = self._runs.get(slug)
        if current is not None and current.ended is None:
            return current
        run = self._runs[slug] = CheckRun(self._now())
        task = asyncio.create_task(self._go_on(run, slug, site, hub))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return run

    async def _go_on(self, run: CheckRun, slug: str, site: Site, hub: Hub) -> None:
        try:
            async for result in check_site(slug, site, hub, now=self._now, new_id=self._new_id):
                run.add(result)
            run.whole = True
        finally:
            run.end(self._now())
