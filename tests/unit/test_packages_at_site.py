"""What a notebook server finds of its image's packages."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import pytest
from federator.packages import importable, installed


def install(folder: Path, name: str, **files: bytes) -> None:
    """A distribution; `files` by name, with a _ for the dot."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    for file, content in files.items():
        (info / file.replace("_txt", ".txt")).write_bytes(content)


def metadata_of(name: str, author: bytes = b"") -> bytes:
    return b"Metadata-Version: 2.1\nName: " + name.encode() + b"\nVersion: 1.0\nAuthor: " + author + b"\n"


def test_a_distribution_that_cannot_be_read_hides_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "latin", METADATA=metadata_of("latin", "Müller".encode("latin-1")), RECORD=b"latin.py,,\n")
    install(tmp_path, "broken", METADATA=metadata_of("broken"), top_level_txt=b"\xff")
    install(tmp_path, "declared", METADATA=metadata_of("declared"), top_level_txt=b"declared_here\nodd-name\n")
    install(tmp_path, "found", METADATA=metadata_of("found"), RECORD=b"found_here/a.py,,\nalone.py,,\nx/y.txt,,\n")
    install(tmp_path, "nameless", METADATA=b"Metadata-Version: 2.1\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert installed() == {"broken": "1.0", "declared": "1.0", "found": "1.0"}
    assert importable() == ("alone", "declared_here", "found_here", "latin")


def test_the_modules_are_those_that_python_knows() -> None:
    assert set(importable()) == {name for name in metadata.packages_distributions() if name.isidentifier()}
