"""Alembic's revisions: that they lead to `store.tables`, keep every row, and are refused where they cannot be right."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from federator.contract import OutagePolicy
from sqlalchemy import Column, MetaData, create_engine, select, text
from sqlalchemy.exc import DBAPIError

from hub_service.domain.errors import DatabaseUnavailable, FederationError, Unavailable
from hub_service.domain.projects import GRACE_S
from hub_service.store import migrating, tables
from hub_service.store.database import Database
from hub_service.store.sql import SqlStore
from scripts.revision import draft
from tests.fakes.postgresql import Cluster

VERSION_3 = Path(__file__).with_name("version3.sql")


def make_version_3(file: Path, *more: str) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript(VERSION_3.read_text(encoding="utf-8"))
        for statement in more:
            connection.execute(statement)
        connection.commit()


def rows_of(file: Path) -> dict[str, list[tuple[object, ...]]]:
    with closing(sqlite3.connect(file)) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: connection.execute(f'SELECT * FROM "{name}"').fetchall() for name in names}  # noqa: S608


def sqlite_url(file: Path) -> str:
    return f"sqlite:///{file}"


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.needs_postgresql)])
def at_baseline(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of a database at the baseline, with rows in every table. On SQLite, the old service's own file."""
    old = tmp_path / "federation.db"
    make_version_3(old)
    if request.param == "sqlite":
        yield sqlite_url(old)
        return
    cluster: Cluster = request.getfixturevalue("cluster")
    url = cluster.empty_database()
    database = Database(url)
    with database.transaction() as connection:
        command.upgrade(migrating.alembic_config(connection), "0003")
    source = create_engine(sqlite_url(old))
    kept = MetaData()
    with source.connect() as reading, database.transaction() as writing:
        kept.reflect(writing)
        for table in kept.sorted_tables:
            if table.name in tables.metadata.tables and table.name != "schema_version":
                old_table = tables.metadata.tables[table.name]
                columns = [old_table.c[column.name] for column in table.c if column.name != "place"]
                rows = reading.execute(select(*columns).order_by(next(iter(old_table.primary_key))))
                values = [dict(row) for row in rows.mappings()]
                writing.execute(old_table.insert(), values)
    source.dispose()
    database.close()
    yield url


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.needs_postgresql)])
def test_the_revisions_lead_to_the_tables(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    url = sqlite_url(tmp_path / "new.db") if kind == "sqlite" else request.getfixturevalue("cluster").empty_database()
    SqlStore(url).close()
    assert differences(url) == []
    assert migrating.check(url) == (migrating.newest(), migrating.newest())


def test_an_upgraded_database_has_the_tables_too(at_baseline: str) -> None:
    SqlStore(at_baseline).close()
    assert differences(at_baseline) == []


def differences(url: str) -> list[object]:
    database = Database(url)
    with database.transaction() as connection:
        options = {"version_table": migrating.VERSION_TABLE, "compare_type": True}
        found = compare_metadata(MigrationContext.configure(connection, opts=options), tables.metadata)
    database.close()
    return list(found)


def test_every_row_is_kept_and_new_columns_are_as_before_there_was_a_choice(at_baseline: str) -> None:
    store = SqlStore(at_baseline)
    assert [(one.id, one.name, one.on_outage, one.grace_s) for one in store.projects()] == [
        ("p1", "Lungs <b>", OutagePolicy.WAIT, GRACE_S),
        ("p2", "Skin", OutagePolicy.WAIT, GRACE_S),
    ]
    assert [member.user for member in store.members("p1")] == ["anna", "bert"]
    assert store.app_versions("p1")[0].cells[1].source == "y = 'ä'"
    [participation] = store.participations("p1")
    assert (participation.node_id, participation.public_key) == (2**64 - 1, b"\x00key\xff")
    [approval] = store.approvals("p1")
    assert approval.conditions.members == ("anna", "bert")
    run = store.run("r1")
    assert run is not None
    assert (run.on_outage, run.grace_s, run.resumed, run.model_size) == (OutagePolicy.WAIT, GRACE_S, 0, 2**40)
    assert [event.round for event in store.events("r1")] == [1, 2]
    assert store.site_packages("a") is not None
    first, second = store.audit_lines()
    assert (first.detail, second.previous) == ({"name": "Lungs"}, first.hash)
    # What is put from now on takes the next places.
    store.add_events("r1", store.events("r1")[:1])
    assert [event.round for event in store.events("r1")] == [1, 2, 1]
    store.close()


@pytest.mark.parametrize("change", ["UPDATE audit_lines SET actor = 'nobody'", "DELETE FROM audit_lines"])
def test_the_database_lets_nobody_change_the_audit_log(at_baseline: str, change: str) -> None:
    store = SqlStore(at_baseline)
    before = list(store.audit_lines())
    store.close()
    database = Database(at_baseline)
    with pytest.raises(DBAPIError, match="never changed or removed"), database.transaction() as connection:
        connection.execute(text(change))
    database.close()
    again = SqlStore(at_baseline)
    assert list(again.audit_lines()) == before != []
    again.close()


def test_an_upgrade_is_needed_once(at_baseline: str) -> None:
    assert migrating.check(at_baseline) == ("0003", migrating.newest())
    with pytest.raises(Unavailable, match=f"revision 0003; .* needs {migrating.newest()}"):
        SqlStore(at_baseline, reads_only=True)
    database = Database(at_baseline)
    done = migrating.upgrade(database)
    assert done is not None
    assert (done.before, done.after) == ("0003", migrating.newest())
    assert migrating.upgrade(database) is None
    database.close()


class TestSqliteFile:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        return tmp_path / "federation.db"

    def test_a_copy_is_kept_of_what_was_before(self, file: Path, caplog: pytest.LogCaptureFixture) -> None:
        make_version_3(file)
        before = rows_of(file)
        with caplog.at_level(logging.INFO, "hub_service.store.migrating"):
            SqlStore(sqlite_url(file)).close()
        copy = file.with_name(f"federation.db.before-{migrating.newest()}")
        assert rows_of(copy) == before
        assert copy.stat().st_mode & 0o777 == 0o600
        assert str(copy) in caplog.text
        assert sorted(one.name for one in file.parent.iterdir() if "before" in one.name) == [copy.name]

    def test_the_service_of_before_refuses_it_afterwards(self, file: Path) -> None:
        SqlStore(sqlite_url(file)).close()
        assert rows_of(file)["schema_version"] == [(4,)]

    def test_a_new_database_leaves_no_copy(self, file: Path) -> None:
        SqlStore(sqlite_url(file)).close()
        assert not [one for one in file.parent.iterdir() if "before" in one.name]

    def test_a_service_that_ended_before_it_wrote_its_version_is_taken_over(self, file: Path) -> None:
        make_version_3(file, "DELETE FROM schema_version")
        SqlStore(sqlite_url(file)).close()
        assert differences(sqlite_url(file)) == []

    def test_an_unreleased_version_is_refused(self, file: Path) -> None:
        make_version_3(file, "UPDATE schema_version SET version = 7")
        with pytest.raises(Unavailable, match="schema version 7") as caught:
            SqlStore(sqlite_url(file))
        assert "new database" in caught.value.next_step

    def test_rows_that_do_not_fit_together_are_left_as_they_were(self, file: Path) -> None:
        make_version_3(file, "UPDATE members SET project_id = 'nowhere' WHERE user = 'bert'")
        before = rows_of(file)
        with pytest.raises(DatabaseUnavailable, match="do not fit together"):
            SqlStore(sqlite_url(file))
        assert rows_of(file) == before

    def test_without_room_for_a_copy_nothing_is_changed(self, file: Path) -> None:
        make_version_3(file)
        before = rows_of(file)
        file.with_name(f"{file.name}.before-{migrating.newest()}").mkdir()  # where the copy would stand
        with pytest.raises(DatabaseUnavailable, match="no copy of it could be made"):
            SqlStore(sqlite_url(file))
        assert rows_of(file) == before
        assert not [one for one in file.parent.iterdir() if one.suffix == ".partial"]

    def test_to_check_makes_no_file(self, file: Path) -> None:
        assert migrating.check(sqlite_url(file)) == ("", migrating.newest())
        assert list(file.parent.iterdir()) == []


def test_a_database_of_a_newer_version_is_refused_with_what_to_do(at_baseline: str) -> None:
    SqlStore(at_baseline).close()
    database = Database(at_baseline)
    with database.transaction() as connection:
        connection.execute(text(f"UPDATE {migrating.VERSION_TABLE} SET version_num = '9999'"))  # noqa: S608
    database.close()
    with pytest.raises(Unavailable, match=f"9999, and this version knows none after {migrating.newest()}") as caught:
        SqlStore(at_baseline)
    assert "restore a backup" in caught.value.next_step
    with pytest.raises(FederationError, match="newer"):
        migrating.check(at_baseline)


class TestWritingARevision:
    def test_what_was_added_to_the_tables_is_drafted(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        changed = MetaData()
        for table in tables.metadata.sorted_tables:
            table.to_metadata(changed)
        changed.tables["runs"].append_column(Column("begun_at", tables.UtcDateTime))
        monkeypatch.setattr(tables, "metadata", changed)
        written = draft("Runs know when they began", tmp_path)
        drafted = written.read_text()
        assert written.name == f"r{int(migrating.newest()) + 1:04d}_runs_know_when_they_began.py"
        assert 'sa.Column("begun_at", sa.DateTime(), nullable=True)' in drafted.replace("'", '"')
        assert "hub_service" not in drafted
