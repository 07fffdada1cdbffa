"""How a table of the deployment file is checked, and how what is wrong with it is told.

`Table` is the base of every table's pydantic model: frozen, and no key that it does not know. `problems_of` turns
pydantic's errors into `Problem`s that name the key as the administrator typed it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints, ValidationError, ValidationInfo

EXAMPLE = "deploy/deployment.toml"
"""The annotated deployment file that error texts refer to."""

Slug = Annotated[str, StringConstraints(pattern=r"^[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?$")]
"""Short name used in group names, URLs and folders: lower-case letters, digits and hyphens, 32 at most."""

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+\Z")

_TEXTS = {
    "missing": f"is missing; add it ({EXAMPLE} shows every key)",
    "extra_forbidden": f"is not a key of this table; correct its spelling or remove it ({EXAMPLE} shows every key)",
    "string_pattern_mismatch": "is no slug; use lower-case letters, digits and hyphens, at most 32",
    "string_too_short": "is empty; write a value",
    "union_tag_not_found": 'has no kind; add `kind = "docker"`, "swarm", "supernode" or "embedded"',
    "union_tag_invalid": 'is of an unknown kind; write `kind = "docker"`, "swarm", "supernode" or "embedded"',
}


class Table(BaseModel):
    """Base of the deployment file's tables."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to correct. `key` is dotted as in TOML; empty for the file as a whole."""

    key: str
    text: str

    def __str__(self) -> str:
        return f"{self.key}: {self.text}" if self.key else self.text


def dotted(parts: Iterable[str | int]) -> str:
    """A key as TOML writes it: parts that are no bare key in quotes."""
    return ".".join(part if _BARE_KEY.match(part) else f'"{part}"' for part in map(str, parts))


_MAY_HOLD_A_PASSWORD = (("hub", "database"), ("hub", "jupyterhub_database"))


def problems_of(error: ValidationError) -> list[Problem]:
    """All that pydantic found wrong, each with its key."""
    return [Problem(dotted(_typed_key(detail["loc"])), _text(detail)) for detail in error.errors()]


def _typed_key(loc: tuple[int | str, ...]) -> list[int | str]:
    """Without the name of the kind, which pydantic puts after a site's slug, and without its mark for a dict's key."""
    parts = [part for part in loc if part != "[key]"]
    if parts[:1] == ["sites"] and len(parts) > 2:
        del parts[2]
    return parts


def _text(detail: Any) -> str:
    text = _TEXTS.get(detail["type"])
    if text is None:
        message = str(detail["msg"]).removeprefix("Value error, ")
        text = message[:1].lower() + message[1:]
    repeated = detail["type"] != "missing" and detail["loc"] not in _MAY_HOLD_A_PASSWORD
    if repeated and isinstance(detail["input"], str | int | float):
        text += f" (found {detail['input']!r})"
    return text


def _beside_the_file(path: Path, info: ValidationInfo) -> Path:
    folder = (info.context or {}).get("folder")
    path = path.expanduser()
    return path if folder is None else Path(folder, path)


def _existing_folder(path: Path) -> Path:
    if not path.is_dir():
        raise ValueError(f"there is no folder {path}; create it or correct the path")
    return path


def _existing_file(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"there is no file {path}; create it or correct the path")
    return path


def _origin(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
        raise ValueError("is no origin; write scheme, host and port without a path: http://127.0.0.1:8000")
    return url.rstrip("/")


Origin = Annotated[Text, AfterValidator(_origin)]
"""Scheme, host and port, without a slash at the end."""

RelativePath = Annotated[Path, AfterValidator(_beside_the_file)]
"""A path; a relative one starts at the deployment file's folder."""

ExistingFolder = Annotated[RelativePath, AfterValidator(_existing_folder)]
ExistingFile = Annotated[RelativePath, AfterValidator(_existing_file)]
