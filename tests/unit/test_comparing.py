"""What has changed from one app version to the next."""

from __future__ import annotations

from dataclasses import replace

import pytest
from federator.contract import AppReview, AppVersion, Cell, SourceFile

from hub_service.apps import comparing
from hub_service.apps.comparing import LONGEST_COMPARED, Change, compare
from hub_service.web.highlight import python_lines

VERSION = AppVersion(1, "f" * 64, "lungs", "notebook", "anna", "2026-11-23T12:00:00+00:00", 100)
BEFORE = AppReview(
    VERSION,
    (Cell(2, "import torch"), Cell(5, "a = 1\nb = 2\nc = 3"), Cell(7, "last = True")),
    (SourceFile("app/a.py", "x = 1\n"), SourceFile("app/gone.py", "y = 2\n")),
    ("torch", "math"),
)


def test_cells_are_told_apart_by_what_they_hold() -> None:
    after = replace(
        BEFORE,
        cells=(Cell(3, "import torch"), Cell(6, "a = 1\nb = 20\nc = 3"), Cell(7, "new = 1"), Cell(9, "last = True")),
    )
    compared = compare(BEFORE, after).cells
    assert [(one.name, one.was, one.change) for one in compared] == [
        ("cell 3", "cell 2", Change.SAME),
        ("cell 6", "cell 5", Change.CHANGED),
        ("cell 7", "", Change.ADDED),
        ("cell 9", "cell 7", Change.SAME),
    ]
    changed = compared[1]
    assert [(line.before, line.after, line.change, line.text) for line in changed.hunks[0]] == [
        (1, 1, Change.SAME, "a = 1"),
        (2, 0, Change.REMOVED, "b = 2"),
        (0, 2, Change.ADDED, "b = 20"),
        (3, 3, Change.SAME, "c = 3"),
    ]
    assert (changed.added, changed.removed) == (1, 1)


def test_a_cell_that_is_gone_is_named_as_it_was() -> None:
    (_, gone, _) = compare(BEFORE, replace(BEFORE, cells=(BEFORE.cells[0], BEFORE.cells[2]))).cells
    assert (gone.name, gone.change, gone.before, gone.after, gone.hunks) == (
        "cell 5",
        Change.REMOVED,
        "a = 1\nb = 2\nc = 3",
        "",
        (),
    )


def test_files_are_told_apart_by_their_path() -> None:
    after = replace(
        BEFORE,
        files=(SourceFile("app/new.py", "z = 3"), SourceFile("app/a.py", "x = 1 \n")),
        imports=("torch", "socket"),
    )
    compared = compare(BEFORE, after)
    assert [(one.name, one.change) for one in compared.files] == [
        ("app/new.py", Change.ADDED),
        ("app/a.py", Change.CHANGED),  # one blank more
        ("app/gone.py", Change.REMOVED),
    ]
    assert (compared.imports_added, compared.imports_removed) == (("socket",), ("math",))


def test_far_apart_changes_are_shown_apart() -> None:
    lines = [f"x{number} = {number}" for number in range(40)]
    other = ["first = 1", *lines[1:-1], "last = 1"]
    before = replace(BEFORE, cells=(Cell(1, "\n".join(lines)),))
    (part,) = compare(before, replace(BEFORE, cells=(Cell(1, "\n".join(other)),))).cells
    assert [len(hunk) for hunk in part.hunks] == [5, 5]


def test_texts_that_are_too_long_are_only_said_to_differ() -> None:
    long = "x = 1\n" * (LONGEST_COMPARED + 1)
    before = replace(BEFORE, cells=(Cell(1, long),))
    (part,) = compare(before, replace(BEFORE, cells=(Cell(1, long + "y = 2"),))).cells
    assert (part.change, part.hunks, part.compared) == (Change.CHANGED, (), False)


def test_many_texts_are_compared_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "MOST_COMPARED", 70)
    cells = tuple(Cell(place, f"x = {place:010}") for place in range(4))
    after = replace(BEFORE, cells=tuple(replace(one, source=one.source + "0") for one in cells))
    assert [one.compared for one in compare(replace(BEFORE, cells=cells), after).cells] == [True, True, False, False]


def test_ends_of_lines_that_changed_are_told_from_texts_that_are_too_long() -> None:
    before = replace(BEFORE, files=(SourceFile("app/a.py", "x = 1\ny = 2\n"),))
    (part,) = compare(before, replace(before, files=(SourceFile("app/a.py", "x = 1\r\ny = 2"),))).files
    assert (part.change, part.hunks, part.compared) == (Change.CHANGED, (), True)


class TestColours:
    def test_every_line_is_escaped_and_has_its_number(self) -> None:
        text = 'x = "<b>" # </code>\n"""one\n<script>\n"""\n\n'
        lines = python_lines(text)
        assert len(lines) == 5
        assert '<span class="s2">&lt;b&gt;</span>' in lines[0]
        assert "&lt;script&gt;" in lines[2]
        assert not any("<script" in line or "</code" in line for line in lines)

    @pytest.mark.parametrize(
        ("text", "count"),
        [
            ("", 0),
            ("\n", 1),
            ("a\x0cb\r\nc", 2),
            ("def (", 1),
            ("\u2028x = 1", 1),
            ("'''never closed\n\n\n", 3),
        ],
    )
    def test_lines_are_those_that_python_counts(self, text: str, count: int) -> None:
        assert len(python_lines(text)) == len(python_lines(text, coloured=False)) == count

    def test_every_character_is_in_sight(self) -> None:
        """What turns the direction of writing makes a comment look like code (CVE-2021-42574)."""
        text = "if admin: #\u202e } \u2066begin\u2069\u200b\u2028 x"
        seen = "if admin: #[U+202E] } [U+2066]begin[U+2069][U+200B][U+2028] x"
        assert [line.striptags() for line in python_lines(text)] == [seen]
        assert python_lines(text, coloured=False) == (seen,)
        assert python_lines("größe = 1 # Ω, 中, 😀, שלום", coloured=False) == ("größe = 1 # Ω, 中, 😀, שלום",)

    def test_a_page_may_go_without(self) -> None:
        assert python_lines("<x> = 1\n", coloured=False) == ("&lt;x&gt; = 1",)
