"""The table of `docs/access.md`: every route, and what each role is answered. Tests run it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tornado.routing import AnyMatches, PathMatches, Rule
from tornado.web import Application, RequestHandler

DOCUMENT = Path(__file__).parents[2] / "docs" / "access.md"


@dataclass(frozen=True, slots=True)
class Row:
    """One method of one route, with the status for each role."""

    method: str
    route: str  # below the prefix; each part that stands for something in braces
    statuses: dict[str, int]


def rows(heading: str, document: Path = DOCUMENT) -> list[Row]:
    """The rows of the first table below a heading, whose first columns are the method and the route."""
    text = document.read_text("utf-8")
    section = re.split(r"^#+ .*$", text.split(f"\n## {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    cells = [
        [cell.strip().strip("`") for cell in line.strip().strip("|").split("|")]
        for line in section.splitlines()
        if line.startswith("|")
    ]
    head, _, *body = cells
    return [
        Row(method, route, dict(zip(head[2:], map(int, statuses), strict=True))) for method, route, *statuses in body
    ]


def served(application: Application, prefix: str) -> Iterator[tuple[str, str]]:
    """Method and route of everything that the application answers; a group of a pattern is `{}`."""
    for rule in _rules(application):
        matcher, handler = rule.matcher, rule.target
        assert isinstance(matcher, PathMatches)
        assert isinstance(handler, type)
        pattern = re.sub(r"\((\?P<\w+>)?[^)]*\)", "{}", matcher.regex.pattern.removesuffix("$"))
        route = re.sub(r"\\(.)", r"\1", pattern).removeprefix(prefix)
        for method in methods(handler):
            yield method, route


def methods(handler: type[RequestHandler]) -> list[str]:
    """Those that a handler has of its own."""
    names = [name for name in handler.SUPPORTED_METHODS if name not in ("HEAD", "OPTIONS")]
    return [name for name in names if getattr(handler, name.lower()) is not getattr(RequestHandler, name.lower())]


def _rules(application: Application) -> Iterator[Rule]:
    for outer in application.default_router.rules:
        if isinstance(outer.matcher, AnyMatches) and not hasattr(outer.target, "rules"):
            continue
        yield from getattr(outer.target, "rules", [outer])


def unnamed(route: str) -> str:
    return re.sub(r"{[^}]*}", "{}", route)
