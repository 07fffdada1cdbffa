"""What the administrators' page shows: facts of operation. Of a project no model, no code, no metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from federator.contract import ClientState, RunStatus

from hub_service.domain.quotas import Use
from hub_service.machinery import Disk
from hub_service.notices.outbox import Undelivered
from hub_service.readiness import Part


@dataclass(frozen=True, slots=True)
class SiteState:
    """A site, as far as the service knows it: it never speaks with a site's engine, the Hub does.

    Attributes:
        participations: active ones; `connected`, `failed`: of them, those whose client is, or has given up.
        runs: in flight in which it takes part.
        packages: that its servers have reported; `reported_at` is "" while none has.
    """

    slug: str
    title: str
    kind: str
    participations: int
    connected: int
    failed: int
    runs: int
    packages: int
    reported_at: str


@dataclass(frozen=True, slots=True)
class ProjectState:
    id: str
    name: str
    owner: str
    members: int  # joined or invited
    sites: int  # that take part
    runs: int  # ever
    stored: int  # bytes of apps and kept models
    near: bool  # its storage is nearly used up


@dataclass(frozen=True, slots=True)
class RunState:
    """A run in flight."""

    id: str
    project_id: str
    project_name: str
    number: int
    status: RunStatus
    phase: str
    created_at: str
    seconds: float  # since it was asked for
    resumed: int
    sites: int
    has_aggregator: bool | None  # None: that cannot be told
    stopping: bool


@dataclass(frozen=True, slots=True)
class Orphan:
    """An aggregator whose project has no run in flight, or is gone."""

    project_id: str
    project_name: str  # "" for a project that is gone


@dataclass(frozen=True, slots=True)
class ClientOfProject:
    """An active participation whose client is known to the service."""

    participation_id: str
    project_name: str
    user: str
    site_title: str
    state: ClientState
    has_key: bool


@dataclass(frozen=True, slots=True)
class ErrorLine:
    at: str
    text: str


@dataclass(frozen=True, slots=True)
class FederationState:
    """Everything at once."""

    parts: Sequence[Part]
    disk: Disk
    sites: Sequence[SiteState]
    projects: Sequence[ProjectState]
    runs: Sequence[RunState]
    aggregators: int | None
    orphans: Sequence[Orphan]
    clients: Sequence[ClientOfProject]
    notices_waiting: int
    undelivered: Sequence[Undelivered]
    quotas: Sequence[Use]
    errors: Sequence[ErrorLine]  # newest first

    @property
    def works(self) -> bool:
        return all(part.works for part in self.parts)
