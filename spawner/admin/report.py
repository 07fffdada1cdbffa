"""Results of checks as lines for a terminal, or as JSON for another program. Pure."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from spawner.admin.checks import Outcome, Result

_OUTCOME_WIDTH = max(map(len, Outcome))
_ARROW_WIDTH = 3
_NARROWEST = 40


def table(title: str, results: Sequence[Result], columns: int) -> str:
    """One site's report: each part with what was seen and, below it, what to do next.

    Args:
        columns: how wide the terminal is.
    """
    width = max((len(result.part) for result in results), default=0)
    lines = [title]
    for result in results:
        head = f"  {result.outcome:<{_OUTCOME_WIDTH}}  {result.part:<{width}}  "
        lines += _wrapped(head, result.seen, columns)
        if result.next_step:
            lines += _wrapped(f"{' ' * (len(head) - _ARROW_WIDTH)}-> ", result.next_step, columns)
    return "\n".join([*lines, f"  {summary(results)}"])


def _wrapped(head: str, text: str, columns: int) -> list[str]:
    return textwrap.wrap(
        text,
        max(columns, len(head) + _NARROWEST),
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_long_words=False,
        break_on_hyphens=False,
    )


def summary(results: Sequence[Result]) -> str:
    """How many of each outcome, the worst first."""
    counted = Counter(result.outcome for result in results)
    order = (Outcome.FAILED, Outcome.WARNING, Outcome.OK, Outcome.SKIPPED)
    return ", ".join(f"{counted[outcome]} {outcome}" for outcome in order if counted[outcome])


def as_json(results: Mapping[str, Sequence[Result]]) -> str:
    """All sites' results by slug."""
    return json.dumps({slug: [asdict(result) for result in found] for slug, found in results.items()}, indent=2)


def has_failed(results: Sequence[Result]) -> bool:
    """Whether anything is wrong enough that the site should not be used."""
    return any(result.outcome is Outcome.FAILED for result in results)
