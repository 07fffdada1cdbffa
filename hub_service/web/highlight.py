"""Python code as lines of HTML, coloured by Pygments' short class names; the colours are in federation.css."""

from __future__ import annotations

from functools import lru_cache

from markupsafe import Markup, escape
from pygments.lexers.python import PythonLexer  # type: ignore[import-untyped]
from pygments.token import STANDARD_TYPES, Token  # type: ignore[import-untyped]

from hub_service.apps.lines import lines_of, visible

MOST_COLOURED = 400_000
"""Characters on one page. Longer texts are shown without colours: colouring them takes seconds."""

_PLAIN = frozenset({"", "n", "p", "o", "w", "esc"})


def plain_lines(text: str) -> list[str]:
    """Each line of a text, with every character in sight."""
    return [visible(line) for line in lines_of(text)]


def python_lines(text: str, coloured: bool = True) -> tuple[Markup, ...]:
    """Each line of the code, escaped. As many lines as `lines_of` gives, whatever the lexer makes of it."""
    return _coloured_lines(text) if coloured else tuple(escape(line) for line in plain_lines(text))


@lru_cache(maxsize=64)
def _coloured_lines(text: str) -> tuple[Markup, ...]:
    plain = plain_lines(text)
    return tuple(_coloured("\n".join(plain), len(plain)))


def _coloured(text: str, count: int) -> list[Markup]:
    lines: list[list[Markup]] = [[]]
    for token, value in PythonLexer(stripnl=False, ensurenl=False).get_tokens(text):
        name = _class_of(token)
        for place, piece in enumerate(value.split("\n")):
            if place:
                lines.append([])
            if piece:
                plain = name in _PLAIN
                lines[-1].append(escape(piece) if plain else Markup('<span class="{}">{}</span>').format(name, piece))
    return [Markup("").join(line) for line in (lines + [[]] * count)[:count]]


def _class_of(token: object) -> str:
    """The short name of a token, or of the kind that it is of."""
    while token not in STANDARD_TYPES:
        token = getattr(token, "parent", Token)
    return str(STANDARD_TYPES[token])
