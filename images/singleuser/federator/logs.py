"""One form of log lines for the Hub, the service, the aggregators and the client kernels. Standard library only.

What a line belongs to (a request, a run, a project, a site) is put around the code that logs, not into each message:

    with logs.about(run=run.id):
        log.info("started")  # {"time": ..., "message": "started", "run": ...}

Names in the JSON form: time (ISO 8601, UTC), level, logger, message, then request_id, run, project, site and message_id
where known, and exception. In both forms a message is one line: what somebody else has typed forges no second one.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from enum import StrEnum
from typing import TextIO

REQUEST_ID_HEADER = "X-Request-ID"
FORMAT_VARIABLE = "FEDERATOR_LOG_FORMAT"
RUN_VARIABLE, PROJECT_VARIABLE = "FEDERATOR_RUN", "FEDERATOR_PROJECT"

NAMES = ("request_id", "run", "project", "site", "message_id")
"""What a line may be about, in the order in which it says so."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# C0 and C1 controls, and what a reader does not see but a terminal or an editor obeys.
_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

_about: ContextVar[Mapping[str, str]] = ContextVar("_about", default={})  # noqa: B039 - never changed, only replaced


_process: dict[str, str] = {}  # what every line of this process is about


class LogFormat(StrEnum):
    TEXT = "text"  # for people
    JSON = "json"  # one object a line, for programs


@contextmanager
def about(**names: str) -> Iterator[None]:
    """What is logged inside, in this task or thread, is about these NAMES too."""
    token = _about.set({**_about.get(), **names})
    try:
        yield
    finally:
        _about.reset(token)


def note(**names: str) -> None:
    """As `about`, for the rest of this task or thread."""
    _about.set({**_about.get(), **names})


def noted(name: str) -> str:
    """What lines of this task or thread say for one of NAMES; "" where nothing is known."""
    return _about.get().get(name, "")


def begin_process(environment: Mapping[str, str]) -> LogFormat:
    """Let every line of this process say which run and project it serves; return the form that is asked for.

    Raises ValueError for a form that is none.
    """
    _process.update(run=environment.get(RUN_VARIABLE, ""), project=environment.get(PROJECT_VARIABLE, ""))
    return LogFormat(environment.get(FORMAT_VARIABLE) or LogFormat.TEXT)


def take_over(logger: logging.Logger, wanted: LogFormat) -> None:
    """Let a library's logger, which has handlers of its own, write in our form instead."""
    logger.handlers[:] = [_handler(wanted)]


def checked_request_id(text: str) -> str:
    """A request id that came from outside, if it is short and harmless; else ""."""
    return text if _REQUEST_ID.fullmatch(text) else ""


def request_headers() -> dict[str, str]:
    """Headers for a request that is made for the one that is being answered; none where there is none."""
    known = noted("request_id")
    return {REQUEST_ID_HEADER: known} if known else {}


def one_line(text: str) -> str:
    """The text with everything escaped that could break a line or hide in it."""
    return _UNSEEN.sub(lambda found: _escaped(found[0]), text)


def _escaped(character: str) -> str:
    return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(character, f"\\u{ord(character):04x}")


def _known() -> dict[str, str]:
    about = {**_process, **_about.get()}
    return {name: one_line(about[name]) for name in NAMES if about.get(name)}


class TextLines(logging.Formatter):
    """`2026-11-28 12:00:00,123 INFO hub_service.app: message [run=...]`; a stack follows, indented."""

    def format(self, record: logging.LogRecord) -> str:
        known = " ".join(f"{name}={value}" for name, value in _known().items())
        line = f"{self.formatTime(record)} {record.levelname} {record.name}: {one_line(record.getMessage())}"
        lines = [f"{line} [{known}]" if known else line]
        if record.exc_info:
            lines += [f"    {one_line(one)}" for one in self.formatException(record.exc_info).split("\n")]
        return "\n".join(lines)


class JsonLines(logging.Formatter):
    """See the module's text."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": one_line(record.getMessage()),
            **_known(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def formatter(wanted: LogFormat) -> logging.Formatter:
    return JsonLines() if wanted is LogFormat.JSON else TextLines()


def set_up(wanted: LogFormat, stream: TextIO | None = None) -> None:
    """Write everything from INFO on to the stream, standard error by default. Called once, at a process's start."""
    logging.basicConfig(level=logging.INFO, handlers=[_handler(wanted, stream)])


def _handler(wanted: LogFormat, stream: TextIO | None = None) -> logging.Handler:
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setLevel(logging.INFO)
    handler.setFormatter(formatter(wanted))
    return handler
