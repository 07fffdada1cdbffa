"""The event file of a run: one `RunEvent` a line, as JSON.

Written by the ServerApp process (`serverapp.py`), read by `hub_service.reconciler`. The two share no memory and the
reader may be restarted, so a place in the file is a byte offset behind a whole line.

That process runs code of the project's owner: whatever stands in its run folder is read with care.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import re
import stat
from pathlib import Path
from typing import BinaryIO, TypeGuard

from hub_service.domain.errors import Invalid
from hub_service.domain.runs import EventKind, RunEvent

EVENTS_FILE = "events.jsonl"
MODEL_FILE = "model.safetensors"
SERVERAPP_LOG = "serverapp.log"

_AT_ONCE = 8 * 1024**2  # bytes of events that are read in one go
_LARGEST = 512 * 1024**2  # bytes of one run's events
_LARGEST_NUMBER = 2**63 - 1
_WHOLE_NUMBERS = ("round", "examples", "size")
_LONGEST = 2**35  # seconds: a thousand years, whose begin and end every calendar here knows
_MODEL = re.compile(r"(federated|[0-9]{1,20})?")  # "" in events that are about none
_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO)


def round_model_file(number: int) -> str:
    """The name of a round's model in the run folder."""
    return f"model-{number:d}.safetensors"


class EventFile:
    """Appends events to a run folder's event file. Each line reaches the file in one write.

    A line that a lost process had not finished is taken away: nobody has read it.

    Attributes:
        begun: whether another process has written to it before.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / EVENTS_FILE
        self.begun = False
        if self._path.exists():
            with self._path.open("rb+") as file:
                whole = file.read().rfind(b"\n") + 1
                file.truncate(whole)
            self.begun = whole > 0

    def write(self, event: RunEvent) -> None:
        """Raises OSError where the disk refuses; nothing of the line is left then."""
        line = (encode(event) + "\n").encode("utf-8")
        with self._path.open("ab", buffering=0) as file:
            written = file.write(line)
            if written != len(line):
                file.truncate(file.tell() - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))


def encode(event: RunEvent) -> str:
    """The event as one line of JSON. Metrics that are not finite numbers are left out: JSON has no word for them."""
    fields = dataclasses.asdict(event)
    fields["metrics"] = {name: value for name, value in event.metrics.items() if math.isfinite(value)}
    return json.dumps(fields, allow_nan=False)


def decode(line: str) -> RunEvent:
    """The event that `encode` wrote. Texts are as a database can keep them.

    Raises ValueError, KeyError or TypeError for anything else.
    """
    fields = json.loads(line)
    event = RunEvent(**{**fields, "kind": EventKind(fields["kind"])})
    for field in dataclasses.fields(RunEvent):
        _require_type(field.name, getattr(event, field.name))
    if event.kind is EventKind.SCORE and not event.model:
        raise ValueError("a score is of a model")
    return dataclasses.replace(
        event,
        phase=_as_kept(event.phase),
        message_type=_as_kept(event.message_type),
        metrics={_as_kept(name): value for name, value in event.metrics.items()},
        counts={_as_kept(name): value for name, value in event.counts.items()},
        text=_as_kept(event.text),
    )


def _require_type(name: str, value: object) -> None:
    if name in _WHOLE_NUMBERS:
        fits = type(value) is int and _is_number(value)
    elif name == "node_id":
        fits = type(value) is int and 0 <= value < 2**64
    elif name == "at":
        fits = _is_number(value) and 0 <= value <= _LONGEST
    elif name == "seconds":
        fits = _is_number(value) and abs(value) <= _LONGEST
    elif name == "model":
        fits = isinstance(value, str) and _MODEL.fullmatch(value) is not None
    elif name == "metrics":
        fits = isinstance(value, dict) and all(map(_is_number, value.values()))
    elif name == "counts":
        fits = isinstance(value, dict)
    else:
        fits = isinstance(value, str)
    if not fits:
        raise ValueError(f"{name} cannot be {type(value).__name__} here")


def _is_number(value: object) -> TypeGuard[float]:
    """No database keeps whole numbers of more than 64 bits."""
    return type(value) is float or (type(value) is int and -_LARGEST_NUMBER <= value <= _LARGEST_NUMBER)


def _as_kept(text: str) -> str:
    return text.replace("\x00", "\ufffd").encode("utf-8", errors="replace").decode("utf-8")


def open_run_file(folder: Path, name: str) -> BinaryIO:
    """A file of a run folder, for reading. Raises FileNotFoundError where no plain file stands there, and OSError.

    A link could lead to any file that the service may read, and a pipe would hold the service up.
    """
    path = folder / name
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if not is_missing(error):
            raise
        raise FileNotFoundError(error.errno, error.strerror, str(path)) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileNotFoundError(None, "not a plain file", str(path))
    return open(descriptor, "rb")


def is_missing(error: OSError) -> bool:
    """Whether it is that no such file, or a link, stands there. Any other error says nothing of what stands there."""
    return error.errno in _MISSING


def read_events(folder: Path, offset: int = 0) -> tuple[list[RunEvent], int]:
    """Events written since `offset`, some at least, and the offset to go on from. An unfinished line is left for later.

    They are on the disk when this returns: a reader that keeps them elsewhere must know no more than the file does once
    the machine has lost its power. Waits for the disk, so call from a thread.

    Args:
        folder: the run folder; it may have no event file yet.
        offset: bytes, 0 for the start or what an earlier call returned.

    Raises Invalid where what stands there are no events, or too many; and OSError where they cannot be read now.
    """
    try:
        with open_run_file(folder, EVENTS_FILE) as file:
            file.seek(offset)
            data = file.read(_AT_ONCE)
            if data:
                os.fsync(file.fileno())
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
