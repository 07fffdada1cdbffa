"""How it shows that a disk, or an account's share of it, is full."""

from __future__ import annotations

import errno


def is_full_disk(error: BaseException | None) -> bool:
    """Whether an error, or what led to it, is that there was no room."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False
