"""Files that are there whole or not at all, also after a crash or on a full disk."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def kept_file(path: Path, make: Callable[[], bytes]) -> bytes:
    """What the file holds. Made on first use, for this account's eyes only; of two who make it at once, one wins.

    An empty one is of a service that had begun it and was ended, or had no room. Raises OSError where the disk refuses.
    """
    with contextlib.suppress(FileNotFoundError):
        if content := path.read_bytes():
            return content
        path.unlink()
    _make(path, make())
    return path.read_bytes()


def _make(path: Path, content: bytes) -> None:
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(name, path)
    finally:
        os.unlink(name)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """A file's name, too, is on the disk: it stands in the folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
