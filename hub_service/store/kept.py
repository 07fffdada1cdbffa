"""Rows that were read from the database, kept in memory for as long as nothing that was put changes them.

Pages, event streams and each request of a node ask for the same few rows again and again. The service is the only one
that writes to its database, so it knows when a row that it has read is no longer what is there.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Wanted = frozenset[tuple[str, Any]]  # names of columns and what stands there in every row that was asked for


class KeptRows:
    """What was read of one table, by what was asked for. Rows are the domain's own values, which nobody changes.

    Args:
        key: names of the columns that tell rows apart; the values have attributes of the same names.
        lookups: most questions whose answers are kept; the one that was asked longest ago goes first.
        rows: most rows of an answer that is kept.
    """

    def __init__(self, key: Sequence[str], *, lookups: int, rows: int) -> None:
        self._key = key
        self._most_lookups = lookups
        self._most_rows = rows
        self._answers: OrderedDict[Wanted, list[Any]] = OrderedDict()

    def get(self, wanted: Wanted) -> list[Any] | None:
        """The rows, or None where they must be read."""
        rows = self._answers.get(wanted)
        if rows is None:
            return None
        self._answers.move_to_end(wanted)
        return list(rows)

    def keep(self, wanted: Wanted, rows: Iterable[Any]) -> None:
        kept = list(rows)
        self._answers.pop(wanted, None)
        if len(kept) > self._most_rows:
            return
        self._answers[wanted] = kept
        if len(self._answers) > self._most_lookups:
            self._answers.popitem(last=False)

    def extend(self, wanted: Wanted, rows: Iterable[Any]) -> None:
        """Rows were added that belong at the end of this answer, and to no other."""
        kept = self._answers.get(wanted)
        if kept is not None:
            self.keep(wanted, [*kept, *rows])

    def put(self, values: Mapping[str, Any]) -> None:
        """Forget each answer in which this row stood, and each in which it stands now."""
        stale = [
            wanted
            for wanted, rows in self._answers.items()
            if all(values[name] == value for name, value in wanted) or any(self._same(row, values) for row in rows)
        ]
        for wanted in stale:
            del self._answers[wanted]

    def clear(self) -> None:
        self._answers.clear()

    def _same(self, row: Any, values: Mapping[str, Any]) -> bool:
        return all(getattr(row, name) == values[name] for name in self._key)
