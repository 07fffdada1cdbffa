"""A disk that is really full: what is asked for is refused in words, nothing is torn, and it goes on with room."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hub_service import commands
from hub_service.audit import fault
from hub_service.domain.errors import DatabaseUnavailable, Unavailable
from hub_service.store.sql import SqlStore
from tests.fakes.federation import ANNA, Federation
from tests.fakes.full_disk import fill, small_disk

pytestmark = pytest.mark.needs_mounts

_MEGABYTE = 1 << 20


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    with small_disk(tmp_path / "small", 4) as folder:
        yield folder


def make_projects(federation: Federation) -> None:
    """Several, since SQLite's own log may have some pages left."""
    for _ in range(100):
        federation.coordinator.create_project(ANNA, "Another", "x" * 4000)


def test_the_services_disk(small: Path) -> None:
    store = SqlStore(f"sqlite:///{small / 'federation.db'}")
    federation = Federation(small, store=store)
    project_id = federation.new_project()
    model = small.parent / "model"
    model.write_bytes(os.urandom(_MEGABYTE))
    filler = fill(small)

    with pytest.raises(Unavailable, match="cannot write to its disk") as refused:
        federation.add_app(project_id, os.urandom(_MEGABYTE))
    assert "disk is full" in refused.value.next_step
    with pytest.raises(Unavailable, match="cannot write"):
        federation.artifacts.put_model(model)
    with pytest.raises(Unavailable, match="cannot write"):
        federation.artifacts.check()
    with pytest.raises(Unavailable, match="cannot write"):
        federation.coordinator.delete_project(ANNA, project_id)
    with pytest.raises(DatabaseUnavailable, match="disk of the service's database is full"):
        make_projects(federation)
    assert federation.coordinator.project(ANNA, project_id).name == "Lungs"
    assert federation.artifacts.fab(federation.newest_hash(project_id)) == b"app 1"

    filler.unlink()
    federation.add_app(project_id, b"app 2")
    sha256, _ = federation.artifacts.put_model(model)
    assert federation.artifacts.model(sha256).read_bytes() == model.read_bytes()
    federation.coordinator.create_project(ANNA, "Another", "")
    assert fault(store.audit_lines()) is None
    assert set(federation.artifacts.names()) == {
        f"models/{sha256}",
        *(f"fabs/{hashlib.sha256(content).hexdigest()}" for content in (b"app 1", b"app 2")),
    }
    store.close()
    again = SqlStore(f"sqlite:///{small / 'federation.db'}")
    assert again.projects()[0].name == "Lungs"
    assert fault(again.audit_lines()) is None
    again.close()


def test_a_backups_disk(small: Path, tmp_path: Path) -> None:
    """Nothing is left of a backup that has no room."""
    state = tmp_path / "state"
    state.mkdir()
    store = SqlStore(f"sqlite:///{state / 'federation.db'}")
    federation = Federation(state, store=store)
    project_id = federation.new_project()
    federation.add_app(project_id, os.urandom(6 * _MEGABYTE))
    with pytest.raises(Unavailable, match="No space left"):
        commands.run(["backup", str(small / "federation.tar")], {"FEDERATION_STATE_DIR": str(state)})
    assert list(small.iterdir()) == []
    store.close()
