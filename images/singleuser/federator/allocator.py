"""How the C library gives memory to a process that makes and frees whole models, round after round.

Left alone, glibc gives an array's memory back to the system once it is freed, and takes it anew for the next one, in
pages of 4 KiB that the system clears one by one: with a model of 100 MB that is a sixth of a round's processor time.
Told so, it keeps what was freed and asks for large pages. Another C library passes the variable by.

Standard library only: client kernels are started with this, and aggregators too.
https://www.gnu.org/software/libc/manual/html_node/Memory-Allocation-Tunables.html
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

VARIABLE = "GLIBC_TUNABLES"  # read when a process begins

_LARGEST_KEPT = 32 * 1024**2  # bytes of one array; glibc knows no higher bound
_KEPT = 512 * 1024**2  # bytes in all
_TUNABLES = {
    "glibc.malloc.hugetlb": 1,
    "glibc.malloc.mmap_threshold": _LARGEST_KEPT,
    "glibc.malloc.trim_threshold": _KEPT,
}


def settings(environ: Mapping[str, str]) -> dict[str, str]:
    """The variable for such a process's environment. What stands in `environ`, the site's or the person's word, goes
    first.
    """
    ours = ":".join(f"{name}={value}" for name, value in _TUNABLES.items())
    return {VARIABLE: environ.get(VARIABLE, ours)}


def give_back() -> None:
    """Give what this process has freed back to the system: it will need it no more for a while.

    Blocks for some milliseconds. Without glibc nothing happens.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
