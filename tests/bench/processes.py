"""Memory and processor time of processes, sampled while something runs."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

EVERY_S = 0.05


@dataclass
class Watched:
    """What was seen of some processes together. Bytes and seconds.

    Attributes:
        peak: most memory that cannot be reclaimed: anonymous and shared; pages that several share are counted once.
        peak_rss: most resident memory; pages of files and of other processes too.
        before: as `peak`, at the beginning.
        seconds: how long it was watched.
        processor: processor time that was used meanwhile by those who were there at the end.
        most: most processes at once.
    """

    peak: int = 0
    peak_rss: int = 0
    before: int = 0
    seconds: float = 0.0
    processor: float = 0.0
    most: int = 0


@contextlib.contextmanager
def watched(processes: Callable[[], Iterable[int]], every_s: float = EVERY_S) -> Iterator[Watched]:
    """Sample the processes that there are, by their ids, until the block ends; the result is whole then."""
    result = Watched()
    used: dict[int, tuple[float, float]] = {}
    over = threading.Event()

    def sample() -> None:
        begun = time.perf_counter()
        first = True
        while not over.is_set():
            _sample(result, used, processes(), first=first)
            first = False
            over.wait(every_s)
        result.seconds = time.perf_counter() - begun
        result.processor = sum(last - before for before, last in used.values())

    thread = threading.Thread(target=sample, name="watched")
    thread.start()
    try:
        yield result
    finally:
        over.set()
        thread.join()


def _sample(result: Watched, used: dict[int, tuple[float, float]], processes: Iterable[int], *, first: bool) -> None:
    kept = resident = count = 0
    for pid in processes:
        try:
            memory = _memory(pid)
            times = psutil.Process(pid).cpu_times()
        except (OSError, IndexError, psutil.Error):  # it ended in between
            continue
        kept += memory[0]
        resident += memory[1]
        count += 1
        now = times.user + times.system
        before = used.get(pid, (now if first else 0.0, now))[0]
        used[pid] = (before, now)
    if first:
        result.before = kept
    result.peak = max(result.peak, kept)
    result.peak_rss = max(result.peak_rss, resident)
    result.most = max(result.most, count)


def descendants(pid: int) -> list[int]:
    """Ids of all that the process has started, and of what that has started."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # it ended in between
            children = [int(child) for child in path.read_text().split()]
            found += [*children, *(one for child in children for one in descendants(child))]
    return found


def _memory(pid: int) -> tuple[int, int]:
    """Bytes that cannot be reclaimed, and resident bytes."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    sizes = {name: 1024 * int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    return sizes["Pss_Anon"] + sizes["Pss_Shmem"], sizes["Rss"]
