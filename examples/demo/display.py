"""How the demo looks in a terminal: steps with their time, live rounds, the table."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

ALL_SITES = "all"
FEDERATED, POOLED = "federated", "pooled"

Row = dict[str, Any]
"""Of the DataFrame that `run.compare()` gives: model, on, the metric with its bounds, examples."""


class Display:
    """Prints the journey. One instance for a demo."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)

    def headline(self, title: str, text: str) -> None:
        self.console.print()
        self.console.print(Panel(text, title=f"[bold]{title}", title_align="left", border_style="cyan", padding=(0, 2)))

    def note(self, text: str) -> None:
        self.console.print(Padding(Text.from_markup(text, style="dim"), (0, 0, 0, 4)))

    def lines(self, *lines: str) -> None:
        """Text that must stay whole, such as addresses: the terminal may wrap it, we do not."""
        for line in lines:
            self.console.print(f"    {line}", soft_wrap=True)

    @contextmanager
    def step(self, text: str) -> Iterator[list[str]]:
        """Show a step with a spinner, then a tick and its time. What is appended to the list stands below it."""
        details: list[str] = []
        started = time.monotonic()
        try:
            with self.console.status(f"{text} ..."):
                yield details
        except BaseException:
            self.console.print(f"[red]  ✗ [/]{text}")
            raise
        self.console.print(f"[green]  ✓ [/]{text} [dim]{time.monotonic() - started:.1f} s")
        for line in details:
            self.note(line)

    def failure(self, message: str, where: str) -> None:
        self.console.print(
            Panel(Text(message), title="[bold red]The demo stopped", title_align="left", border_style="red")
        )
        self.console.print(f"    Logs: {where}")

    @contextmanager
    def rounds(self, total: int, metric: str) -> Iterator[RunView]:
        view = RunView(total, metric)
        with Live(view.render(), console=self.console, refresh_per_second=8, transient=True) as live:
            view.refresh = lambda: live.update(view.render())
            yield view

    def result_table(self, rows: Sequence[Row], sites: Sequence[str], metric: str) -> None:
        """Each model's metric on each site's test data and on all of it together, with its 95 % interval there.

        Args:
            rows: as `run.compare()` gives them.
            sites: slugs, in the order of the columns.
            metric: which of the metrics to show.
        """
        table = Table(title=f"Test {metric}: each model on each site's test data", title_justify="left")
        table.add_column("model", no_wrap=True)
        for site in sites:
            table.add_column(site, justify="right")
        table.add_column("all", justify="right", style="bold")
        table.add_column("95 % interval", justify="right", no_wrap=True)
        for model in (*sites, FEDERATED, POOLED):
            cells = [_number(find_value(rows, model, column, metric)) for column in (*sites, ALL_SITES)]
            bounds = [_number(find_value(rows, model, ALL_SITES, f"{metric} {end}")) for end in ("low", "high")]
            table.add_row(
                _model_name(model),
                *cells,
                "-".join(bounds),
                style="green" if model == FEDERATED else "dim" if model == POOLED else "",
                end_section=model in (sites[-1], FEDERATED),
            )
        self.console.print()
        self.console.print(table)


class RunView:
    """Live view of one run: a bar for the rounds, and each site's newest metric."""

    def __init__(self, total: int, metric: str) -> None:
        self.metric = metric
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("    {task.description}"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        self.task = self.progress.add_task("rounds", total=total)
        self.sites: dict[str, str] = {}
        self.refresh = lambda: None

    def show(self, run: dict[str, Any], titles: dict[str, str]) -> None:
        """Take in a RunDetail as JSON."""
        summary = run["summary"]
        self.progress.update(self.task, completed=len(run["rounds"]), description=summary["phase"] or summary["status"])
        if run["rounds"]:
            for site in run["rounds"][-1]["sites"]:
                value = site["evaluate"].get(self.metric)
                shown = site["error"] or ("computing" if value is None else f"{self.metric} {value:.3f}")
                self.sites[titles.get(site["site"], site["site"])] = shown
        self.refresh()

    def render(self) -> Group:
        lines = [Text(f"      {name:<24} {state}", style="dim") for name, state in self.sites.items()]
        return Group(self.progress, *lines)


def _model_name(model: str) -> str:
    return {FEDERATED: "federated", POOLED: "all data pooled"}.get(model, f"{model} alone")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def find_value(rows: Sequence[Row], model: str, on: str, column: str) -> float | None:
    """Of a model on a site's test data ("all" is all sites together), or None where it was not measured."""
    for row in rows:
        if (row["model"], row["on"]) == (model, on):
            value: float | None = row.get(column)
            return value
    return None
