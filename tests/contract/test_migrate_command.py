"""`python -m hub_service migrate`: what it says, and what it does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hub_service import commands
from hub_service.domain.errors import DatabaseInUse
from hub_service.store import migrating
from hub_service.store.sql import SqlStore
from tests.contract.test_migrations import make_version_3
from tests.fakes.postgresql import Cluster


def run(folder: Path, *arguments: str, url: str = "") -> int:
    environment = {"FEDERATION_STATE_DIR": str(folder), "FEDERATION_DATABASE_URL": url}
    return commands.run(["migrate", *arguments], environment)


def test_an_old_database_is_brought_up_to_date_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_version_3(tmp_path / "federation.db")
    newest = migrating.newest()
    assert run(tmp_path, "--check") == 1
    assert f"has revision 0003; this version of the service needs {newest}" in capsys.readouterr().out
    assert run(tmp_path) == 0
    said = capsys.readouterr().out
    assert f"had revision 0003, and has {newest} now" in said
    copy = re.search(r"it is in (\S+)\.$", said.strip())
    assert copy is not None
    assert Path(copy[1]).is_file()
    assert run(tmp_path, "--check") == 0
    assert run(tmp_path) == 0
    assert "already. Nothing was changed" in capsys.readouterr().out


@pytest.mark.needs_postgresql
def test_an_empty_database_on_a_server(tmp_path: Path, cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    url = cluster.empty_database()
    assert run(tmp_path, "--check", url=url) == 1
    assert "has revision none" in capsys.readouterr().out
    assert run(tmp_path, url=url) == 0
    assert "was empty. It has revision" in capsys.readouterr().out
    assert run(tmp_path, "--check", url=url) == 0


def test_while_the_service_runs_it_can_be_checked_only(tmp_path: Path) -> None:
    service = SqlStore(f"sqlite:///{tmp_path / 'federation.db'}")
    assert run(tmp_path, "--check") == 0
    with pytest.raises(DatabaseInUse):
        run(tmp_path)
    service.close()
