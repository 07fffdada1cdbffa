"""What has changed between two app versions, cell by cell and file by file. Pure; shown on the review page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from enum import StrEnum

from federator.contract import AppReview, Cell

from hub_service.apps.lines import lines_of

LONGEST_COMPARED = 3000
"""Lines. Of two longer texts it is only said whether they differ: comparing them takes too long."""

MOST_COMPARED = 1_000_000
"""Characters, in all. Once they are used up, it is the same for all further texts."""

_CONTEXT = 3  # lines around a change


class Change(StrEnum):
    SAME = "same"
    CHANGED = "changed"
    ADDED = "added"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class DiffLine:
    """One line. `before` and `after` are its numbers in the two texts; 0 where it is not in one of them."""

    before: int
    after: int
    text: str

    @property
    def change(self) -> Change:
        if self.before and self.after:
            return Change.SAME
        return Change.ADDED if self.after else Change.REMOVED


@dataclass(frozen=True, slots=True)
class Part:
    """A cell or a file, as it was and as it is.

    Attributes:
        name: "cell 3", or a file's path.
        was: its name before, where that is another.
        before, after: the whole texts; "" where it is not there.
        hunks: what differs, with some lines around; empty for SAME, where only the ends of lines have changed, and
            where the texts were not compared.
        compared: whether it has changed, and the texts are not too long.
    """

    name: str
    was: str
    change: Change
    before: str
    after: str
    hunks: tuple[tuple[DiffLine, ...], ...]
    compared: bool

    @property
    def added(self) -> int:
        return sum(line.change is Change.ADDED for hunk in self.hunks for line in hunk)

    @property
    def removed(self) -> int:
        return sum(line.change is Change.REMOVED for hunk in self.hunks for line in hunk)


@dataclass(frozen=True, slots=True)
class Comparison:
    """All cells and files of two versions, those that did not change too."""

    cells: tuple[Part, ...]
    files: tuple[Part, ...]
    imports_added: tuple[str, ...]
    imports_removed: tuple[str, ...]


def compare(before: AppReview, after: AppReview) -> Comparison:
    """What changed from one version to the other. Cells are told apart by what they hold: numbers move."""
    old, new = frozenset(before.imports), frozenset(after.imports)
    effort = _Effort()
    old_files, new_files = ({one.path: one.text for one in version.files} for version in (before, after))
    return Comparison(
        cells=tuple(_cells(before.cells, after.cells, effort)),
        files=tuple(_files(old_files, new_files, effort)),
        imports_added=tuple(sorted(new - old)),
        imports_removed=tuple(sorted(old - new)),
    )


class _Effort:
    """What is left of MOST_COMPARED."""

    def __init__(self) -> None:
        self._left = MOST_COMPARED

    def is_worth(self, before: str, after: str) -> bool:
        """Whether to compare these two; what they take is then used up."""
        size = len(before) + len(after)
        if size > self._left or max(len(lines_of(before)), len(lines_of(after))) > LONGEST_COMPARED:
            return False
        self._left -= size
        return True


def _cells(before: Sequence[Cell], after: Sequence[Cell], effort: _Effort) -> list[Part]:
    """Cells that stayed keep their neighbours in step; between them, those that changed are paired in their order."""
    matcher = SequenceMatcher(None, [cell.source for cell in before], [cell.source for cell in after], autojunk=False)
    parts = []
    for _, start, end, new_start, new_end in matcher.get_opcodes():
        old, new = before[start:end], after[new_start:new_end]
        for place in range(max(len(old), len(new))):
            was = old[place] if place < len(old) else None
            now = new[place] if place < len(new) else None
            parts.append(
                _part(
                    _cell_name(was),
                    _cell_name(now),
                    None if was is None else was.source,
                    None if now is None else now.source,
                    effort,
                )
            )
    return parts


def _cell_name(cell: Cell | None) -> str:
    return "" if cell is None else f"cell {cell.number}"


def _files(before: Mapping[str, str], after: Mapping[str, str], effort: _Effort) -> list[Part]:
    gone = [path for path in before if path not in after]
    return [
        _part(path if path in before else "", path if path in after else "", before.get(path), after.get(path), effort)
        for path in (*after, *gone)
    ]


def _part(was: str, name: str, before: str | None, after: str | None, effort: _Effort) -> Part:
    if before is None:
        change = Change.ADDED
    elif after is None:
        change = Change.REMOVED
    else:
        change = Change.SAME if before == after else Change.CHANGED
    old, new = before or "", after or ""
    compared = change is Change.CHANGED and effort.is_worth(old, new)
    hunks = _hunks(lines_of(old), lines_of(new)) if compared else ()
    return Part(name or was, was if name and was and was != name else "", change, old, new, hunks, compared)


def _hunks(before: Sequence[str], after: Sequence[str]) -> tuple[tuple[DiffLine, ...], ...]:
    groups = SequenceMatcher(None, before, after).get_grouped_opcodes(_CONTEXT)
    return tuple(tuple(_lines(group, before, after)) for group in groups)


def _lines(
    group: Sequence[tuple[str, int, int, int, int]], before: Sequence[str], after: Sequence[str]
) -> list[DiffLine]:
    lines = []
    for kind, start, end, new_start, new_end in group:
        if kind == "equal":
            shift = new_start - start
            lines += [DiffLine(at + 1, at + shift + 1, before[at]) for at in range(start, end)]
        else:
            lines += [DiffLine(at + 1, 0, before[at]) for at in range(start, end)]
            lines += [DiffLine(0, at + 1, after[at]) for at in range(new_start, new_end)]
    return lines
