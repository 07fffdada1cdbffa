"""Files are whole, named by their hash, and checked when read."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace

import pytest

from hub_service.artifacts import Artifacts
from hub_service.domain.errors import NotFound, Unavailable


def stored(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_fab_comes_back_by_its_hash(tmp_path: Path) -> None:
    artifacts = Artifacts(tmp_path)
    fab_hash = artifacts.put_fab(b"app")
    assert fab_hash == hashlib.sha256(b"app").hexdigest()
    assert artifacts.fab(fab_hash) == b"app"
    assert artifacts.put_fab(b"app") == fab_hash
    assert len(stored(tmp_path)) == 1


def test_a_model_is_copied_and_outlives_its_run_folder(tmp_path: Path) -> None:
    artifacts = Artifacts(tmp_path / "artifacts")
    source = tmp_path / "model.safetensors"
    content = b"weights" * 300_000  # more than one chunk
    source.write_bytes(content)
    sha256, size = artifacts.put_model(source)
    source.unlink()
    assert (sha256, size) == (hashlib.sha256(content).hexdigest(), len(content))
    assert artifacts.model(sha256).read_bytes() == content


def test_a_model_that_was_never_written_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no model"):
        Artifacts(tmp_path).put_model(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").symlink_to(tmp_path)
    with pytest.raises(NotFound, match="no model"):
        Artifacts(tmp_path).put_model(tmp_path / "model.safetensors")


@pytest.mark.parametrize("name", ["0" * 64, "", "../secret", "..", "/etc/passwd"])
def test_nothing_but_a_kept_file_is_opened(tmp_path: Path, name: str) -> None:
    artifacts = Artifacts(tmp_path / "artifacts")
    (tmp_path / "artifacts" / "secret").write_text("key")
    with pytest.raises(NotFound):
        artifacts.fab(name)
    with pytest.raises(NotFound):
        artifacts.model(name)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    artifacts = Artifacts(tmp_path / "artifacts")
    fab_hash = artifacts.put_fab(b"app")
    source = tmp_path / "model"
    source.write_bytes(b"weights")
    sha256, _ = artifacts.put_model(source)
    for path in stored(tmp_path / "artifacts"):
        path.write_bytes(b"other")
    with pytest.raises(Unavailable, match="damaged"):
        artifacts.fab(fab_hash)
    with pytest.raises(Unavailable, match="damaged"):
        artifacts.model(sha256)


class _FailingStream:
    """Gives some bytes, then fails as a full or broken disk does."""

    def __init__(self) -> None:
        self._reads = 0

    def read(self, size: int) -> bytes:
        self._reads += 1
        if self._reads > 1:
            raise OSError(28, "No space left on device")
        return b"part"


def test_a_full_disk_leaves_no_part_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifacts = Artifacts(tmp_path)
    monkeypatch.setattr("hub_service.artifacts.io.BytesIO", lambda content: _FailingStream())
    with pytest.raises(Unavailable, match="cannot write") as refused:
        artifacts.put_fab(b"app")
    assert "No space left" in refused.value.debug
    assert stored(tmp_path) == []


def test_a_model_without_room_takes_none_from_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried again every few seconds."""
    artifacts = Artifacts(tmp_path / "artifacts")
    model = tmp_path / "model"
    model.write_bytes(b"weights")
    monkeypatch.setattr("hub_service.artifacts.shutil.disk_usage", lambda folder: SimpleNamespace(free=6))
    monkeypatch.setattr("hub_service.artifacts.tempfile.mkstemp", None)
    with pytest.raises(Unavailable, match="cannot write"):
        artifacts.put_model(model)


def test_a_folder_that_is_gone_is_told(tmp_path: Path) -> None:
    artifacts = Artifacts(tmp_path / "artifacts")
    (tmp_path / "artifacts" / "fabs").rmdir()
    with pytest.raises(Unavailable, match="cannot write"):
        artifacts.put_fab(b"app")
