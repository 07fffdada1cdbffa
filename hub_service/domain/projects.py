"""What researchers share: projects, members, app versions and participations. Pure data."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from federator.contract import Cell, ClientState, MemberState, OutagePolicy, SourceFile

GRACE_S = 120.0


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks: a Hub user as the Hub describes them now, and the scopes of the token they came with.

    Made by `hub_service.identity` for each request; never stored.
    """

    name: str
    groups: frozenset[str]
    scopes: frozenset[str]

    @property
    def sites(self) -> frozenset[str]:
        """Slugs of the sites this person belongs to; exactly one for a person who may take part."""
        return _slugs(self.groups, "site-")

    @property
    def stewarded_sites(self) -> frozenset[str]:
        """Slugs of the sites for which this person may decide."""
        return _slugs(self.groups, "steward-")


def _slugs(groups: frozenset[str], prefix: str) -> frozenset[str]:
    return frozenset(name.removeprefix(prefix) for name in groups if name.startswith(prefix))


@dataclass(frozen=True, slots=True)
class Project:
    """`on_outage` and `grace_s`, in seconds, hold for the runs that are started from now on."""

    id: str
    name: str
    description: str
    owner: str
    created_at: datetime
    on_outage: OutagePolicy = OutagePolicy.WAIT
    grace_s: float = GRACE_S


@dataclass(frozen=True, slots=True)
class Member:
    project_id: str
    user: str
    state: MemberState
    invited_by: str
    changed_at: datetime


@dataclass(frozen=True, slots=True)
class AppVersion:
    """One immutable build. The FAB's bytes lie in the artifact folder under their hash."""

    project_id: str
    number: int
    fab_hash: str
    title: str
    source: str  # "notebook" or "fab"
    created_by: str
    created_at: datetime
    size: int
    cells: tuple[Cell, ...]
    files: tuple[SourceFile, ...]
    imports: tuple[str, ...]
    config_keys: tuple[str, ...] = ()  # keys of [tool.flwr.app.config]: what a run may set


@dataclass(frozen=True, slots=True)
class Participation:
    """One site's part in a project, with one dataset, run from one member's notebook server or by the site's SuperNode.

    `public_key` is the node's key in PEM, as Flower sends it; `node_id` is what the project's SuperLink calls it. Both
    are None until a key is registered, and again once Flower takes the key no more: `key_by` still says whose it was.
    """

    id: str
    project_id: str
    user: str
    site: str
    dataset: str
    kernel_id: str
    active: bool  # False once left or removed
    public_key: bytes | None
    node_id: int | None
    client: ClientState
    client_detail: str
    joined_at: datetime
    key_by: str = ""  # who registered the key
    key_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class NodeGrant:
    """What a node's key opens: the one project whose aggregator the gateway connects it to."""

    participation_id: str
    project_id: str
    node_id: int | None  # None until the project's SuperLink knows the key
    # Hashes of the FABs that the node may fetch. None: a client kernel, which itself checks what its steward approved.
    fab_hashes: frozenset[str] | None = None
    largest_message: int | None = None  # bytes that the node may send in one message; None: the gateway's own limit
    site: str = ""
