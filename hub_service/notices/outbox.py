"""Holds notices until they are sent, and tries again. Nobody who tells something waits for it, or fails with it."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from hub_service.domain.notices import Notice

log = logging.getLogger(__name__)

MOST_WAITING = 1000  # deliveries of a channel; the oldest make room
MOST_UNDELIVERED = 200  # of a channel, that an admin can have sent again
TRIES = 8
FIRST_WAIT_S, LONGEST_WAIT_S = 5.0, 600.0
_LAST_CHANCE_S = 2.0  # for what waits when the service ends


class NotSent(Exception):
    """A delivery that did not work.

    Args:
        reason: for the log: no secret, no address of a person.
        again: whether trying again may help.
    """

    def __init__(self, reason: str, *, again: bool) -> None:
        super().__init__(reason)
        self.again = again


Delivery = Callable[[], Awaitable[None]]
"""Sends one notice to one recipient. Raises NotSent."""


class Channel(Protocol):
    """A way to tell people."""

    @property
    def name(self) -> str: ...

    def deliveries(self, notice: Notice, link: str) -> Sequence[Delivery]:
        """One for each recipient; none where the notice has none by this way."""


@dataclass(slots=True)
class _Waiting:
    delivery: Delivery
    tries: int = 0


@dataclass(frozen=True, slots=True)
class Undelivered:
    """Deliveries of one channel that were given up. `reason` is the last one's: no secret, no address."""

    channel: str
    count: int
    reason: str


class Outbox:
    """`tell` takes notices; `run` sends them until it is cancelled.

    Args:
        link: the address of the page that a notice is about.
        first_wait_s: how long the first failure of a channel makes it wait; twice as long after each further one.
    """

    def __init__(
        self, channels: Sequence[Channel], link: Callable[[Notice], str], first_wait_s: float = FIRST_WAIT_S
    ) -> None:
        self._link = link
        self._queues = [_Queue(channel, first_wait_s) for channel in channels]

    def tell(self, notice: Notice) -> None:
        """Put the notice into every channel's queue."""
        link = self._link(notice)
        for queue in self._queues:
            queue.add(notice, link)

    async def run(self) -> None:
        if not self._queues:
            await asyncio.Event().wait()  # what ends without being cancelled is taken for broken
        async with asyncio.TaskGroup() as sending:
            for queue in self._queues:
                sending.create_task(queue.run())

    @property
    def waiting(self) -> int:
        """Deliveries that are still to be tried."""
        return sum(len(queue) for queue in self._queues)

    def undelivered(self) -> Sequence[Undelivered]:
        """What was given up, for each channel that has such."""
        return [queue.undelivered() for queue in self._queues if queue.given_up]

    def send_again(self) -> int:
        """Try what was given up afresh; how many deliveries that are."""
        return sum(queue.send_again() for queue in self._queues)

    async def close(self) -> None:
        """Give what waits a last, short chance; call while `run` goes on."""
        try:
            async with asyncio.timeout(_LAST_CHANCE_S):
                for queue in self._queues:
                    await queue.empty.wait()
        except TimeoutError:
            log.warning("notices are lost: %d", sum(len(queue) for queue in self._queues))


class _Queue:
    """One channel's deliveries, in turn. Each kind of failure is logged once, until a delivery has worked again."""

    def __init__(self, channel: Channel, first_wait_s: float) -> None:
        self._channel = channel
        self._first_wait_s = first_wait_s
        self._waiting: deque[_Waiting] = deque()
        self._news = asyncio.Event()
        self.empty = asyncio.Event()
        self.empty.set()
        self._logged: set[str] = set()
        self.given_up: deque[_Waiting] = deque(maxlen=MOST_UNDELIVERED)
        self._last_reason = ""

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, notice: Notice, link: str) -> None:
        for delivery in self._channel.deliveries(notice, link):
            self._put(_Waiting(delivery))
        self._news.set()

    def _put(self, waiting: _Waiting) -> None:
        if len(self._waiting) >= MOST_WAITING:
            self._waiting.popleft()
            self._log_once("too many wait; the oldest are given up")
        self._waiting.append(waiting)
        self.empty.clear()

    async def run(self) -> None:
        wait_s = self._first_wait_s
        while True:
            if not self._waiting:
                self.empty.set()
                self._news.clear()
                await self._news.wait()
                continue
            first = self._waiting[0]
            try:
                await first.delivery()
            except NotSent as failure:
                self._log_once(str(failure))
                self._after_failure(first, failure)
                await asyncio.sleep(wait_s if failure.again else 0)
                wait_s = min(2 * wait_s, LONGEST_WAIT_S) if failure.again else wait_s
            else:
                self._drop(first)
                self._logged.clear()
                wait_s = self._first_wait_s

    def _after_failure(self, failed: _Waiting, failure: NotSent) -> None:
        """Others go first: what one recipient's server refuses keeps nobody else waiting."""
        self._drop(failed)
        failed.tries += 1
        if failure.again and failed.tries < TRIES:
            self._put(failed)
        else:
            self.given_up.append(failed)
            self._last_reason = str(failure)

    def undelivered(self) -> Undelivered:
        return Undelivered(self._channel.name, len(self.given_up), self._last_reason)

    def send_again(self) -> int:
        again, self.given_up = self.given_up, deque(maxlen=MOST_UNDELIVERED)
        for one in again:
            one.tries = 0
            self._put(one)
        self._news.set()
        return len(again)

    def _drop(self, sent: _Waiting) -> None:
        if sent in self._waiting:  # it may have made room for others meanwhile
            self._waiting.remove(sent)

    def _log_once(self, reason: str) -> None:
        if reason not in self._logged:
            self._logged.add(reason)
            log.warning("%s: %s", self._channel.name, reason)
