"""What the service remembers. One implementation a kind of storage; `tests/contract/test_store.py` holds them all.

Methods are synchronous and short. `transaction()` makes several of them one: all happen or none. Each of them may raise
DatabaseUnavailable, and then has changed nothing; what was read before may be answered from memory meanwhile. A `put_*`
raises Invalid for a text that is not storable; one that is asked for is found nowhere.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from hub_service.domain.approvals import Approval
from hub_service.domain.errors import Invalid
from hub_service.domain.packages import SitePackages
from hub_service.domain.projects import AppVersion, Member, Participation, Project
from hub_service.domain.runs import Run, RunEvent


@dataclass(frozen=True, slots=True)
class AuditLine:
    """One decision. `hash` covers the line and `previous`, so that a changed or missing line is found."""

    sequence: int
    at: datetime
    actor: str
    action: str
    project_id: str
    detail: dict[str, str]
    previous: str
    hash: str


def is_storable(text: str) -> bool:
    """PostgreSQL keeps no NUL character, and no database half of a surrogate pair."""
    return "\x00" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def require_storable(values: Iterable[object]) -> None:
    """Raises Invalid where one of them is a text that is not storable."""
    if not all(is_storable(value) for value in values if isinstance(value, str)):
        raise Invalid(
            "A text has a character in it that cannot be kept.",
            "Remove NUL and other broken characters, then try again.",
        )


class Store(ABC):
    """Projects and all that belongs to them. `put_*` inserts or replaces by the entity's key."""

    @abstractmethod
    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make the calls inside one unit. An exception undoes them. Nested use joins the outer one."""

    @abstractmethod
    def close(self) -> None: ...

    @abstractmethod
    def delete_project(self, project_id: str) -> None:
        """Remove the project and all that is its own, if it is there; lines of the audit log stay."""

    # projects and members (key: project id; project id and user)
    @abstractmethod
    def put_project(self, project: Project) -> None: ...

    @abstractmethod
    def project(self, project_id: str) -> Project | None: ...

    @abstractmethod
    def projects(self) -> Sequence[Project]:
        """All of them, oldest first."""

    @abstractmethod
    def put_member(self, member: Member) -> None: ...

    @abstractmethod
    def members(self, project_id: str) -> Sequence[Member]:
        """In the order in which they were first put."""

    @abstractmethod
    def memberships(self, user: str) -> Sequence[Member]: ...

    # app versions (key: project id and FAB hash), newest last
    @abstractmethod
    def put_app_version(self, version: AppVersion) -> None: ...

    @abstractmethod
    def app_versions(self, project_id: str) -> Sequence[AppVersion]: ...

    # participations (key: id)
    @abstractmethod
    def put_participation(self, participation: Participation) -> None: ...

    @abstractmethod
    def participation(self, participation_id: str) -> Participation | None: ...

    @abstractmethod
    def participations(self, project_id: str) -> Sequence[Participation]:
        """All of a project's, active or not, in the order in which they were first put."""

    @abstractmethod
    def active_participations_of(self, user: str) -> Sequence[Participation]: ...

    @abstractmethod
    def active_participations_at(self, site: str) -> Sequence[Participation]: ...

    @abstractmethod
    def participation_by_key(self, public_key: bytes) -> Participation | None:
        """The active participation whose node has this key. Called for each Fleet request: indexed."""

    # approvals (key: project id, FAB hash, site, dataset)
    @abstractmethod
    def put_approval(self, approval: Approval) -> None: ...

    @abstractmethod
    def approvals(self, project_id: str) -> Sequence[Approval]: ...

    @abstractmethod
    def approvals_ending(self, after: datetime, until: datetime) -> Sequence[Approval]:
        """Approvals, of any project, that expire after the one time and not after the other."""

    # runs (key: id) and their events, in order of arrival
    @abstractmethod
    def put_run(self, run: Run) -> None: ...

    @abstractmethod
    def run(self, run_id: str) -> Run | None: ...

    @abstractmethod
    def runs(self, project_id: str) -> Sequence[Run]:
        """Oldest first."""

    @abstractmethod
    def unfinished_runs(self) -> Sequence[Run]: ...

    @abstractmethod
    def add_events(self, run_id: str, events: Iterable[RunEvent]) -> None: ...

    @abstractmethod
    def events(self, run_id: str) -> Sequence[RunEvent]: ...

    @abstractmethod
    def event_count(self, run_id: str) -> int: ...

    # what the sites' notebook servers have (key: site)
    @abstractmethod
    def put_site_packages(self, packages: SitePackages) -> None: ...

    @abstractmethod
    def site_packages(self, site: str) -> SitePackages | None: ...

    @abstractmethod
    def all_site_packages(self) -> Sequence[SitePackages]: ...

    # audit
    @abstractmethod
    def add_audit_line(self, line: AuditLine) -> None: ...

    @abstractmethod
    def last_audit_line(self) -> AuditLine | None: ...

    @abstractmethod
    def audit_lines_of(self, project_id: str) -> Sequence[AuditLine]:
        """Oldest first."""

    @abstractmethod
    def audit_lines(self) -> Sequence[AuditLine]: ...
