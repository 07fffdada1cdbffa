"""What the probes found, as a table for a terminal, and what to do about what failed."""

from __future__ import annotations

from collections.abc import Sequence

from spawner.site.probes import ProbeResult

_HEADINGS = ("", "probe", "expected", "found", "tried")


def table(results: Sequence[ProbeResult]) -> str:
    """One line for each probe, then the advice for those that failed, each advice once."""
    rows = [_HEADINGS, *map(_row, results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, "", _verdict(results), *_advice(results)])


def _row(result: ProbeResult) -> tuple[str, ...]:
    return ("ok" if result.ok else "FAILED", result.title, result.expected, result.found, result.tried)


def _verdict(results: Sequence[ProbeResult]) -> str:
    failed = sum(not result.ok for result in results)
    if failed:
        return f"{failed} of {len(results)} probes failed: this network is not fit for data."
    return f"All {len(results)} probes found what they must: from a server, the Hub and nothing else."


def _advice(results: Sequence[ProbeResult]) -> list[str]:
    titles: dict[str, list[str]] = {}
    for result in results:
        if not result.ok:
            titles.setdefault(result.advice, []).append(result.title)
    return [f"- {', '.join(of)}: {advice}." for advice, of in titles.items()]
