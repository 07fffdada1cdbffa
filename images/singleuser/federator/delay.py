"""How long to wait before trying again."""

from __future__ import annotations

from collections.abc import Callable

FIRST = 0.5  # seconds
LONGEST = 10.0  # seconds


class Delay:
    """Seconds before each next attempt: doubling from `FIRST` to `LONGEST`, spread so that the servers of a Hub that
    has restarted do not march in step."""

    def __init__(self, spread: Callable[[], float]) -> None:
        """
        Args:
            spread: random numbers from 0 to 1.
        """
        self._spread = spread
        self._seconds = FIRST

    def next(self) -> float:
        seconds, self._seconds = self._seconds, min(LONGEST, 2 * self._seconds)
        return seconds * (0.5 + self._spread() / 2)

    def reset(self) -> None:
        self._seconds = FIRST
