"""What became of faults: `measuring` writes it down, `python -m tests.reliability` prints docs/reliability.md's tables.

One file a fault lies below test-output/reliability; each try is a line in it.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

RELIABILITY = Path(__file__).resolve().parents[1] / "test-output" / "reliability"
SOAK = "soak"
REVOKED = "revoked: "  # what begins so is a right that was taken back, and no fault
MEGABYTE = 1 << 20


def file_of(name: str) -> Path:
    return RELIABILITY / f"{re.sub('[^a-z0-9]+', '-', name.lower())}.jsonl"


@contextmanager
def measuring(name: str) -> Iterator[dict[str, Any]]:
    """One try of a fault, or one soak. A line is added to what was measured of it, whatever becomes of the block.

    Give it the block of everything that the try asserts: `held`, whether nothing was lost, is that its end was reached.

    Args:
        name: what is done, in the words of the table.

    Yields:
        Where to put times in seconds, each under a name that ends in `_s`.
    """
    measured: dict[str, Any] = {"fault": name, "held": False}
    try:
        yield measured
        measured["held"] = True
    finally:
        RELIABILITY.mkdir(parents=True, exist_ok=True)
        with file_of(name).open("a") as lines:
            lines.write(json.dumps(measured) + "\n")


# --- tables


def tries(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def spread(seconds: Sequence[float]) -> str:
    """Median and worst."""
    if not seconds:
        return "-"
    return f"{statistics.median(seconds):.1f} s, {max(seconds):.1f} s"


def table(columns: Mapping[str, str], found: Sequence[Sequence[Mapping[str, Any]]]) -> Iterable[str]:
    """A row for each fault whose times are among these columns: key of the time -> heading. Without columns, for each
    that has no times: nobody measures them, or no try came so far."""
    of_these = [one for one in found if times_of(one) <= set(columns) and bool(times_of(one)) is bool(columns)]
    if of_these:
        headings = [f"{heading}: median, worst" for heading in columns.values()]
        yield f"| {' | '.join(['fault', 'tries', *headings, 'tries in which anything was lost'])} |"
        yield "|---" * (len(columns) + 3) + "|"
    for one in of_these:
        times = [spread([a_try[key] for a_try in one if key in a_try]) for key in columns]
        lost = sum(not a_try["held"] for a_try in one)
        yield f"| {' | '.join([one[-1]['fault'], str(len(one)), *times, str(lost)])} |"
    yield ""


def times_of(of_one_fault: Sequence[Mapping[str, Any]]) -> set[str]:
    """The keys of what any of the tries has measured: one that failed lacks some."""
    return {key for a_try in of_one_fault for key in a_try if key.endswith("_s")} - {"at_s"}


def soak_rows() -> Iterable[str]:
    for soak in tries(file_of(SOAK)):
        minutes, runs = soak["seconds"] / 60, sum(soak["runs"].values())
        yield f"{minutes:.0f} minutes, seed {soak['seed']}: {len(soak['faults'])} faults; {runs} runs with"
        came_of_it = "nothing was lost" if soak["held"] else "it DID NOT HOLD"
        yield f"{soak['rounds']} rounds in all; {came_of_it}. Memory of a process of each kind:"
        yield ""
        yield "| kind | first third | last third |"
        yield "|---|---|---|"
        for kind, (first, last) in soak["memory"].items():
            yield f"| {kind} | {first / MEGABYTE:.0f} MB | {last / MEGABYTE:.0f} MB |"
        yield ""


def report() -> Iterable[str]:
    found = [tries(path) for path in sorted(RELIABILITY.glob("*.jsonl")) if path != file_of(SOAK)]
    yield from table({"back_s": "the service answers again after", "later_s": "the run ends later by"}, found)
    yield from table({"again_s": "first message of the round that is done again after"}, found)
    revoked = [one for one in found if one[-1]["fault"].startswith(REVOKED)]
    faults = [one for one in found if one not in revoked]
    yield from table({"told_s": "noticed, or the round closed, after", "rejoined_s": "works again after"}, faults)
    yield from table({"told_s": "refused after"}, revoked)
    yield from table({}, found)
    yield from soak_rows()


if __name__ == "__main__":
    sys.stdout.write("\n".join(report()))
