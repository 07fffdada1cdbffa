"""Secrets of the service: made once, whole, and for nobody else's eyes."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from hub_service.durable_files import kept_file
from hub_service.results.signing import SigningKey


def test_a_secret_is_made_once_and_closed_to_others(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    assert kept_file(path, lambda: b"first") == b"first"
    assert kept_file(path, lambda: b"second") == b"first"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_an_empty_file_of_an_earlier_service_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "signing-key.pem").touch()
    made = SigningKey.kept(tmp_path / "signing-key.pem")
    assert SigningKey.kept(tmp_path / "signing-key.pem").public_pem == made.public_pem


def test_a_full_disk_leaves_no_part_of_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as short_of_room:
        short_of_room.setattr("hub_service.durable_files.os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            kept_file(tmp_path / "secret", lambda: b"first")
    assert list(tmp_path.iterdir()) == []
    assert kept_file(tmp_path / "secret", lambda: b"second") == b"second"


def test_of_two_who_make_a_secret_at_once_both_have_the_same(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    other: list[bytes] = []

    def make() -> bytes:
        other.append(kept_file(path, lambda: b"the other's"))
        return b"ours"

    assert kept_file(path, make) == b"the other's"
    assert other == [b"the other's"]
