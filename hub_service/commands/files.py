"""Files that a command writes for the administrator."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from hub_service.domain.errors import Conflict, Unavailable


@contextmanager
def new_private_file(target: Path) -> Iterator[IO[bytes]]:
    """A file that only its owner may read, and that has its name once it is whole and on the disk.

    Raises Conflict where the name is taken, Unavailable where the disk refuses.
    """
    if target.exists():
        raise Conflict(f"{target} is there already.", "Choose another name, or remove it.")
    try:
        descriptor, partial = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}-")  # with mode 0600
        try:
            with open(descriptor, "w+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.link(partial, target)  # unlike a renaming, it replaces nothing
        finally:
            os.unlink(partial)
    except FileExistsError as error:
        raise Conflict(f"{target} is there already.", "Choose another name, or remove it.") from error
    except OSError as error:
        raise Unavailable(
            f"{target} cannot be written: {error.strerror}.", "Make room on its disk, or choose another."
        ) from error
