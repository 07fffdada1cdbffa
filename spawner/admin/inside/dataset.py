"""Reads a dataset's folder as a notebook would, and tries to write into it. Argument: the folder."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

signal.alarm(15)
LOOKED_AT = 1000  # entries; a dataset may have millions


def entries(folder: Path) -> int:
    with os.scandir(folder) as listed:
        return sum(1 for _ in zip(range(LOOKED_AT), listed, strict=False))


def unreadable(folder: Path) -> str | None:
    """Why the first file that comes cannot be read; None if it can, or if there is none near the top."""
    passed = 0
    try:
        for parent, folders, files in os.walk(folder, onerror=fail):
            for name in files:
                with Path(parent, name).open("rb") as file:
                    file.read(1)
                return None
            passed += len(folders)
            if passed > LOOKED_AT:
                return None
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    return None


def fail(error: OSError) -> None:
    raise error


def write(folder: Path) -> str | None:
    """Why nothing can be written; None if it can."""
    try:
        (folder / ".notebook-federator-check").touch(exist_ok=False)
        (folder / ".notebook-federator-check").unlink()
    except OSError as error:
        return error.strerror
    return None


dataset = Path(sys.argv[1])
trouble = unreadable(dataset)
json.dump(
    {
        "entries": 0 if trouble else entries(dataset),
        "most": LOOKED_AT,
        "unreadable": trouble,
        "write_refused": write(dataset),
    },
    sys.stdout,
)
