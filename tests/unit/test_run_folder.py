"""The folder of a run that has ended: what the owner's code has put there goes, and nothing beyond it."""

from __future__ import annotations

from pathlib import Path

import pytest

from hub_service.aggregators.events import EVENTS_FILE, SERVERAPP_LOG
from hub_service.aggregators.run_folder import clear_run_folder


def test_all_goes_but_the_events_and_the_log(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "kept").mkdir(parents=True)
    run = tmp_path / "run"
    (run / "app" / "closed").mkdir(parents=True)
    (run / "app" / "closed").chmod(0)
    for name in (EVENTS_FILE, SERVERAPP_LOG, "model.safetensors", "plan.json", "asked-for"):
        (run / name).touch()
    (run / "mail").symlink_to(elsewhere)
    (run / "app" / "link").symlink_to(elsewhere)
    clear_run_folder(run, {"asked-for"})
    assert {path.name for path in run.iterdir()} == {EVENTS_FILE, SERVERAPP_LOG, "asked-for"}
    assert (elsewhere / "kept").exists()


def test_a_run_that_never_began_has_none(tmp_path: Path) -> None:
    clear_run_folder(tmp_path / "run")


def test_what_cannot_be_removed_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "model.safetensors").touch()

    def refuse(path: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "unlink", refuse)
    clear_run_folder(tmp_path)
    assert "is not cleared: [Errno 1] Operation not permitted" in caplog.text
