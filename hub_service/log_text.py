"""A ServerApp's log for a project's members: its lines without what belongs to the machine that it runs on. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable

# Terminal colours, and characters that no reader sees but a terminal obeys.
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
# The text is another's, and as long as they like: from no place does a pattern read on to the end and find nothing.
_ADDRESS = re.compile(
    r"[a-z][a-z0-9+.-]{0,20}://[^\s'\"<>]+"  # any URL
    r"|\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b"
    r"|\[?(?<![\w:])(?:[0-9a-f]{1,4}:){4,7}[0-9a-f]{1,4}\]?(?::\d+)?"
    r"|\[::1?\](?::\d+)?"
    r"|\blocalhost(?::\d+)?\b",
    re.IGNORECASE,
)
_TOKEN = re.compile(
    r"(?<![\w-])eyJ[\w-]+\.[\w-]+(?:\.[\w-]*)?"
    r"|\b[0-9a-fA-F]{32,}\b"
    r"|(?<![\w-])(?=[\w-]*\d)(?=[\w-]*[A-Za-z])[A-Za-z0-9_-]{40,}(?![\w-])"
)
_NAMED_SECRET = re.compile(
    r"(?i)\b(authorization\s*[:=]\s*(?:bearer |token |basic )?|(?:token|password|secret|api[_-]?key)\s*[:=]\s*)"
    r"['\"]?[^\s'\",;]+['\"]?"
)
# Two segments at least: "/" and "a/b" are no places of a machine. The last one stays, for it names the file.
_FOLDER = re.compile(r"(?<![\w.…])/(?:[^\s/'\"<>:,;()\[\]]+/)+")


def cleaned(text: str, named: Callable[[str], str] = str) -> str:
    """The text without control characters, addresses, tokens and folders.

    Args:
        named: puts sites in the place of node ids.
    """
    text = _CONTROL.sub("", text)
    text = _ADDRESS.sub("[address]", text)
    text = _TOKEN.sub("[hidden]", text)
    text = _NAMED_SECRET.sub(r"\1[hidden]", text)
    return named(_FOLDER.sub("…/", text))
