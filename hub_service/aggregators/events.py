"""The event file of a run: one `RunEvent` a line, as JSON.

Written by the ServerApp process (`serverapp.py`), read by `hub_service.reconciler`. The two share no memory and the
reader may be restarted, so a place in the file is a byte offset behind a whole line.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

from hub_service.domain.runs import EventKind, RunEvent

EVENTS_FILE = "events.jsonl"
MODEL_FILE = "model.safetensors"
SERVERAPP_LOG = "serverapp.log"


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


def read_events(folder: Path, offset: int = 0) -> tuple[list[RunEvent], int]:
    """Events written since `offset`, and the offset to go on from. A line that is not finished yet is left for later.

    Args:
        folder: the run folder; it may have no event file yet.
        offset: bytes, 0 for the start or what an earlier call returned.
    """
    path = folder / EVENTS_FILE
    if not path.exists():
        return [], offset
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read()
    whole = data[: data.rfind(b"\n") + 1]
    return [decode(line) for line in whole.decode("utf-8").splitlines()], offset + len(whole)
