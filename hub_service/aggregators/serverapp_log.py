"""The log of a run's ServerApp: what the project's own code printed, as members read it while the run goes.

Whatever stands there was written by code of the project's owner. It is kept within bounds on disk and read in pieces.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from hub_service.aggregators.events import SERVERAPP_LOG, open_run_file
from hub_service.domain.errors import Unavailable

PIECE = 64 * 1024  # bytes that are read at once, at most
LOG_LIMIT = 8 * 1024**2  # bytes on disk, at which the oldest lines go
_LOG_KEPT = 1024**2  # bytes that stay then


@dataclass(frozen=True, slots=True)
class LogPiece:
    """Whole lines of a log, and the bytes between which they stand."""

    data: bytes = b""
    start: int = 0
    end: int = 0


def read_log(folder: Path, after: int) -> LogPiece:
    """What stands in a run folder's log behind `after`, PIECE bytes of its end at most. Empty where there is no log.

    Raises Unavailable where it cannot be read now.
    """
    try:
        with open_run_file(folder, SERVERAPP_LOG) as file:
            return piece_of(file, after)
    except FileNotFoundError:
        return LogPiece()
    except OSError as error:
        raise Unavailable("The run's log cannot be read now.", "Try again.", debug=str(error)) from error


async def no_log(project_id: str, run_id: str, after: int) -> LogPiece:
    """For where there are no aggregators."""
    return LogPiece()


def piece_of_bytes(log: bytes, after: int) -> LogPiece:
    return piece_of(BytesIO(log), after)


def piece_of(file: BinaryIO, after: int) -> LogPiece:
    """The file's last whole lines behind `after`. A place beyond its end is one in a log that was cut since."""
    size = file.seek(0, os.SEEK_END)
    begin = max(after if after <= size else 0, size - PIECE)
    # From one byte before: whether that is a line's end says whether a whole line stands here.
    file.seek(max(0, begin - 1))
    data = file.read(size - max(0, begin - 1))
    if begin > 0 and begin != after:
        skipped = data.find(b"\n") + 1
        begin, data = (begin - 1 + skipped, data[skipped:]) if skipped else (begin, data[1:])
    elif begin > 0:
        data = data[1:]
    whole = data[: data.rfind(b"\n") + 1]
    if len(data) == PIECE and not whole:  # one line longer than what is read at once
        whole = data
    return LogPiece(whole, begin, begin + len(whole))


def trim_log(folder: Path) -> None:
    """Cut a log that has grown over its limit down to its last lines.

    Its writers append, so they go on behind what is left; lines that are written during the cut may be lost.
    """
    path = folder / SERVERAPP_LOG
    try:
        if path.lstat().st_size <= LOG_LIMIT:
            return
        with open_run_file(folder, SERVERAPP_LOG) as file:
            file.seek(-_LOG_KEPT, os.SEEK_END)
            kept = file.read(_LOG_KEPT)
        kept = kept[kept.find(b"\n") + 1 :]
        with open(os.open(path, os.O_WRONLY | os.O_NOFOLLOW), "wb") as file:
            file.write(kept)
            file.truncate()
    except OSError:  # the disk refuses, or the owner's code has put something else there: there is no log then
        return
