"""A database that somebody else has, that is not there, or that takes nothing: what is told, and that none is lost."""

from __future__ import annotations

import logging
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from federator.contract import MemberState

from hub_service.domain.errors import DatabaseInUse, DatabaseUnavailable, FederationError, Invalid, Unavailable
from hub_service.domain.projects import Member, Project
from hub_service.store.database import ADVISORY_KEY, Database, parsed
from hub_service.store.sql import SqlStore
from tests.fakes.postgresql import Cluster

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
PROJECT = Project("p1", "Lungs", "", "anna", NOON)
MEMBER = Member("p1", "anna", MemberState.JOINED, "anna", NOON)
PASSWORD = "the-password-that-nobody-may-see"
PATIENCE_S = 60.0

HOLD = """
import sys
from hub_service.store.sql import SqlStore
store = SqlStore(sys.argv[1])
print("ready", flush=True)
sys.stdin.read()
"""


def eventually(look: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_back(store: SqlStore) -> bool:
    try:
        store.projects()
    except DatabaseUnavailable:
        return False
    return True


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.needs_postgresql)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store.db'}"
    cluster: Cluster = request.getfixturevalue("cluster")
    return cluster.empty_database()


class TestOneServiceAtATime:
    def test_a_second_service_is_refused_and_told_who_has_the_database(self, url: str) -> None:
        first = SqlStore(url)
        with pytest.raises(
            DatabaseInUse, match=r"Another federation service has this database \(.*process \d+"
        ) as told:
            SqlStore(url)
        assert "end the other one" in told.value.next_step
        first.put_project(PROJECT)  # the first one has it still
        first.close()
        second = SqlStore(url)
        assert second.project("p1") == PROJECT
        second.close()

    def test_a_service_waits_for_the_one_before_to_end(self, url: str, caplog: pytest.LogCaptureFixture) -> None:
        first = SqlStore(url)
        opened: list[SqlStore] = []
        waiting = threading.Thread(target=lambda: opened.append(SqlStore(url, wait_s=PATIENCE_S)))
        waiting.start()
        eventually(lambda: "waiting for the database" in caplog.text)
        assert not opened
        first.close()
        waiting.join(PATIENCE_S)
        opened[0].close()
        assert caplog.text.count("waiting for the database") == 1

    def test_a_process_that_is_killed_leaves_the_database_free(self, url: str) -> None:
        with subprocess.Popen(
            [sys.executable, "-c", HOLD, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            with pytest.raises(DatabaseInUse):
                SqlStore(url)
            process.send_signal(signal.SIGKILL)
            process.wait()
        SqlStore(url, wait_s=PATIENCE_S).close()


@pytest.mark.needs_postgresql
def test_a_server_knows_soon_that_the_services_machine_is_gone(cluster: Cluster) -> None:
    """It keeps the lock until then, and would ask a silent connection for a sign of life after two hours only."""
    cluster.empty_database()
    with cluster.on_tcp() as url, closing(Database(f"{url}?options=-c%20statement_timeout%3D7s")) as database:
        with database.transaction() as connection:
            settings = [
                connection.exec_driver_sql(f"SHOW {name}").scalar_one()
                for name in (*(f"tcp_keepalives_{one}" for one in ("idle", "interval", "count")), "statement_timeout")
            ]
        assert settings == ["10", "5", "3", "7s"]


class TestAddresses:
    @pytest.mark.parametrize("kind", ["mysql", "mariadb", "mariadb+pymysql", "oracle"])
    def test_other_databases_are_refused_with_those_that_are_supported(self, kind: str) -> None:
        with pytest.raises(Invalid, match="SQLite and PostgreSQL are supported"):
            SqlStore(f"{kind}://anna:{PASSWORD}@db.example/federation")

    @pytest.mark.parametrize(
        "url", ["", "federation.db", f"postgresql://anna:{PASSWORD}@host:port/x", f"://{PASSWORD}", "postgresql"]
    )
    def test_what_is_no_address_is_refused_without_repeating_it(self, url: str) -> None:
        with pytest.raises(Invalid, match="address cannot be read") as told:
            SqlStore(url)
        assert PASSWORD not in all_of(told.value)

    @pytest.mark.parametrize("url", ["postgresql://db.example/x", "postgresql+psycopg2://db.example/x"])
    def test_the_driver_is_ours_to_choose(self, url: str) -> None:
        assert parsed(url).drivername == "postgresql+psycopg"

    def test_a_driver_that_is_not_installed_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "psycopg", None)
        with pytest.raises(Unavailable, match="driver that is not installed") as told:
            SqlStore("postgresql://db.example/x")
        assert "pip install ./images/singleuser '.[postgresql]'" in told.value.next_step

    def test_a_server_that_is_not_there_is_told_without_the_password(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.DEBUG), pytest.raises(DatabaseUnavailable, match="does not answer") as told:
            SqlStore(f"postgresql://anna:{PASSWORD}@/x?host={tmp_path}", wait_s=0.1)
        assert PASSWORD not in all_of(told.value) + caplog.text
        assert str(tmp_path) in told.value.debug


def all_of(error: FederationError) -> str:
    """Everything that is said of an error anywhere, with the errors below it."""
    below = error.__cause__ or error.__context__
    return f"{error!r} {error} {error.message} {error.next_step} {error.debug} {below!r} {below}"


@pytest.fixture(scope="module")
def guarded(cluster: Cluster) -> str:
    """The address of a database whose user needs a password, which is not in it."""
    cluster.demand_password("guarded", PASSWORD)
    return cluster.address("test", "guarded")


@pytest.mark.needs_postgresql
class TestPasswords:
    def test_it_is_in_a_file(self, guarded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file = tmp_path / "pgpass"
        file.write_text(f"*:*:*:guarded:{PASSWORD}\n")
        file.chmod(0o600)
        monkeypatch.setenv("PGPASSFILE", str(file))
        Database(guarded).close()

    def test_it_is_in_the_environment(self, guarded: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PGPASSWORD", PASSWORD)
        Database(guarded).close()

    def test_a_wrong_one_is_not_repeated(
        self, guarded: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setenv("PGPASSWORD", PASSWORD[:-1])
        with caplog.at_level(logging.DEBUG), pytest.raises(DatabaseUnavailable) as told:
            Database(guarded)
        assert "password authentication failed" in told.value.debug
        assert PASSWORD[:-1] not in all_of(told.value) + caplog.text

    def test_no_process_shows_it(self, guarded: str) -> None:
        database = Database(guarded.replace("guarded@", f"guarded:{PASSWORD}@"))
        listed = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, check=True).stdout
        assert b"idle" in listed  # the server's process for us is in the list
        assert PASSWORD.encode() not in listed
        assert PASSWORD not in repr(database.url) + repr(database.engine)
        database.close()


@pytest.mark.needs_postgresql
def test_a_database_that_keeps_no_utf8_is_refused(cluster: Cluster) -> None:
    url = cluster.new_database("latin", "ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'")
    with pytest.raises(Unavailable, match="as LATIN1; the service needs UTF8") as told:
        SqlStore(url)
    assert "--encoding=UTF8" in told.value.next_step


@pytest.mark.needs_postgresql
class TestServerThatGoes:
    @pytest.fixture
    def store(self, cluster: Cluster) -> Iterator[SqlStore]:
        store = SqlStore(cluster.empty_database())
        store.put_project(PROJECT)
        yield store
        store.close()

    @pytest.fixture
    def away(self, cluster: Cluster) -> Iterator[Cluster]:
        """The server, which is up again after the test, whatever came of it."""
        yield cluster
        if not cluster.is_up:
            cluster.start()

    @pytest.mark.parametrize("mode", ["fast", "immediate"])
    def test_it_is_unavailable_until_it_is_back(self, store: SqlStore, away: Cluster, mode: str) -> None:
        assert store.project("p1") == PROJECT
        away.stop(mode)
        for _ in range(3):
            with pytest.raises(DatabaseUnavailable, match="does not answer"):
                store.put_member(MEMBER)
        with pytest.raises(DatabaseUnavailable):
            store.members("p1")
        assert store.project("p1") == PROJECT  # known from before
        away.start()
        eventually(lambda: is_back(store))
        assert list(store.members("p1")) == []
        store.put_member(MEMBER)
        assert list(store.members("p1")) == [MEMBER]

    def test_a_service_that_starts_before_it_waits_for_it(self, cluster: Cluster, away: Cluster) -> None:
        url = cluster.empty_database()
        away.stop()
        opened: list[SqlStore] = []
        waiting = threading.Thread(target=lambda: opened.append(SqlStore(url, wait_s=PATIENCE_S)))
        waiting.start()
        away.start()
        waiting.join(PATIENCE_S)
        assert is_back(opened[0])
        opened[0].close()

    def test_an_answer_takes_no_longer_while_it_is_away(self, store: SqlStore, away: Cluster) -> None:
        away.stop()
        with pytest.raises(DatabaseUnavailable):
            store.projects()
        connections = store._database.connections
        for _ in range(100):
            with pytest.raises(DatabaseUnavailable):
                store.projects()  # does not try to connect: that is the thread's, once a second
        assert store._database.connections == connections

    def test_a_restart_between_two_requests_is_not_noticed(self, store: SqlStore, away: Cluster) -> None:
        away.stop()
        away.start()
        store.put_member(MEMBER)
        assert list(store.members("p1")) == [MEMBER]

    def test_what_was_half_done_has_not_happened(self, store: SqlStore, away: Cluster) -> None:
        assert list(store.members("p1")) == []

        def write_two() -> None:
            with store.transaction():
                store.put_member(MEMBER)
                store.put_project(replace(PROJECT, name="Other"))
                assert list(store.members("p1")) == [MEMBER]
                away.stop("immediate")
                store.put_member(replace(MEMBER, user="bert"))

        with pytest.raises(DatabaseUnavailable):
            write_two()
        away.start()
        eventually(lambda: is_back(store))
        assert list(store.members("p1")) == []
        assert store.project("p1") == PROJECT

    def test_what_somebody_else_wrote_meanwhile_is_seen(self, store: SqlStore, away: Cluster) -> None:
        assert store.project("p1") == PROJECT
        changed = replace(PROJECT, name="Changed by the other service")
        away.stop()
        away.start()
        other = SqlStore(str(store._database.url), wait_s=PATIENCE_S)  # before the first one has noticed
        other.put_project(changed)
        with pytest.raises(DatabaseInUse):
            store.put_member(MEMBER)  # it may not write beside the other
        other.close()
        eventually(lambda: is_back(store))
        assert store.project("p1") == changed

    def test_the_lock_is_there_for_whoever_looks(self, store: SqlStore, cluster: Cluster) -> None:
        [(high, low)] = cluster.sql("SELECT classid::bigint, objid::bigint FROM pg_locks WHERE locktype = 'advisory'")
        assert (high << 32) + low == ADVISORY_KEY


class TestSqliteThatTakesNothing:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        return tmp_path / "store.db"

    @pytest.fixture
    def store(self, file: Path) -> Iterator[SqlStore]:
        store = SqlStore(f"sqlite:///{file}")
        store.put_project(PROJECT)
        yield store
        store.close()

    def test_a_full_disk_changes_nothing_and_passes(self, store: SqlStore) -> None:
        self._pragma(store, "max_page_count=1")
        large = replace(PROJECT, name="Other", description="x" * 1_000_000)

        def write_two() -> None:
            with store.transaction():
                store.put_project(replace(PROJECT, name="Other"))
                store.put_project(large)

        with pytest.raises(DatabaseUnavailable, match=r"disk .* is full"):
            write_two()
        assert store.project("p1") == PROJECT
        self._pragma(store, "max_page_count=1000000")
        store.put_project(large)
        assert store.project("p1") == large

    def test_who_reads_meanwhile_does_not_block_it(self, store: SqlStore, file: Path) -> None:
        """As a backup does, or an administrator who looks at the file; and what is half written, nobody reads."""
        with closing(sqlite3.connect(file, isolation_level=None)) as reader:
            assert reader.execute("PRAGMA journal_mode").fetchone() == ("wal",)
            reader.execute("BEGIN")
            before = reader.execute("SELECT count(*) FROM members").fetchone()
            store.put_member(MEMBER)  # not refused as locked
            assert reader.execute("SELECT count(*) FROM members").fetchone() == before == (0,)
            reader.execute("COMMIT")
            assert reader.execute("SELECT count(*) FROM members").fetchone() == (1,)

    def test_another_program_that_locks_it(self, store: SqlStore, file: Path) -> None:
        with closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            assert list(store.projects()) == [PROJECT]
            with pytest.raises(DatabaseUnavailable, match=r"keeps .* locked"):
                store.put_member(MEMBER)
        store.put_member(MEMBER)
        assert list(store.members("p1")) == [MEMBER]

    def test_a_file_that_is_no_database(self, file: Path) -> None:
        file.write_text("a poem, and a long one at that " * 100)
        with pytest.raises(DatabaseUnavailable, match="is no database"):
            SqlStore(f"sqlite:///{file}")

    def test_a_folder_in_its_place(self, file: Path) -> None:
        file.mkdir()
        with pytest.raises(DatabaseUnavailable, match="cannot be opened"):
            SqlStore(f"sqlite:///{file}")

    def test_a_folder_that_is_not_there(self, file: Path) -> None:
        with pytest.raises(DatabaseUnavailable, match="cannot be opened"):
            SqlStore(f"sqlite:///{file.parent / 'nowhere' / 'store.db'}")

    def test_to_read_makes_no_file(self, file: Path) -> None:
        with pytest.raises(DatabaseUnavailable, match="no database yet"):
            SqlStore(f"sqlite:///{file}", reads_only=True)
        assert list(file.parent.iterdir()) == []

    def test_one_in_memory_needs_no_lock(self) -> None:
        first, second = SqlStore("sqlite://"), SqlStore("sqlite://")
        first.put_project(PROJECT)
        assert list(second.projects()) == []
        first.close()
        second.close()

    @staticmethod
    def _pragma(store: SqlStore, pragma: str) -> None:
        with closing(store._database.engine.raw_connection()) as connection:
            connection.cursor().execute(f"PRAGMA {pragma}").close()
