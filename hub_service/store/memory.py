"""The store in dictionaries: for tests, and the model that the SQL store is held to."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, TypeVar

from federator.contract import ApprovalState

from hub_service.domain.approvals import Approval
from hub_service.domain.packages import SitePackages
from hub_service.domain.projects import AppVersion, Member, Participation, Project
from hub_service.domain.runs import Run, RunEvent
from hub_service.store.base import AuditLine, Store, require_storable

K = TypeVar("K")


@dataclass(slots=True)
class _Tables:
    """Dictionaries keep the order in which a key was first put, as the interface asks."""

    projects: dict[str, Project] = field(default_factory=dict)
    members: dict[tuple[str, str], Member] = field(default_factory=dict)
    app_versions: dict[tuple[str, str], AppVersion] = field(default_factory=dict)
    participations: dict[str, Participation] = field(default_factory=dict)
    approvals: dict[tuple[str, str, str, str], Approval] = field(default_factory=dict)
    runs: dict[str, Run] = field(default_factory=dict)
    events: dict[str, list[RunEvent]] = field(default_factory=dict)
    site_packages: dict[str, SitePackages] = field(default_factory=dict)
    audit_lines: list[AuditLine] = field(default_factory=list)


class MemoryStore(Store):
    def __init__(self) -> None:
        self._tables = _Tables()
        self._in_transaction = False

    @contextmanager
    def transaction(self) -> Iterator[None]:
        if self._in_transaction:
            yield
            return
        before = copy.deepcopy(self._tables)
        self._in_transaction, whole = True, False
        try:
            yield
            whole = True
        finally:
            self._in_transaction = False
            if not whole:
                self._tables = before

    def close(self) -> None:
        """Nothing is held open."""

    def delete_project(self, project_id: str) -> None:
        tables = self._tables
        tables.projects.pop(project_id, None)
        for run in self.runs(project_id):
            tables.events.pop(run.id, None)
        _drop(tables.members, project_id)
        _drop(tables.app_versions, project_id)
        _drop(tables.participations, project_id)
        _drop(tables.approvals, project_id)
        _drop(tables.runs, project_id)

    def put_project(self, project: Project) -> None:
        require_storable(asdict(project).values())
        self._tables.projects[project.id] = project

    def project(self, project_id: str) -> Project | None:
        return self._tables.projects.get(project_id)

    def projects(self) -> Sequence[Project]:
        return sorted(self._tables.projects.values(), key=lambda project: (project.created_at, project.id))

    def put_member(self, member: Member) -> None:
        require_storable(asdict(member).values())
        self._tables.members[member.project_id, member.user] = member

    def members(self, project_id: str) -> Sequence[Member]:
        return [member for member in self._tables.members.values() if member.project_id == project_id]

    def memberships(self, user: str) -> Sequence[Member]:
        return [member for member in self._tables.members.values() if member.user == user]

    def put_app_version(self, version: AppVersion) -> None:
        require_storable(asdict(version).values())
        self._tables.app_versions[version.project_id, version.fab_hash] = version

    def app_versions(self, project_id: str) -> Sequence[AppVersion]:
        versions = [version for version in self._tables.app_versions.values() if version.project_id == project_id]
        return sorted(versions, key=lambda version: version.number)

    def put_participation(self, participation: Participation) -> None:
        require_storable(asdict(participation).values())
        self._tables.participations[participation.id] = participation

    def participation(self, participation_id: str) -> Participation | None:
        return self._tables.participations.get(participation_id)

    def participations(self, project_id: str) -> Sequence[Participation]:
        return [one for one in self._tables.participations.values() if one.project_id == project_id]

    def active_participations_of(self, user: str) -> Sequence[Participation]:
        return [one for one in self._tables.participations.values() if one.active and one.user == user]

    def active_participations_at(self, site: str) -> Sequence[Participation]:
        return [one for one in self._tables.participations.values() if one.active and one.site == site]

    def participation_by_key(self, public_key: bytes) -> Participation | None:
        matching = (one for one in self._tables.participations.values() if one.active and one.public_key == public_key)
        return next(matching, None)

    def put_approval(self, approval: Approval) -> None:
        require_storable(asdict(approval).values())
        key = (approval.project_id, approval.fab_hash, approval.site, approval.dataset)
        self._tables.approvals[key] = approval

    def approvals(self, project_id: str) -> Sequence[Approval]:
        return [approval for approval in self._tables.approvals.values() if approval.project_id == project_id]

    def approvals_ending(self, after: datetime, until: datetime) -> Sequence[Approval]:
        return [
            one
            for one in self._tables.approvals.values()
            if one.state is ApprovalState.APPROVED and one.expires_at is not None and after < one.expires_at <= until
        ]

    def put_run(self, run: Run) -> None:
        require_storable(asdict(run).values())
        self._tables.runs[run.id] = copy.deepcopy(run)

    def run(self, run_id: str) -> Run | None:
        return self._tables.runs.get(run_id)

    def runs(self, project_id: str) -> Sequence[Run]:
        return [run for run in self._tables.runs.values() if run.project_id == project_id]

    def unfinished_runs(self) -> Sequence[Run]:
        return [run for run in self._tables.runs.values() if not run.status.is_final]

    def add_events(self, run_id: str, events: Iterable[RunEvent]) -> None:
        self._tables.events.setdefault(run_id, []).extend(events)

    def events(self, run_id: str) -> Sequence[RunEvent]:
        return tuple(self._tables.events.get(run_id, ()))

    def event_count(self, run_id: str) -> int:
        return len(self._tables.events.get(run_id, ()))

    def put_site_packages(self, packages: SitePackages) -> None:
        require_storable(asdict(packages).values())
        self._tables.site_packages[packages.site] = copy.deepcopy(packages)

    def site_packages(self, site: str) -> SitePackages | None:
        return self._tables.site_packages.get(site)

    def all_site_packages(self) -> Sequence[SitePackages]:
        return list(self._tables.site_packages.values())

    def add_audit_line(self, line: AuditLine) -> None:
        self._tables.audit_lines.append(line)

    def last_audit_line(self) -> AuditLine | None:
        return self._tables.audit_lines[-1] if self._tables.audit_lines else None

    def audit_lines_of(self, project_id: str) -> Sequence[AuditLine]:
        return [line for line in self._tables.audit_lines if line.project_id == project_id]

    def audit_lines(self) -> Sequence[AuditLine]:
        return tuple(self._tables.audit_lines)


def _drop(table: MutableMapping[K, Any], project_id: str) -> None:
    for key in [key for key, row in table.items() if row.project_id == project_id]:
        del table[key]
