"""Whose turn it is in the service's one thread: people's pages go before what nodes, runs and followers ask of it.

A node's request, a look at a run and a follower's view are some milliseconds' work each, and with twenty projects at
work there are always dozens of them. A page has several steps, and at each would wait behind all that are ready.
So they begin one after the other, and none while a page is made.
"""

from __future__ import annotations

import asyncio

LONGEST_S = 0.1
"""Pages keep the others waiting for so long at once, in seconds; then the others have as long for themselves."""


class Turns:
    """One for the service. What is done in threads and other processes needs no turn."""

    def __init__(self) -> None:
        self._one_by_one = asyncio.Lock()
        self._no_page = asyncio.Event()
        self._no_page.set()
        self._pages: set[object] = set()
        self._over: asyncio.TimerHandle | None = None
        self._others_until = 0.0  # by the loop's clock

    def page_begins(self, page: object) -> None:
        """A person waits for this. `page_ends` is called with the same, or never where the person has gone."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._others_until:
            return
        if not self._pages:
            self._no_page.clear()
            self._over = loop.call_later(LONGEST_S, self._let_the_others)
        self._pages.add(page)

    def page_ends(self, page: object) -> None:
        self._pages.discard(page)
        if not self._pages:
            self._no_page.set()
            if self._over is not None:
                self._over.cancel()

    async def wait(self) -> None:
        """Return when it is the caller's turn to do some milliseconds' work."""
        async with self._one_by_one:
            await self._no_page.wait()
            await asyncio.sleep(0)  # what is under way goes on first

    def _let_the_others(self) -> None:
        self._pages.clear()
        self._no_page.set()
        self._others_until = asyncio.get_running_loop().time() + LONGEST_S
