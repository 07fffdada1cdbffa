"""How the database is opened, who else may have it, and what its errors mean.

SQLite and PostgreSQL. One service has a database at a time: it keeps rows that it has read (`store.kept`), so it must
know of every change. On SQLite a lock on a file beside the database says so, on PostgreSQL an advisory lock of the
connection's session. There is one connection, and none without the lock: what is written is written by whoever has it.

    SQLite      <file>.lock, by flock(2): free as soon as its process has ended, however it ended
    PostgreSQL  pg_try_advisory_lock(ADVISORY_KEY): free as soon as the server knows that the connection has ended

A database that has gone is looked for by a thread, so that the event loop never waits for a host that does not answer.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, QueuePool, create_engine, event, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    NotSupportedError,
    ProgrammingError,
)

from hub_service.domain.errors import DatabaseInUse, DatabaseUnavailable, Invalid, Unavailable

log = logging.getLogger(__name__)

SQLITE, POSTGRESQL = "sqlite", "postgresql"
ADVISORY_KEY = int.from_bytes(b"notebook", "big")  # of 64 bits; SELECT * FROM pg_locks WHERE locktype = 'advisory'

_LOOK_EVERY_S = 1.0  # for a database that has gone, or that another service has
_BUSY_MS = 1000  # how long SQLite waits for another program
# A host that is gone, or a network that drops packets, is noticed within seconds: libpq would wait for minutes.
_POSTGRESQL_OPTIONS = {
    "application_name": "notebook-federator",
    "client_encoding": "utf8",
    "connect_timeout": "5",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
}
# The server keeps the lock of a machine that is gone until it has noticed that: by default after two hours. Not among
# the options above: a pooler refuses what it does not know there.
_KEEPALIVES = ("SET tcp_keepalives_idle = 10", "SET tcp_keepalives_interval = 5", "SET tcp_keepalives_count = 3")
_TRY_AGAIN = "Nothing was changed. Try again in a minute; if it lasts, tell the Hub's administrator."


def parsed(url: str) -> URL:
    """The address of a database that we support. No text of an error repeats it: a password may stand in it.

    Raises Invalid.
    """
    try:
        parts = make_url(url)
    except (ArgumentError, ValueError):
        raise Invalid(
            "The database's address cannot be read.",
            "Write postgresql://user@host/database, or nothing for SQLite in the state folder.",
        ) from None
    backend = parts.get_backend_name()
    if backend not in (SQLITE, POSTGRESQL):
        raise Invalid(
            f"The service cannot keep its state in “{backend}”: SQLite and PostgreSQL are supported.",
            "Write postgresql://user@host/database, or nothing for SQLite in the state folder.",
        )
    return parts.set(drivername="postgresql+psycopg" if backend == POSTGRESQL else backend)


def sqlite_file(url: URL) -> Path | None:
    """The file of an SQLite database; None for one in memory or on a server."""
    on_disk = url.get_backend_name() == SQLITE and url.database not in (None, "", ":memory:")
    return Path(str(url.database)) if on_disk else None


class Database:
    """One database, had by nobody else until `close`.

    Args:
        url: a SQLAlchemy URL, such as sqlite:////var/lib/federation/federation.db or
            postgresql://federation@db.example/federation. The password may stand in the file that PGPASSFILE names, or
            in PGPASSWORD (https://www.postgresql.org/docs/current/libpq-envars.html).
        wait_s: how long to wait for a server that does not answer, and for another service to end, in seconds.
            Blocks meanwhile: call from a thread.
        reads_only: whoever has the database keeps it; nothing can be written.

    Raises Invalid for an address that is not supported; Unavailable where the driver is not installed or the database
    is not as it must be; DatabaseInUse where another service has it and DatabaseUnavailable where it does not answer,
    both after `wait_s`.
    """

    def __init__(self, url: str, *, wait_s: float = 0.0, reads_only: bool = False) -> None:
        self.url = parsed(url)
        self._reads_only = reads_only
        self.connections = 0  # that were made: with another one, somebody else may have written in between
        self._gone = threading.Event()
        self._closed = threading.Event()
        self._looking: threading.Thread | None = None
        self._lock_file: int | None = None
        self.engine = _engine(self.url)
        if self.is_sqlite:
            event.listen(self.engine, "connect", _set_up_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)
        elif not reads_only:
            event.listen(self.engine, "connect", _take_advisory_lock)
        if reads_only:
            event.listen(self.engine, "connect", _refuse_writing_sqlite if self.is_sqlite else _refuse_writing)
        event.listen(self.engine, "connect", self._count_connection)
        try:
            self._take(wait_s)
        except (Invalid, Unavailable):
            self.close()
            raise

    @property
    def is_sqlite(self) -> bool:
        return self.url.get_backend_name() == SQLITE

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """All statements inside happen or none.

        Raises DatabaseUnavailable where the database does not answer, Invalid for a text that it cannot keep.
        """
        if self._gone.is_set():
            raise DatabaseUnavailable("The service's database does not answer.", _TRY_AGAIN)
        with _told(), self._connected() as connection, connection.begin():
            yield connection

    def close(self) -> None:
        """Let go of the database. A service that waits for it goes on."""
        self._closed.set()
        if self._looking is not None:
            self._looking.join()
        self.engine.dispose()
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        try:
            connection = self.engine.connect()
        except (DBAPIError, Unavailable):
            self._look_for_it()
            raise
        with connection:
            yield connection

    # --- having it alone

    def _take(self, wait_s: float) -> None:
        deadline = time.monotonic() + wait_s
        told = ""
        while True:
            try:
                with _told():
                    self._try_to_take()
                return
            except DatabaseUnavailable as error:
                if time.monotonic() >= deadline:
                    raise
                if error.message != told:
                    log.warning("waiting for the database: %s %s", error.message, error.debug)
                told = error.message
            self._closed.wait(min(_LOOK_EVERY_S, wait_s))

    def _try_to_take(self) -> None:
        file = sqlite_file(self.url)
        if file is not None and self._reads_only and not file.exists():
            raise DatabaseUnavailable(
                "There is no database yet.", "The service makes it when it starts.", debug=str(file)
            )
        if file is not None and self._lock_file is None and not self._reads_only:
            self._lock_file = _locked(file.with_name(f"{file.name}.lock"))
        with self.engine.connect() as connection:
            if not self.is_sqlite:
                encoding = connection.exec_driver_sql("SHOW server_encoding").scalar_one()
                if encoding != "UTF8":
                    raise Unavailable(
                        f"The database keeps texts as {encoding}; the service needs UTF8.",
                        "Make it with: createdb --encoding=UTF8 --template=template0",
                    )

    def _count_connection(self, _connection: object, _record: object) -> None:
        self.connections += 1

    # --- a database that has gone

    def _look_for_it(self) -> None:
        """Until it is there again, everybody is told at once that it is not."""
        if self.is_sqlite or self._gone.is_set():
            return
        self._gone.set()
        log.error("the database does not answer; it is looked for every %g s", _LOOK_EVERY_S)
        self._looking = threading.Thread(target=self._until_it_is_back, name="look for the database", daemon=True)
        self._looking.start()

    def _until_it_is_back(self) -> None:
        reason = ""
        while not self._closed.wait(_LOOK_EVERY_S):
            try:
                with _told(), self.engine.connect():
                    pass
            except Unavailable as error:
                if error.debug != reason:
                    log.warning("%s %s", error.message, error.debug)
                reason = error.debug
                continue
            log.info("the database is back")
            self._gone.clear()
            return


def _engine(url: URL) -> Engine:
    options: dict[str, Any] = {"hide_parameters": True}  # what people wrote belongs in no log
    if url.get_backend_name() == POSTGRESQL:
        options["connect_args"] = {name: value for name, value in _POSTGRESQL_OPTIONS.items() if name not in url.query}
    if url.get_backend_name() == POSTGRESQL or sqlite_file(url) is not None:
        options |= {"poolclass": QueuePool, "pool_size": 1, "max_overflow": 0}
        options["pool_pre_ping"] = url.get_backend_name() == POSTGRESQL
    try:
        return create_engine(url, **options)
    except ModuleNotFoundError as error:
        raise Unavailable(
            "PostgreSQL needs a driver that is not installed.",
            "Install it in the checkout with: pip install ./images/singleuser '.[postgresql]'. The Hub's image has it.",
            debug=str(error),
        ) from error


def _set_up_sqlite(connection: Any, _record: object) -> None:
    """Called by SQLAlchemy for each new connection. With WAL a reader, such as a backup, does not block the service.

    Python's sqlite3 begins no transaction before a change of a table; with `isolation_level = None` we begin them all:
    https://docs.sqlalchemy.org/en/20/dialects/sqlite.html#serializable-isolation-savepoints-transactional-ddl
    """
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", f"busy_timeout={_BUSY_MS}"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    connection.connection.cursor().execute("BEGIN").close()  # by the driver: it is nobody's statement


def _refuse_writing_sqlite(connection: Any, _record: object) -> None:
    connection.execute("PRAGMA query_only=ON")


def _refuse_writing(connection: Any, _record: object) -> None:
    connection.read_only = True


def _take_advisory_lock(connection: Any, _record: object) -> None:
    """Called by SQLAlchemy for each new connection: one without the lock is none. Raises DatabaseInUse."""
    with connection.cursor() as cursor:
        for setting in _KEEPALIVES:
            cursor.execute(setting)
        cursor.execute("SELECT pg_try_advisory_lock(%s)", (ADVISORY_KEY,))
        (taken,) = cursor.fetchone()
        holder = "" if taken else _holder_of_advisory_lock(cursor)
    connection.commit()
    if not taken:
        connection.close()
        raise _in_use(holder)


def _holder_of_advisory_lock(cursor: Any) -> str:
    """Who has it, as far as this role may know."""
    cursor.execute(
        "SELECT a.pid, a.client_addr, a.backend_start FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid) "
        "WHERE l.locktype = 'advisory' AND l.granted AND l.database = (SELECT oid FROM pg_database "
        "WHERE datname = current_database()) AND (l.classid::bigint << 32) + l.objid::bigint = %s",
        (ADVISORY_KEY,),
    )
    found = cursor.fetchone()
    if found is None:
        return ""
    return f"server process {found[0]}, client {found[1] or 'on the same machine'}, since {found[2]}"


def _locked(path: Path) -> int:
    """A descriptor that holds the lock; closed, or with its process ended, it is free. Raises DatabaseInUse."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DatabaseUnavailable(
            "The service's database cannot be opened.",
            "Ask the Hub's administrator to check its folder: does it exist, may the service write there?",
            debug=str(error),
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 32).decode("ascii", errors="replace")
        os.close(descriptor)
        raise _in_use(f"process {holder}" if holder else "") from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, str(os.getpid()).encode("ascii"))
    return descriptor


