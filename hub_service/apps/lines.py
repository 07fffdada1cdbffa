"""Code as a person has to see it before they approve it: line by line as Python counts, and every character in sight.

A character that turns the direction of writing, or that shows nothing, makes code look like other code than what runs
(CVE-2021-42574). Used by the lists of findings, by the comparison and by the pages.
"""

from __future__ import annotations

import re

_LINE_END = re.compile(r"\r\n|\r|\n")
_UNSEEN = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters; a tab and the ends of lines are seen
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # direction of writing
    "\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200d\u2060-\u2065\u206a-\u206f\u3164\ufe00-\ufe0f\ufeff"
    "\uffa0\ufff9-\ufffb\U0001d173-\U0001d17a\U000e0000-\U000e0fff"  # without any width
    "\u2028\u2029"  # ends of lines for a browser, and none for Python
    "\ud800-\udfff"  # halves of a character
    "]"
)


def lines_of(text: str) -> list[str]:
    """The lines without their ends. As many as Python counts, which `str.splitlines` does not give."""
    lines = _LINE_END.split(text)
    return lines if lines[-1] else lines[:-1]


def visible(line: str) -> str:
    """The line with the number of each character that is not seen in the character's place, as in “[U+202E]”."""
    return _UNSEEN.sub(lambda found: f"[U+{ord(found[0]):04X}]", line)


def is_all_seen(line: str) -> bool:
    return _UNSEEN.search(line) is None
