"""How long to wait before trying again."""

from __future__ import annotations

from collections.abc import Callable

FIRST = 0.5  # seconds
LONGEST = 10.0  # seconds


class Delay:
    """Seconds before each next attempt: doubling up to the longest, spread so that the servers of a Hub that has
    restarted do not march in step."""

    def __init__(self, spread: Callable[[], float], first: float = FIRST, longest: float = LONGEST) -> None:
        """
        Args:
            spread: random numbers from 0 to 1.
        """
        self._spread = spread
        self._first, self._longest = first, longest
        self._seconds = first

    def next(self) -> float:
        seconds, self._seconds = self._seconds, min(self._longest, 2 * self._seconds)
        return seconds * (0.5 + self._spread() / 2)

    def reset(self) -> None:
        self._seconds = self._first
