"""Tells waiting pages and clients that something changed. In memory: after a restart everybody asks afresh."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

RUNS_TOPIC = "runs"  # a run was asked for or stopped, or who may take part in one has changed

LEAVING_TOPIC = "leaving"  # something is to be removed from the disk


def project_topic(project_id: str) -> str:
    """What a project's page shows has changed."""
    return f"project:{project_id}"


def user_topic(user: str) -> str:
    """What a person's notebook server must run, or what waits for them, has changed."""
    return f"user:{user}"


class Changes:
    """Counts changes by topic and wakes those who wait."""

    def __init__(self) -> None:
        self._revisions: dict[str, int] = defaultdict(int)
        self._waiting: dict[str, set[asyncio.Event]] = defaultdict(set)
        self.closed = False
        self.followers = 0  # who are shown each change, as long as they look

    @contextmanager
    def followed(self) -> Iterator[None]:
        """While somebody follows a topic."""
        self.followers += 1
        try:
            yield
        finally:
            self.followers -= 1

    def close(self) -> None:
        """Wake everybody, and let nobody wait any more: the service ends, and open requests are to be answered."""
        self.closed = True
        for events in self._waiting.values():
            for event in events:
                event.set()

    def announce(self, *topics: str) -> None:
        """Note a change of each topic and wake its waiters."""
        for topic in topics:
            self._revisions[topic] += 1
            for event in self._waiting.get(topic, ()):
                event.set()

    def revision(self, topic: str) -> int:
        return self._revisions.get(topic, 0)

    async def wait(self, topic: str, seen: int, timeout: float) -> int:  # noqa: ASYNC109
        """Return the topic's revision once it differs from `seen`, or after `timeout` seconds."""
        if self.closed or self.revision(topic) != seen:
            await asyncio.sleep(0)  # whoever waits in a loop lets others run, whatever the answer
            return self.revision(topic)
        event = asyncio.Event()
        self._waiting[topic].add(event)
        try:
            async with asyncio.timeout(timeout):
                await event.wait()
        except TimeoutError:
            pass
        finally:
            self._waiting[topic].discard(event)
            if not self._waiting[topic]:
                del self._waiting[topic]
        return self.revision(topic)
