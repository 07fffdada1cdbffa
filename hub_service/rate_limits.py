"""How often somebody may ask: windows that slide, in memory, by the `limits` library.

Asked by `identity` for pages and the API and by `gateway` for Fleet traffic. What is counted:

    WRITE, SITE_WRITE       requests that change something, of one person and of all of one site
    UPLOAD                  those that bring a file, of one person
    STRANGER                requests without a login, and scripts and styles, of one address
    NODE, SITE_NODES        Fleet requests of one participation's node and of all nodes of one site
    UNKNOWN_KEY             Fleet requests whose key opens nothing, of one address

The limits stand between a script gone wrong and everybody else. They are many times what people, notebooks and the
fastest rounds that were measured need (docs/access.md).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from enum import StrEnum

from limits import RateLimitItem, parse
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter


class Counted(StrEnum):
    """What has a limit of its own."""

    WRITE = "write"
    SITE_WRITE = "site-write"
    UPLOAD = "upload"
    STRANGER = "stranger"
    NODE = "node"
    SITE_NODES = "site-nodes"
    UNKNOWN_KEY = "unknown-key"


LIMITS: Mapping[Counted, str] = {
    Counted.WRITE: "600 per 1 minute",
    Counted.SITE_WRITE: "6000 per 1 minute",
    Counted.UPLOAD: "120 per 1 minute",
    Counted.STRANGER: "6000 per 1 minute",
    Counted.NODE: "3000 per 10 second",
    Counted.SITE_NODES: "30000 per 10 second",
    Counted.UNKNOWN_KEY: "600 per 1 minute",
}
"""In the notation of `limits`."""


class RateLimits:
    """Counts, and says when somebody has to wait.

    Args:
        limits: by what is counted; all of `Counted`.
        now: the time in seconds since 1970, as `limits` itself reads it.
    """

    def __init__(self, limits: Mapping[Counted, str] = LIMITS, now: Callable[[], float] = time.time) -> None:
        self._limits: dict[Counted, RateLimitItem] = {one: parse(limits[one]) for one in Counted}
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._now = now

    def wait_s(self, counted: Counted, who: str) -> int:
        """Count one request, if there is room for it: 0. Else whole seconds until it is worth to ask again."""
        item = self._limits[counted]
        return 0 if self._limiter.hit(item, counted, who) else self._left_s(item, counted, who)

    def waiting_s(self, counted: Counted, who: str) -> int:
        """As `wait_s`, and counts nothing."""
        item = self._limits[counted]
        return 0 if self._limiter.test(item, counted, who) else self._left_s(item, counted, who)

    def _left_s(self, item: RateLimitItem, counted: Counted, who: str) -> int:
        reset = self._limiter.get_window_stats(item, counted, who).reset_time
        return max(1, math.ceil(reset - self._now()))
