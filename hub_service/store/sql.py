"""The store in a SQL database, through SQLAlchemy Core."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from typing import Any, TypeVar

from federator.contract import (
    ApprovalState,
    Cell,
    ClientState,
    Conditions,
    MemberState,
    ModelFile,
    OutagePolicy,
    RunStatus,
    SourceFile,
)
from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    Table,
    delete,
    func,
    insert,
    select,
    update,
)

from hub_service.domain.approvals import Approval
from hub_service.domain.errors import FederationError
from hub_service.domain.packages import SitePackages
from hub_service.domain.projects import AppVersion, Member, Participation, Project
from hub_service.domain.runs import EventKind, Run, RunEvent, RunTarget
from hub_service.store import migrating, tables
from hub_service.store.base import AuditLine, Store, is_storable, require_storable
from hub_service.store.database import Database
from hub_service.store.kept import KeptRows
from hub_service.store.statement_times import listen

_FINAL_STATUSES = tuple(status.value for status in RunStatus if status.is_final)

# What tells the rows of a table apart, where rows are put again.
_KEYS: Mapping[Table, Sequence[str]] = {
    tables.projects: ["id"],
    tables.members: ["project_id", "user"],
    tables.app_versions: ["project_id", "fab_hash"],
    tables.participations: ["id"],
    tables.approvals: ["project_id", "fab_hash", "site", "dataset"],
    tables.runs: ["id"],
    tables.site_packages: ["site"],
}
_OF_A_PROJECT = (tables.runs, tables.approvals, tables.participations, tables.app_versions, tables.members)
_LOOKUPS_KEPT = 500  # of a table
_LARGE_LOOKUPS_KEPT = 50  # of app versions, which hold their whole source, and of runs' events
_ROWS_KEPT = 5000  # of one lookup: the events of a long run of many sites are read each time

T = TypeVar("T")
Row = RowMapping


class SqlStore(Store):
    """One connection, used by one thread: the service's event loop. Nobody else writes to the database.

    Made, it has brought the database to its own schema (`store.migrating`).

    Args:
        url, wait_s, reads_only: as of `store.database.Database`. One that reads only brings nothing up to date.

    Raises as `Database`; Unavailable for a database that a newer version of the service made, or, where it is to be
    read only, an older one.
    """

    def __init__(self, url: str, *, wait_s: float = 0.0, reads_only: bool = False) -> None:
        self._open: Connection | None = None
        self._changed = False  # by the transaction that is open
        self._kept = {table: KeptRows(key, lookups=_LOOKUPS_KEPT, rows=_ROWS_KEPT) for table, key in _KEYS.items()}
        for table in (tables.app_versions, tables.run_events):
            self._kept[table] = KeptRows(_KEYS.get(table, ()), lookups=_LARGE_LOOKUPS_KEPT, rows=_ROWS_KEPT)
        self._database = Database(url, wait_s=wait_s, reads_only=reads_only)
        self._connections = self._database.connections
        try:
            if reads_only:
                migrating.require_newest(self._database)
            else:
                migrating.upgrade(self._database)
        except FederationError:
            self._database.close()
            raise

    @contextmanager
    def transaction(self) -> Iterator[None]:
        if self._open is not None:
            yield
            return
        whole, self._changed = False, False
        try:
            with self._database.transaction() as connection:
                self._open = connection
                try:
                    yield
                finally:
                    self._open = None
            whole = True
        finally:
            if self._changed and not whole:
                self._forget()

    def _forget(self) -> None:
        for kept in self._kept.values():
            kept.clear()

    def _forget_what_others_may_have_changed(self) -> None:
        """While there was no connection, there was no lock, and another service may have had the database."""
        if self._connections != self._database.connections:
            self._connections = self._database.connections
            self._forget()

    @property
    def _connection(self) -> Connection:
        """The connection of the transaction that is open."""
        assert self._open is not None  # noqa: S101 - every use below stands inside `transaction()`
        return self._open

    def time_statements(self, took: Callable[[float], None]) -> None:
        """Tell of each statement from now on how many seconds it took."""
        listen(self._database.engine, took)

    def close(self) -> None:
        self._database.close()

    # --- statements

    @contextmanager
    def _change(self) -> Iterator[None]:
        with self.transaction():
            self._changed = True
            yield

    def _put(self, table: Table, values: Mapping[str, Any]) -> None:
        """Update the row with this key, or insert it where there is none: its place among the others stays."""
        require_storable(values.values())
        with self._change():
            same_key = [table.c[name] == values[name] for name in _KEYS[table]]
            if self._connection.execute(update(table).where(*same_key).values(values)).rowcount == 0:
                self._connection.execute(insert(table).values(values))
        self._kept[table].put(values)

    def _all(self, table: Table, make: Callable[[Row], T], **wanted: Any) -> list[T]:
        """Rows that have these values, in the order in which they were first put."""
        if not all(is_storable(value) for value in wanted.values() if isinstance(value, str)):
            return []
        self._forget_what_others_may_have_changed()
        asked = frozenset(wanted.items())
        found: list[T] | None = self._kept[table].get(asked)
        if found is None:
            found = self._read(table, make, *(table.c[name] == value for name, value in wanted.items()))
            self._kept[table].keep(asked, found)
        return found

    def _first(self, table: Table, make: Callable[[Row], T], **wanted: Any) -> T | None:
        return next(iter(self._all(table, make, **wanted)), None)

    def _read(self, table: Table, make: Callable[[Row], T], *where: ColumnElement[bool]) -> list[T]:
        order = next(iter(table.primary_key))
        with self.transaction():
            return [
                make(row) for row in self._connection.execute(select(table).where(*where).order_by(order)).mappings()
            ]

    # --- projects and members

    def put_project(self, project: Project) -> None:
        self._put(tables.projects, asdict(project))

    def project(self, project_id: str) -> Project | None:
        return self._first(tables.projects, _project, id=project_id)

    def projects(self) -> Sequence[Project]:
        with self.transaction():
            query = select(tables.projects).order_by(tables.projects.c.created_at, tables.projects.c.id)
            return [_project(row) for row in self._connection.execute(query).mappings()]

    def delete_project(self, project_id: str) -> None:
        runs = select(tables.runs.c.id).where(tables.runs.c.project_id == project_id)
        with self._change():
            self._connection.execute(delete(tables.run_events).where(tables.run_events.c.run_id.in_(runs)))
            for table in _OF_A_PROJECT:
                self._connection.execute(delete(table).where(table.c.project_id == project_id))
            self._connection.execute(delete(tables.projects).where(tables.projects.c.id == project_id))
        self._forget()

    def put_member(self, member: Member) -> None:
        self._put(tables.members, asdict(member))

    def members(self, project_id: str) -> Sequence[Member]:
        return self._all(tables.members, _member, project_id=project_id)

    def memberships(self, user: str) -> Sequence[Member]:
        return self._all(tables.members, _member, user=user)

    # --- app versions

    def put_app_version(self, version: AppVersion) -> None:
        self._put(tables.app_versions, asdict(version))

    def app_versions(self, project_id: str) -> Sequence[AppVersion]:
        versions = self._all(tables.app_versions, _app_version, project_id=project_id)
        return sorted(versions, key=lambda version: version.number)

    # --- participations

    def put_participation(self, participation: Participation) -> None:
        node_id = None if participation.node_id is None else str(participation.node_id)
        self._put(tables.participations, {**asdict(participation), "node_id": node_id})

    def participation(self, participation_id: str) -> Participation | None:
        return self._first(tables.participations, _participation, id=participation_id)

    def participations(self, project_id: str) -> Sequence[Participation]:
        return self._all(tables.participations, _participation, project_id=project_id)

    def active_participations_of(self, user: str) -> Sequence[Participation]:
        return self._active(user=user)

    def active_participations_at(self, site: str) -> Sequence[Participation]:
        return self._active(site=site)

    def participation_by_key(self, public_key: bytes) -> Participation | None:
        return next(iter(self._active(public_key=public_key)), None)

    def _active(self, **wanted: Any) -> list[Participation]:
        return self._all(tables.participations, _participation, active=True, **wanted)

    # --- approvals

    def put_approval(self, approval: Approval) -> None:
        self._put(tables.approvals, asdict(approval))

    def approvals(self, project_id: str) -> Sequence[Approval]:
        return self._all(tables.approvals, _approval, project_id=project_id)

    def approvals_ending(self, after: datetime, until: datetime) -> Sequence[Approval]:
        ends, state = tables.approvals.c.expires_at, tables.approvals.c.state
        return self._read(tables.approvals, _approval, state == ApprovalState.APPROVED, ends > after, ends <= until)

    # --- runs

    def put_run(self, run: Run) -> None:
        self._put(tables.runs, asdict(run))

    def run(self, run_id: str) -> Run | None:
        return self._first(tables.runs, _run, id=run_id)

    def runs(self, project_id: str) -> Sequence[Run]:
        return self._all(tables.runs, _run, project_id=project_id)

    def unfinished_runs(self) -> Sequence[Run]:
        return self._read(tables.runs, _run, tables.runs.c.status.not_in(_FINAL_STATUSES))

    def add_events(self, run_id: str, events: Iterable[RunEvent]) -> None:
        added = tuple(events)
        rows = [{**asdict(one), "node_id": str(one.node_id), "run_id": run_id} for one in added]
        if rows:
            with self._change():
                self._connection.execute(insert(tables.run_events), rows)
            self._kept[tables.run_events].extend(frozenset({"run_id": run_id}.items()), added)

    def events(self, run_id: str) -> Sequence[RunEvent]:
        return self._all(tables.run_events, _run_event, run_id=run_id)

    def event_count(self, run_id: str) -> int:
        if not is_storable(run_id):
            return 0
        query = select(func.count()).select_from(tables.run_events).where(tables.run_events.c.run_id == run_id)
        with self.transaction():
            return self._connection.execute(query).scalar_one()

    # --- what the sites' notebook servers have

    def put_site_packages(self, packages: SitePackages) -> None:
        self._put(tables.site_packages, asdict(packages))

    def site_packages(self, site: str) -> SitePackages | None:
        return self._first(tables.site_packages, _site_packages, site=site)

    def all_site_packages(self) -> Sequence[SitePackages]:
        return self._all(tables.site_packages, _site_packages)

    # --- audit

    def add_audit_line(self, line: AuditLine) -> None:
        with self._change():
            self._connection.execute(insert(tables.audit_lines).values(asdict(line)))

    def last_audit_line(self) -> AuditLine | None:
        query = select(tables.audit_lines).order_by(tables.audit_lines.c.sequence.desc()).limit(1)
        with self.transaction():
            row = self._connection.execute(query).mappings().one_or_none()
        return None if row is None else AuditLine(**row)

    def audit_lines_of(self, project_id: str) -> Sequence[AuditLine]:
        if not is_storable(project_id):
            return []
        wanted = tables.audit_lines.c.project_id == project_id
        return self._read(tables.audit_lines, lambda row: AuditLine(**row), wanted)

    def audit_lines(self) -> Sequence[AuditLine]:
        return self._read(tables.audit_lines, lambda row: AuditLine(**row))


# --- rows as what they stand for


def _without_place(row: Row) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "place"}


def _project(row: Row) -> Project:
    return Project(**{**row, "on_outage": OutagePolicy(row["on_outage"])})


def _member(row: Row) -> Member:
    return Member(**{**_without_place(row), "state": MemberState(row["state"])})


def _app_version(row: Row) -> AppVersion:
    return AppVersion(
        **{
            **_without_place(row),
            "cells": tuple(Cell(**cell) for cell in row["cells"]),
            "files": tuple(SourceFile(**file) for file in row["files"]),
            "imports": tuple(row["imports"]),
            "config_keys": tuple(row["config_keys"]),
        }
    )


def _participation(row: Row) -> Participation:
    node_id = None if row["node_id"] is None else int(row["node_id"])
    return Participation(**{**_without_place(row), "node_id": node_id, "client": ClientState(row["client"])})


def _approval(row: Row) -> Approval:
    limits = row["conditions"]
    members = None if limits["members"] is None else tuple(limits["members"])
    conditions = Conditions(**{**limits, "members": members})
    return Approval(**{**_without_place(row), "state": ApprovalState(row["state"]), "conditions": conditions})


def _run(row: Row) -> Run:
    return Run(
        **{
            **_without_place(row),
            "target": RunTarget(row["target"]),
            "status": RunStatus(row["status"]),
            "models": tuple(ModelFile(**model) for model in row["models"]),
            "on_outage": OutagePolicy(row["on_outage"]),
        }
    )


def _site_packages(row: Row) -> SitePackages:
    return SitePackages(**{**_without_place(row), "modules": tuple(row["modules"])})


def _run_event(row: Row) -> RunEvent:
    values = {name: value for name, value in _without_place(row).items() if name != "run_id"}
    return RunEvent(**{**values, "kind": EventKind(row["kind"]), "node_id": int(row["node_id"])})
