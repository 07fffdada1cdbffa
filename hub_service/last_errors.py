"""The last errors of the service's own, for the admin page: what stands in its log, without the stack."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence

from federator import logs

MOST = 20


class LastErrors(logging.Handler):
    """Keeps the last MOST records of level ERROR and above. `lines` are (seconds since the epoch, text), oldest first.

    Errors only: warnings tell of projects, whose words are their members'.
    """

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._lines: deque[tuple[float, str]] = deque(maxlen=MOST)

    @property
    def lines(self) -> Sequence[tuple[float, str]]:
        return self._lines

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[0] if record.exc_info else None
        text = f"{record.getMessage()} ({error.__name__})" if error else record.getMessage()
        self._lines.append((record.created, logs.one_line(text)))
