"""Tells of approvals that end soon, each once. What was told is in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta

from hub_service.domain.notices import Notice, Tell

Ending = tuple[str, str, str, str, str]
"""Project, app version, site, dataset, and when the approval ends."""


class Endings:
    """Call `look` every hour or so.

    Args:
        ending: the notices of all approvals that end within a time.
        within: how long before its end an approval is told of.
    """

    def __init__(self, ending: Callable[[timedelta], Mapping[Ending, Notice]], tell: Tell, within: timedelta) -> None:
        self._ending = ending
        self._tell = tell
        self._within = within
        self._told: frozenset[Ending] = frozenset()

    def look(self) -> None:
        """Tell of those that were not told of before."""
        now = self._ending(self._within)
        for ending, notice in now.items():
            if ending not in self._told:
                self._tell(notice)
        self._told = frozenset(now)
