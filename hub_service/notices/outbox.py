"""Holds notices until they are sent, and tries again. Nobody who tells something waits for it, or fails with it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from hub_service.domain.notices import Notice

log = logging.getLogger(__name__)

MOST_WAITING = 1000  # deliveries of a channel; the oldest make room
MOST_UNDELIVERED = 200  # of a channel, that an admin can have sent again
TRIES = 8
FIRST_WAIT_S = 5.0  # after a delivery's first failure; twice as long after each further one, so 10 minutes in all
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


@dataclass(slots=True, eq=False)
class _Waiting:
    delivery: Delivery
    tries: int = 0
    due: float = 0.0  # by the event loop's clock


@dataclass(frozen=True, slots=True)
class Undelivered:
    """Deliveries of one channel that were given up. `reason` is the last one's: no secret, no address."""

    channel: str
    count: int
    reason: str


class Outbox:
    """`tell` takes notices; the tasks of `runs` send them until they are cancelled.

    Args:
        link: the address of the page that a notice is about.
        first_wait_s: how long a delivery waits after its first failure; twice as long after each further one.
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

    def runs(self) -> Mapping[str, Callable[[], Awaitable[None]]]:
        """What sends, for each channel by its name: one that breaks is no other's trouble."""
        return {queue.name: queue.run for queue in self._queues}

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
        """Give what waits a last, short chance; call while the tasks of `runs` go on."""
        try:
            async with asyncio.timeout(_LAST_CHANCE_S):
                for queue in self._queues:
                    await queue.empty.wait()
        except TimeoutError:
            log.warning("notices are lost: %d", sum(len(queue) for queue in self._queues))


class _Queue:
    """One channel's deliveries, in turn: what one recipient's server refuses keeps nobody else waiting.

    Each kind of failure is logged once, until a delivery has worked again.
    """

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

    @property
    def name(self) -> str:
        return self._channel.name

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
        while True:
            first = await self._first_that_is_due()
            if first.tries == TRIES:  # it broke the service's own code each time
                self._give_up(first, "the service made a mistake")
                continue
            first.tries += 1
            self._put_off(first)
            try:
                await first.delivery()
            except NotSent as failure:
                self._log_once(str(failure))
                self._put_off(first)
                if not failure.again or first.tries == TRIES:
                    self._give_up(first, str(failure))
            else:
                self._drop(first)
                self._logged.clear()

    async def _first_that_is_due(self) -> _Waiting:
        loop = asyncio.get_running_loop()
        while True:
            if not self._waiting:
                self.empty.set()
            self._news.clear()
            first = min(self._waiting, key=lambda one: one.due, default=None)
            if first is not None and first.due <= loop.time():
                return first
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(None if first is None else first.due):
                    await self._news.wait()

    def _put_off(self, tried: _Waiting) -> None:
        tried.due = asyncio.get_running_loop().time() + self._first_wait_s * 2 ** (tried.tries - 1)

    def _give_up(self, failed: _Waiting, reason: str) -> None:
        self._drop(failed)
        self.given_up.append(failed)
        self._last_reason = reason

    def undelivered(self) -> Undelivered:
        return Undelivered(self.name, len(self.given_up), self._last_reason)

    def send_again(self) -> int:
        again, self.given_up = self.given_up, deque(maxlen=MOST_UNDELIVERED)
        for one in again:
            one.tries, one.due = 0, 0.0
            self._put(one)
        self._news.set()
        return len(again)

    def _drop(self, sent: _Waiting) -> None:
        if sent in self._waiting:  # it may have made room for others meanwhile
            self._waiting.remove(sent)

    def _log_once(self, reason: str) -> None:
        if reason not in self._logged:
            self._logged.add(reason)
            log.warning("%s: %s", self.name, reason)