def _in_use(holder: str) -> DatabaseInUse:
    by = f" ({holder})" if holder else ""
    return DatabaseInUse(
        f"Another federation service has this database{by}.",
        "One database serves one service: end the other one, or give this one a database of its own.",
    )


# --- errors


@contextmanager
def _told() -> Iterator[None]:
    """The driver's errors as ours. What is a mistake in our own statements stays what it is."""
    try:
        yield
    except (IntegrityError, ProgrammingError, NotSupportedError):
        raise
    except DBAPIError as error:
        if isinstance(error, DataError) or _code(error) == _TOO_LONG_FOR_AN_INDEX:
            raise Invalid(
                "Something in what was sent cannot be kept: a number or a name is too large.",
                "Change it and send it again.",
                debug=_first_line(error),
            ) from error
        raise DatabaseUnavailable(_what_happened(error), _TRY_AGAIN, debug=_first_line(error)) from error


def _first_line(error: DBAPIError) -> str:
    return " ".join(str(error.orig).split())


_DISK_FULL, _READ_ONLY, _BUSY = (
    "The disk of the service's database is full.",
    "The service's database cannot be written: it is read-only.",
    "Another program keeps the service's database locked.",
)
_TEXTS = {
    "SQLITE_FULL": _DISK_FULL,
    "SQLITE_READONLY": _READ_ONLY,
    "SQLITE_READONLY_DBMOVED": "The file of the service's database was moved or deleted.",
    "SQLITE_BUSY": _BUSY,
    "SQLITE_LOCKED": _BUSY,
    "SQLITE_NOTADB": "The file of the service's database is no database.",
    "SQLITE_CORRUPT": "The file of the service's database is damaged.",
    "SQLITE_CANTOPEN": "The service's database cannot be opened.",
    "53100": _DISK_FULL,  # https://www.postgresql.org/docs/current/errcodes-appendix.html
    "25006": _READ_ONLY,
    "55P03": _BUSY,
}


_TOO_LONG_FOR_AN_INDEX = "54000"


def _code(error: DBAPIError) -> str:
    return getattr(error.orig, "sqlite_errorname", None) or getattr(error.orig, "sqlstate", None) or ""


def _what_happened(error: DBAPIError) -> str:
    code = _code(error)
    kind = "_".join(code.split("_")[:2])  # SQLite's extended codes, such as SQLITE_READONLY_DIRECTORY
    return _TEXTS.get(code) or _TEXTS.get(kind) or "The service's database does not answer."
