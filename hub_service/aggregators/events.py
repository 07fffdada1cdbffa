"""The event file of a run: one `RunEvent` a line, as JSON.

Written by the ServerApp process (`serverapp.py`), read by `hub_service.reconciler`. The two share no memory and the
reader may be restarted, so a place in the file is a byte offset behind a whole line.

That process runs code of the project's owner: whatever stands in its run folder is read with care.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import stat
from pathlib import Path
from typing import BinaryIO

from hub_service.domain.errors import Invalid
from hub_service.domain.runs import EventKind, RunEvent

EVENTS_FILE = "events.jsonl"
MODEL_FILE = "model.safetensors"
SERVERAPP_LOG = "serverapp.log"

_AT_ONCE = 8 * 1024**2  # bytes of events that are read in one go
_LARGEST = 512 * 1024**2  # bytes of one run's events


def round_model_file(number: int) -> str:
    """The name of a round's model in the run folder."""
    return f"model-{number:d}.safetensors"


class EventFile:
    """Appends events to a run folder's event file. Each line reaches the file in one write."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / EVENTS_FILE

    def write(self, event: RunEvent) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(encode(event) + "\n")


def encode(event: RunEvent) -> str:
    """The event as one line of JSON. Metrics that are not finite numbers are left out: JSON has no word for them."""
    fields = dataclasses.asdict(event)
    fields["metrics"] = {name: value for name, value in event.metrics.items() if math.isfinite(value)}
    return json.dumps(fields, allow_nan=False)


def decode(line: str) -> RunEvent:
    """The event that `encode` wrote."""
    fields = json.loads(line)
    return RunEvent(**{**fields, "kind": EventKind(fields["kind"])})


def open_run_file(folder: Path, name: str) -> BinaryIO:
    """A file of a run folder, for reading. Raises FileNotFoundError where no plain file stands there.

    A link could lead to any file that the service may read, and a pipe would hold the service up.
    """
    path = folder / name
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise FileNotFoundError(error.errno, error.strerror, str(path)) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileNotFoundError(None, "not a plain file", str(path))
    return open(descriptor, "rb")


def read_events(folder: Path, offset: int = 0) -> tuple[list[RunEvent], int]:
    """Events written since `offset`, some at least, and the offset to go on from. An unfinished line is left for later.

    Args:
        folder: the run folder; it may have no event file yet.
        offset: bytes, 0 for the start or what an earlier call returned.

    Raises Invalid where what stands there are no events, or too many.
    """
    try:
        with open_run_file(folder, EVENTS_FILE) as file:
            file.seek(offset)
            data = file.read(_AT_ONCE)
    except FileNotFoundError:
        return [], offset
    whole = data[: data.rfind(b"\n") + 1]
    if offset + len(whole) > _LARGEST or (not whole and len(data) == _AT_ONCE):
        raise Invalid("The run reported more events than can be kept.", "Look at the app's server code.")
    try:
        return [decode(line) for line in whole.decode("utf-8").splitlines()], offset + len(whole)
    except (ValueError, KeyError, TypeError) as error:
        raise Invalid(
            "The run reported something that is no event.", "Look at the app's server code.", debug=str(error)
        ) from error
