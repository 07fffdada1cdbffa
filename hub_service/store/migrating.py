"""Brings a database to the schema of this version of the service, by Alembic's revisions in `migrations/`.

In the service's own process when it opens its database, or by `python -m hub_service migrate` before. Whoever has the
database (`store.database`) is alone with it, so two services cannot migrate at once. All revisions happen in one
transaction, on SQLite too: a migration that fails leaves the database as it was.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, select

from hub_service.domain.errors import DatabaseUnavailable, Unavailable
from hub_service.store import tables
from hub_service.store.database import Database, parsed, sqlite_file

log = logging.getLogger(__name__)

VERSION_TABLE = "schema_revision"  # Alembic's; JupyterHub, which may have a database beside ours, has the usual name
CONNECTION = "connection"  # by which `migrations/env.py` finds the connection

_BASELINE = "0003"  # the schema of the last service without Alembic, which kept a number in `schema_version`
_BASELINE_NUMBER = 3


@dataclass(frozen=True, slots=True)
class Upgrade:
    """What was done. Revisions are Alembic's; `before` is "" where there was no schema at all.

    Attributes:
        copy: the SQLite file as it was before; None where there was nothing to keep, and on PostgreSQL.
    """

    before: str
    after: str
    copy: Path | None


def alembic_config(connection: Connection | None) -> Config:
    """How Alembic finds the revisions; with a connection, also what they change. There is no alembic.ini."""
    config = Config()
    config.set_main_option("script_location", "hub_service.store:migrations")
    config.attributes[CONNECTION] = connection
    return config


def newest() -> str:
    """The revision that this version of the service needs."""
    head = ScriptDirectory.from_config(alembic_config(None)).get_current_head()
    assert head is not None  # noqa: S101 - there is a baseline
    return head


def revision_of(connection: Connection) -> str:
    """The revision that a database has; "" for none of our tables.

    Raises Unavailable for one that another version of the service made and this one does not know.
    """
    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    found = context.get_current_revision()
    if found is None:
        return _revision_without_alembic(connection)
    if found not in _known():
        raise Unavailable(
            f"The database was made by a newer version of the service: it has revision {found}, and this version knows "
            f"none after {newest()}.",
            "Start that version, or restore a backup from before its upgrade.",
        )
    return found


def check(url: str) -> tuple[str, str]:
    """The revision that a database has and the one that it needs. Changes nothing, and asks nobody to let go of it.

    Raises as `Database`, and as `revision_of`.
    """
    file = sqlite_file(parsed(url))
    if file is not None and not file.exists():
        return "", newest()
    database = Database(url, reads_only=True)
    try:
        with database.transaction() as connection:
            return revision_of(connection), newest()
    finally:
        database.close()


def require_newest(database: Database) -> None:
    """Raises Unavailable where the database must be brought up to date first, and as `revision_of`."""
    with database.transaction() as connection:
        found = revision_of(connection)
    if found != newest():
        raise Unavailable(
            f"The database has revision {found or 'none'}; this version of the service needs {newest()}.",
            "Run `python -m hub_service migrate`, or start the service, which does it.",
        )


def make(database: Database, revision: str) -> None:
    """Make the tables of a revision in an empty database. Raises Unavailable for a revision that nobody knows."""
    if revision not in _known():
        raise Unavailable(
            f"The backup has revision {revision} of the database, and this version of the service knows none after "
            f"{newest()}.",
            "Restore it with the version of the service that made it, or a newer one.",
        )
    with database.transaction() as connection:
        command.upgrade(alembic_config(connection), revision)


def upgrade(database: Database) -> Upgrade | None:
    """Bring the database up to date; None where it is. Before anything is changed, an SQLite file is copied.

    Raises DatabaseUnavailable, with nothing changed, and as `revision_of`.
    """
    with database.transaction() as connection:
        before = revision_of(connection)
        adopted = before != "" and not inspect(connection).has_table(VERSION_TABLE)
    after = newest()
    if before == after:
        return None
    copy = _copy(database, after) if before else None
    with _tables_can_be_replaced(database), database.transaction() as connection:
        config = alembic_config(connection)
        if adopted:
            command.stamp(config, before)
        command.upgrade(config, "head")
        if database.is_sqlite and connection.exec_driver_sql("PRAGMA foreign_key_check").first() is not None:
            raise DatabaseUnavailable(
                "The database's rows do not fit together, so it was not brought up to date.",
                "Restore a backup, or ask for help with `PRAGMA foreign_key_check`.",
            )
    if before:
        kept = f"; {copy} is a copy of it as it was" if copy else ""
        log.info("the database was brought from revision %s to %s%s", before, after, kept)
    return Upgrade(before, after, copy)


def _known() -> set[str]:
    return {one.revision for one in ScriptDirectory.from_config(alembic_config(None)).walk_revisions()}


def _revision_without_alembic(connection: Connection) -> str:
    if not inspect(connection).has_table(tables.schema.name):
        return ""
    number = connection.execute(select(tables.schema.c.version)).scalar_one_or_none()
    if number not in (None, _BASELINE_NUMBER):  # None: its service ended between making the table and its row
        raise Unavailable(
            f"The database has schema version {number}, which no released version of the service made.",
            "Start the version of the service that made it, or begin with a new database.",
        )
    return _BASELINE


@contextmanager
def _tables_can_be_replaced(database: Database) -> Iterator[None]:
    """SQLite looks after foreign keys even while a table is dropped to be made anew; inside a transaction it cannot be
    told not to. https://www.sqlite.org/lang_altertable.html#otheralter"""
    if not database.is_sqlite:
        yield
        return
    _pragma(database, "foreign_keys=OFF")
    try:
        yield
    finally:
        _pragma(database, "foreign_keys=ON")


def _pragma(database: Database, pragma: str) -> None:
    with closing(database.engine.raw_connection()) as connection:
        connection.cursor().execute(f"PRAGMA {pragma}").close()


def _copy(database: Database, after: str) -> Path | None:
    """The SQLite file as it is now, beside it. Raises DatabaseUnavailable where it cannot be copied."""
    file = sqlite_file(database.url)
    if file is None:
        return None
    copy = file.with_name(f"{file.name}.before-{after}")
    partial = file.with_name(f"{copy.name}.partial")
    try:
        partial.unlink(missing_ok=True)
        partial.touch(0o600)
        with closing(sqlite3.connect(partial)) as target, closing(database.engine.raw_connection()) as source:
            driver = source.driver_connection
            assert isinstance(driver, sqlite3.Connection)  # noqa: S101 - the dialect's own
            driver.backup(target)
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(copy)
    except (OSError, sqlite3.Error) as error:
        partial.unlink(missing_ok=True)
        raise DatabaseUnavailable(
            "The database must be brought up to date, and no copy of it could be made before.",
            f"Make room for a second {file.name} beside it, then start the service again.",
            debug=str(error),
        ) from error
    return copy
