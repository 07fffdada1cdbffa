"""`make bench`: measure, print one table, keep the raw numbers in test-output/bench.json. Nothing is asserted.

python -m tests.bench [--without-peers] [GROUP ...]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import shutil
import signal
import statistics
import sys
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import httpx
import psutil
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from examples.demo.browser import StepError
from examples.demo.stack import ROOT, StackError
from tests.bench import big, gpu, idle, rounds, scale, sites
from tests.bench.hub import RunFailed
from tests.bench.rows import Peer, Row
from tests.conftest import REQUIREMENTS

RAW = ROOT / "test-output" / "bench.json"
FOLDER = ROOT / "test-output" / "bench"

Measure = Callable[[Path, bool], AsyncGenerator[Row]]
GROUPS: dict[str, tuple[Measure, Sequence[str]]] = {
    "rounds": (rounds.measured, ["needs_node"]),
    "big": (big.measured, ["needs_node"]),
    "scale": (scale.measured, ["needs_node"]),
    "idle": (idle.measured, ["needs_node"]),
    "gpu": (gpu.measured, []),
    "sites": (sites.measured, ["needs_docker", "needs_node"]),
}
MOST_OF_AN_ERROR = 300  # characters
WHAT_HAPPENS = (StepError, StackError, RunFailed, httpx.HTTPError, OSError, psutil.Error)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument(
        "groups", nargs="*", metavar="GROUP", help=f"{', '.join(GROUPS)}; all by default, always in this order"
    )
    parser.add_argument("--without-peers", action="store_true", help="measure ours only")
    arguments = parser.parse_args()
    if unknown := set(arguments.groups) - set(GROUPS):
        parser.error(f"no such group: {', '.join(sorted(unknown))}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that everything that was started is stopped
    console = Console(width=None if sys.stdout.isatty() else 150)
    shutil.rmtree(FOLDER, ignore_errors=True)
    measured: dict[str, list[Row]] = {}
    for group in (one for one in GROUPS if one in (arguments.groups or GROUPS)):
        console.print(f"Measuring: {group}", style="dim")
        measured[group] = []
        asyncio.run(measure(group, not arguments.without_peers, partial(take, measured, group)))
    show(console, [row for rows in measured.values() for row in rows])
    console.print(f"\nRaw numbers: {RAW.relative_to(ROOT)}")
    return 0


async def measure(group: str, with_peers: bool, taken: Callable[[Row], None]) -> None:
    """Take the group's rows as they come; at the end one that says why, where not all could be measured."""
    rows, needs = GROUPS[group]
    lacking = [reason for need in needs if (reason := REQUIREMENTS[need]())]
    if lacking:
        taken(Row(f"group {group}", not_run="; ".join(lacking)))
        return
    try:
        async with contextlib.aclosing(rows(FOLDER / f"{group}-peers", with_peers)) as measured:
            async for row in measured:
                taken(row)
    except WHAT_HAPPENS as error:
        text = " ".join(str(error).split())[:MOST_OF_AN_ERROR]
        taken(Row(f"group {group}, what follows", not_run=f"{type(error).__name__}: {text}"))


def show(console: Console, rows: Sequence[Row]) -> None:
    table = Table(title=f"Measured {datetime.now(UTC):%Y-%m-%d}, {machine()}", title_justify="left")
    for heading in ("what", "ours", "peer", "ratio", "goal", "met?"):
        table.add_column(heading, justify="right" if heading == "ratio" else "left", overflow="fold")
    for row in rows:
        for line in lines_of(row):
            table.add_row(*line)
        table.add_section()
    console.print(table)


def lines_of(row: Row) -> Iterator[tuple[str, str, str, str, str, str]]:
    """The row's own line, and one for each peer."""
    name = escape(row.name) + (f"\n[dim]{escape(row.note)}[/]" if row.note else "")
    ours = spread(row.values, row.unit) if row.values else escape(f"not measured: {row.not_run}")
    goal = "" if row.goal is None else f"{amount(row.goal, row.unit)}{' or less' if row.goal else ''}"
    yield name, ours, "", "", goal, yes_or_no(row.met)
    for peer in row.peers:
        yield "", "", *peer_line(row, peer)


def peer_line(row: Row, peer: Peer) -> tuple[str, str, str, str]:
    ratio = peer.ratio(row.values)
    wanted = peer.ratio_goal
    theirs = spread(peer.values, row.unit) if peer.values else escape(f"not run: {peer.not_run}")
    return (
        f"{peer.name}: {theirs}",
        "" if ratio is None else f"{ratio:.3g}x",
        "" if wanted is None else f"{wanted:g}x or more",
        yes_or_no(None if ratio is None or wanted is None else ratio >= wanted),
    )


def yes_or_no(met: bool | None) -> str:
    return "" if met is None else "[green]yes[/]" if met else "[red]no[/]"


def spread(values: Sequence[float], unit: str) -> str:
    """The median, and the range where there is one."""
    middle = amount(statistics.median(values), unit)
    if len(values) == 1:
        return middle
    return f"{middle} ({amount(min(values), unit)} to {amount(max(values), unit)})".replace(" s to", " to")


def amount(value: float, unit: str) -> str:
    if unit == "s" and value < 0.1:
        return f"{1000 * value:.1f} ms"
    digits = 0 if value >= 100 or (value == int(value) and unit != "s") else 2
    return f"{value:.{digits}f} {unit}"


def take(measured: dict[str, list[Row]], group: str, row: Row) -> None:
    measured[group].append(row)
    keep(measured)


def keep(measured: dict[str, list[Row]]) -> None:
    RAW.parent.mkdir(exist_ok=True)
    groups = {group: [row.as_json() for row in rows] for group, rows in measured.items()}
    RAW.write_text(json.dumps({"machine": machine(), "at": f"{datetime.now(UTC):%FT%TZ}", "groups": groups}, indent=1))


def machine() -> str:
    memory = psutil.virtual_memory().total / 2**30
    return f"{os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} {platform.machine()}"


if __name__ == "__main__":
    sys.exit(main())
