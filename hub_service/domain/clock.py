"""Time and ids, as they are passed in; and how a time is written for people and programs."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]  # the time now, with a timezone
NewId = Callable[[], str]  # a fresh id that nobody can guess


def utc_text(moment: datetime | None) -> str:
    """ISO 8601 in UTC to the second, as the contract says; "" for no time."""
    return "" if moment is None else moment.astimezone(UTC).isoformat(timespec="seconds")
