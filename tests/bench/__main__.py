"""`make bench`: measure, print one table, keep the raw numbers in test-output/bench.json. Nothing is asserted."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from examples.demo.stack import ROOT
from tests.bench import sites
from tests.bench.rows import Row
from tests.conftest import REQUIREMENTS

RAW = ROOT / "test-output" / "bench.json"


def main() -> int:
    console = Console(width=None if sys.stdout.isatty() else 120)
    lacking = [reason for name in ("needs_docker", "needs_node") if (reason := REQUIREMENTS[name]())]
    if lacking:
        console.print(f"Nothing was measured: {'; '.join(lacking)}.")
        return 1
    with tempfile.TemporaryDirectory() as folder, sites.sites(Path(folder)) as running:
        rows = asyncio.run(sites.measured(running))
    show(console, rows)
    keep(rows)
    console.print(f"\nRaw numbers: {RAW.relative_to(ROOT)}")
    return 0


def show(console: Console, rows: Sequence[Row]) -> None:
    table = Table(title=f"Measured {datetime.now(UTC):%Y-%m-%d}, {machine()}", title_justify="left")
    for heading in ("what", "median", "from", "to", "times normal", "goal"):
        table.add_column(heading, justify="left" if heading in ("what", "goal") else "right")
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        table.add_row(row.name, *map(seconds, (row.median, min(row.values), max(row.values))), ratio, row.goal)
    console.print(table)


def seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 0.1 else f"{1000 * value:.1f} ms"


def keep(rows: Sequence[Row]) -> None:
    RAW.parent.mkdir(exist_ok=True)
    RAW.write_text(json.dumps({"machine": machine(), "rows": [row.as_json() for row in rows]}, indent=1))


def machine() -> str:
    return f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}"


if __name__ == "__main__":
    sys.exit(main())
