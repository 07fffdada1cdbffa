"""`python -m tests.system.reliability`: the tables of docs/reliability.md, from what recovery tests and soak measured.

One file a fault lies below test-output/reliability; each try is a line in it.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.system.chaos import FAULTS, file_of

MEGABYTE = 1 << 20


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def spread(seconds: Sequence[float]) -> str:
    """Median and worst."""
    if not seconds:
        return "never"
    return f"{statistics.median(seconds):.1f} s, {max(seconds):.1f} s"


def fault_rows() -> Iterable[str]:
    yield (
        "| fault | tries | the service answers again after: median, worst "
        "| the run ends later by: median, worst | tries in which anything was lost |"
    )
    yield "|---|---|---|---|---|"
    for fault in FAULTS:
        tries = lines(file_of(fault))
        if tries:
            back, later = (spread([one[key] for one in tries if key in one]) for key in ("back_s", "later_s"))
            yield f"| {fault} | {len(tries)} | {back} | {later} | {sum(not one['held'] for one in tries)} |"


def soak_rows() -> Iterable[str]:
    for soak in lines(file_of("soak")):
        yield ""
        minutes, runs = soak["seconds"] / 60, sum(soak["runs"].values())
        yield f"{minutes:.0f} minutes, seed {soak['seed']}: {len(soak['faults'])} faults; {runs} runs with"
        yield f"{soak['rounds']} rounds in all, 0 lost. Memory of a process of each kind:"
        yield ""
        yield "| kind | first third | last third |"
        yield "|---|---|---|"
        for kind, (first, last) in soak["memory"].items():
            yield f"| {kind} | {first / MEGABYTE:.0f} MB | {last / MEGABYTE:.0f} MB |"


if __name__ == "__main__":
    sys.stdout.write("\n".join([*fault_rows(), *soak_rows(), ""]))
