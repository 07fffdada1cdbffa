"""The log of this server's Flower client, which stays at its site: one bounded file a project, for its person only.

The client kernel writes it: what its node did, and what the project's app printed while it worked. `Run.site_log()` and
`Run.watch()` read it from any notebook of the same server. Nothing here is sent anywhere.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote

from jupyter_core.paths import jupyter_data_dir

from federator import logs

LOG_LIMIT = 1 << 20  # bytes of each of the two files that are kept
_OLDER = 1
_LONGEST_BEGUN = 4096  # characters that are kept of a line that does not end
_TAIL = 64 * 1024  # bytes that are read of a file's end
PRINTED = "federator.app"  # the logger of what the project's app prints


def log_path(project_id: str) -> Path:
    """Where the client of a project writes its log, on this server."""
    return Path(jupyter_data_dir()) / "federator" / f"{quote(project_id, safe='')}.log"


def tail(project_id: str, lines: int) -> list[str] | None:
    """The last lines of this server's log of a project. None where it has no such log."""
    path = log_path(project_id)
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return None
    return text.splitlines()[-lines:] if lines > 0 else []


class _SiteLines(logs.TextLines):
    """What the app prints is its own text, behind the time; what the node does says about which message."""

    def format(self, record: logging.LogRecord) -> str:
        if record.name == PRINTED:
            return f"{self.formatTime(record)} {logs.one_line(record.getMessage())}"
        return super().format(record)


class _PrivateFile(RotatingFileHandler):
    """Its files can be read by their owner only."""

    def _open(self) -> TextIOWrapper:
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        return open(descriptor, "a", encoding=self.encoding, errors=self.errors)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """A disk that refuses costs the line, and nothing else: to print it would be to log it again."""


def open_log(project_id: str) -> logging.Handler:
    """A handler for the log of a project's client.

    Raises:
        OSError: the folder cannot be written.
    """
    path = log_path(project_id)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handler = _PrivateFile(path, maxBytes=LOG_LIMIT, backupCount=_OLDER, encoding="utf-8", errors="replace")
    handler.setFormatter(_SiteLines())
    return handler


class AlsoLogged:
    """A standard stream that also hands to the log what other threads than the main one print. Cells run in that."""

    def __init__(self, stream: TextIO, log: Callable[[str], None]) -> None:
        self._stream = stream
        self._log = log
        self._of_thread = threading.local()  # `begun`: a line that has no end yet; `print` writes that apart

    def write(self, text: str) -> int:
        if threading.current_thread() is not threading.main_thread():
            *whole, begun = (getattr(self._of_thread, "begun", "") + text).split("\n")
            self._of_thread.begun = _left_over(begun)[-_LONGEST_BEGUN:]
            for line in whole:
                self._log(_left_over(line).rstrip("\r"))
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _left_over(line: str) -> str:
    """What a terminal still shows of a line that was written over, as progress bars do, which never end theirs."""
    text = line.rstrip("\r")
    return text.rpartition("\r")[2] + line[len(text) :][:1]
