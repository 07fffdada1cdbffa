"""A real PostgreSQL for tests: a cluster of its own in a temporary folder, reached by a Unix socket only.

Started from Debian's `postgresql`. PostgreSQL refuses to run as root, so there the account `postgres` has the cluster.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import psycopg

ACCOUNT = "postgres"
_OPTIONS = {"listen_addresses": "", "fsync": "off", "full_page_writes": "off", "max_connections": "20"}


def binaries() -> Path | None:
    """The folder of the newest version's programs; None where PostgreSQL is not installed."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return versions[-1].parent if versions else None


class Cluster:
    """Use as a context manager; `empty_database` gives a database, `stop` and `start` are an outage."""

    def __init__(self) -> None:
        found = binaries()
        assert found is not None
        self._binaries = found

    def __enter__(self) -> Cluster:
        # Short, since a socket's path has 107 characters at most; not below pytest's folders, which are root's alone.
        self.folder = Path(tempfile.mkdtemp(prefix="federation-pg-"))
        if os.geteuid() == 0:
            shutil.chown(self.folder, ACCOUNT, ACCOUNT)
        self._run(
            "initdb", "--username=tester", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync", "data"
        )
        settings = "".join(f"{name} = '{value}'\n" for name, value in _OPTIONS.items())
        with (self.folder / "data" / "postgresql.conf").open("a") as file:
            file.write(f"{settings}unix_socket_directories = '{self.folder}'\n")
        self.start()
        self._run("createdb", f"--host={self.folder}", "--username=tester", "test")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.is_up:
            self.stop("immediate")
        shutil.rmtree(self.folder)

    @property
    def is_up(self) -> bool:
        return (self.folder / "data" / "postmaster.pid").exists()

    def start(self, options: str = "") -> None:
        self._run("pg_ctl", "start", "--wait", "--silent", "--pgdata=data", "--log=log", f"--options={options}")

    def stop(self, mode: str = "fast") -> None:
        """`fast` ends every connection; `immediate` is a crash."""
        self._run("pg_ctl", "stop", "--wait", "--silent", "--pgdata=data", f"--mode={mode}")

    def empty_database(self) -> str:
        """The address of the tests' database, emptied, as the service takes it. Whoever has it loses it.

        One for all: to make and to remove a database takes longer than what most tests do in it.
        """
        self.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'test' AND pid <> pg_backend_pid()"
        )
        self.sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        return self.address("test")

    @contextmanager
    def on_tcp(self) -> Iterator[str]:
        """The address of the tests' database by TCP. It is not reached by its socket meanwhile."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        self.stop()
        self.start(f"-c listen_addresses=127.0.0.1 -c port={port}")
        try:
            yield f"postgresql://tester@127.0.0.1:{port}/test"
        finally:
            self.stop()
            self.start()

    def new_database(self, name: str, options: str) -> str:
        """The address of a database that differs from others."""
        self.sql(f"CREATE DATABASE {name} TEMPLATE template0 {options}")
        return self.address(name)

    def address(self, name: str, user: str = "tester") -> str:
        return f"postgresql://{user}@/{name}?host={self.folder}"

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        """What a statement gives in the tests' database."""
        with psycopg.connect(host=str(self.folder), user="tester", dbname="test", autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def demand_password(self, user: str, password: str) -> None:
        """From now on there is this user, who needs a password."""
        self.sql(f"CREATE ROLE {user} SUPERUSER LOGIN PASSWORD '{password}'")
        rules = self.folder / "data" / "pg_hba.conf"
        rules.write_text(f"local all {user} scram-sha-256\n{rules.read_text()}")
        self._run("pg_ctl", "reload", "--silent", "--pgdata=data")

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._binaries / program), *arguments]
        if os.geteuid() == 0:
            command = ["setpriv", f"--reuid={ACCOUNT}", f"--regid={ACCOUNT}", "--clear-groups", *command]
        with tempfile.TemporaryFile() as said:  # a pipe would be held open by the server that pg_ctl starts
            done = subprocess.run(command, cwd=self.folder, stdout=said, stderr=said, check=False)
            said.seek(0)
            assert done.returncode == 0, said.read().decode()
