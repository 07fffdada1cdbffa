"""The database's time is told, statement by statement."""

from __future__ import annotations

from pathlib import Path

from hub_service.store.sql import SqlStore


def test_each_statement_is_told_once(tmp_path: Path) -> None:
    store = SqlStore(f"sqlite:///{tmp_path / 'federation.db'}")
    took: list[float] = []
    store.time_statements(took.append)
    store.unfinished_runs()
    first = len(took)
    store.unfinished_runs()
    store.close()
    assert first >= 1
    assert len(took) == 2 * first
    assert all(0 <= seconds < 60 for seconds in took)
