"""A small file system that is really full."""

from __future__ import annotations

from pathlib import Path

_MEGABYTE = 1 << 20


def fill(folder: Path) -> Path:
    """Take all room; the file that has it."""
    filler = folder / "filler"
    with filler.open("ab", buffering=0) as file:
        for size in (_MEGABYTE, 4096, 1):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                continue
    return filler
