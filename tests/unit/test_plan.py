"""A plan is written once, read whole, and no link in the run folder leads the service astray."""

from __future__ import annotations

from pathlib import Path

import pytest

from hub_service.aggregators import serverapp
from hub_service.aggregators.base import ServerAppSpec
from hub_service.aggregators.plan import PLAN_FILE, Plan

SPEC = ServerAppSpec("r1", 7, (3, 4), 2, True, 30.0)
PLAN = Plan("127.0.0.1:9091", 7, (3, 4), 30.0, True)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert Plan.read(tmp_path) is None
    Plan.of(SPEC, "127.0.0.1:9091").write(tmp_path)
    assert Plan.read(tmp_path) == PLAN
    assert [path.name for path in tmp_path.iterdir()] == [PLAN_FILE]


def test_a_plan_stays(tmp_path: Path) -> None:
    PLAN.write(tmp_path)
    Plan.of(SPEC, "elsewhere:1").write(tmp_path)
    assert Plan.read(tmp_path) == PLAN


def test_no_link_is_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hush")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / f"{PLAN_FILE}.partial").symlink_to(secret)
    PLAN.write(folder)
    assert secret.read_text() == "hush"
    assert Plan.read(folder) == PLAN


def test_a_serverapp_without_a_plan_ends_as_one_that_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its service was away, which is no fault of the run's."""
    monkeypatch.setattr(serverapp, "PLAN_PATIENCE_S", 0.0)
    monkeypatch.setattr(serverapp, "preload", lambda: None)
    assert serverapp.follow_plan(tmp_path) == serverapp.GONE
    assert list(tmp_path.iterdir()) == []
