"""All rows of a database as plain values, and back into an empty one: for backups, and to go from SQLite to PostgreSQL.

What is read is the database at one moment, whatever is written meanwhile. Values are those of JSON: a time is text in
UTC, bytes are base64. Tables and columns are what stands in the database, so rows of an older schema can be put back.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Column, Connection, DateTime, Integer, LargeBinary, MetaData, Table, func, insert, select

from hub_service.domain.errors import Conflict, Invalid
from hub_service.store import migrating, tables
from hub_service.store.database import Database

_AT_ONCE = 500  # rows

Rows = Iterable[Mapping[str, Any]]


@contextmanager
def reading(url: str) -> Iterator[tuple[str, Iterator[tuple[str, Rows]]]]:
    """The database's revision, and the rows of each table, as they stand now; the service may go on writing.

    Raises as `Database` and `migrating.require_newest`.
    """
    database = Database(url, reads_only=True)
    try:
        migrating.require_newest(database)
        with database.transaction() as connection:
            if not database.is_sqlite:  # there, one transaction sees one moment anyway
                connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            yield migrating.newest(), _tables(connection)
    finally:
        database.close()


def _tables(connection: Connection) -> Iterator[tuple[str, Rows]]:
    for table in _ours(connection):
        yield table.name, _rows(connection, table)


def _rows(connection: Connection, table: Table) -> Rows:
    query = select(table).order_by(*table.primary_key)
    found = connection.execution_options(yield_per=_AT_ONCE).execute(query)
    for row in found.mappings():
        yield {name: _plain(value) for name, value in row.items()}


def _ours(connection: Connection) -> Iterable[Table]:
    """Every table whose rows are somebody's, those that others refer to first."""
    there = MetaData()
    there.reflect(connection, only=lambda name, _: name in tables.metadata.tables)
    return [table for table in there.sorted_tables if table.name != tables.schema.name]


class Writing:
    """An empty database that gets rows. `close` it; `finish` brings it up to date.

    Raises Conflict where the database is not empty; otherwise as `Database`.
    """

    def __init__(self, url: str, revision: str) -> None:
        self._database = Database(url)
        try:
            with self._database.transaction() as connection:
                if migrating.revision_of(connection):
                    raise Conflict(
                        "The database is not empty.",
                        "Restore into a new one: an empty state folder, or a database that was just made.",
                    )
            migrating.make(self._database, revision)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._database.close()

    def write(self, found: Mapping[str, Rows]) -> None:
        """All rows, by table, or none. Raises Invalid where they do not fit, and as `Database`."""
        with self._database.transaction() as connection:
            known = {table.name: table for table in _ours(connection)}
            if unknown := sorted(found.keys() - known.keys()):
                raise Invalid(f"The backup has rows of unknown tables: {', '.join(unknown)}.")
            for name, table in known.items():
                _insert(connection, table, found.get(name, ()))
                if not self._database.is_sqlite:
                    _set_sequence(connection, table)

    def finish(self) -> None:
        """Bring what was written to the schema of this version of the service."""
        migrating.upgrade(self._database)


def _insert(connection: Connection, table: Table, rows: Rows) -> None:
    waiting: list[dict[str, Any]] = []
    for row in rows:
        if row.keys() != set(table.columns.keys()):
            raise Invalid(f"The backup's rows of {table.name} have other columns than its revision of the database.")
        waiting.append({name: _value(table.columns[name], value) for name, value in row.items()})
        if len(waiting) == _AT_ONCE:
            connection.execute(insert(table), waiting)
            waiting = []
    if waiting:
        connection.execute(insert(table), waiting)


def _set_sequence(connection: Connection, table: Table) -> None:
    """PostgreSQL numbers new rows by a sequence, which knows nothing of rows that brought their number along."""
    (key,) = table.primary_key
    if key.name == "place" and isinstance(key.type, Integer):
        sequence = func.pg_get_serial_sequence(table.name, key.name)
        last = select(func.coalesce(func.max(key), 0) + 1).scalar_subquery()
        connection.execute(select(func.setval(sequence, last, False)))


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC).isoformat()
    if isinstance(value, bytes | memoryview):
        return base64.b64encode(value).decode("ascii")
    return value


def _value(column: Column[Any], value: Any) -> Any:
    """Raises Invalid."""
    try:
        if value is not None and isinstance(column.type, DateTime):
            return datetime.fromisoformat(value).astimezone(UTC).replace(tzinfo=None)
        if value is not None and isinstance(column.type, LargeBinary):
            return base64.b64decode(value, validate=True)
    except (ValueError, TypeError) as error:
        raise Invalid(f"The backup has a {column.name} that cannot be read.") from error
    return value
