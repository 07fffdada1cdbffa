"""How many cores this process may use, and so how many threads a numerical library should start.

Left alone, such a library starts one thread for each core of the machine, also in a container that may use two of 64.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

THREADS_VARIABLE = "OMP_NUM_THREADS"  # read by PyTorch, MKL and OpenBLAS, when they are imported
LIMIT_VARIABLE = "CPU_LIMIT"  # JupyterHub's word to a server whose spawner has a `cpu_limit`

_OWN_GROUPS = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")


def usable_cores(environ: Mapping[str, str], own_groups: Path = _OWN_GROUPS, groups: Path = _GROUPS) -> int:
    """The least of what the scheduler, the Hub, the site's own number of threads and the control groups allow.

    A part of a core counts as one. Called by `federator.provisioner` for each client kernel, and by `federator.trial`.

    Args:
        own_groups: the kernel's list of this process's control groups.
        groups: where the control groups are mounted.
    """
    said = (number for name in (LIMIT_VARIABLE, THREADS_VARIABLE) for number in _said(environ.get(name, "")))
    limits = [len(os.sched_getaffinity(0)), *said, *_quotas(own_groups, groups)]
    return max(1, math.ceil(min(limits)))


def _said(text: str) -> Iterator[float]:
    try:
        limit = float(text)
    except ValueError:
        return
    if limit > 0:
        yield limit


def _quotas(own_groups: Path, groups: Path) -> Iterator[float]:
    """Cores' worth of time of this process's control groups and of all those around them."""
    for line in _text(own_groups).splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            for folder in _folders(groups, path):
                yield from _share(*_text(folder / "cpu.max").split())
        elif "cpu" in controllers.split(","):
            for folder in _folders(groups / controllers, path):
                yield from _share(_text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us"))


def _folders(mounted: Path, path: str) -> Iterator[Path]:
    """A group's folder and those above it. In a container only the uppermost may be seen: it is the container's own."""
    folder = mounted / path.lstrip("/")
    yield folder
    while folder != mounted:
        folder = folder.parent
        yield folder


def _share(quota: str = "", period: str = "") -> Iterator[float]:
    """The quota in periods, both in microseconds. No limit is "max" in version 2, -1 in version 1."""
    try:
        microseconds, every = int(quota), int(period)
    except ValueError:
        return
    if microseconds > 0 and every > 0:
        yield microseconds / every


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
