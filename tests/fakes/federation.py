"""A coordinator over a store in memory, with people, sites and shortcuts for the steps that lead to a run."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from federator.contract import ApprovalState, AppVersion, Cell, Dataset, DeclaredOutput, Scope, Site, SourceFile

from hub_service.artifacts import Artifacts
from hub_service.changes import Changes
from hub_service.coordinator import Coordinator
from hub_service.domain.directory import HubDirectory
from hub_service.domain.notices import Tell, tell_nobody
from hub_service.domain.projects import Participation, Principal
from hub_service.store.base import Store
from hub_service.store.memory import MemoryStore
from tests.fakes.clock import SetClock
from tests.fakes.hub_directory import FakeHubDirectory

# d has no notebook servers.
SITES = {
    slug: Site(slug, f"Hospital {slug.upper()}", kind, isolates, f"help@{slug}", (Dataset("scans"), Dataset("labs")))
    for slug, kind, isolates in (
        ("a", "embedded", False),
        ("b", "embedded", False),
        ("c", "embedded", False),
        ("d", "supernode", True),
    )
}

USER_SCOPES = frozenset({Scope.ACCESS, Scope.USE})
STEWARD_SCOPES = USER_SCOPES | {Scope.APPROVE}


def person(name: str, *groups: str, scopes: frozenset[Scope] = USER_SCOPES) -> Principal:
    return Principal(name, frozenset(groups), frozenset(scopes))


ANNA = person("anna", "site-a")
BERT = person("bert", "site-b")
BEA = person("bea", "site-b")
CARL = person("carl", "site-c")
DORA = person("dora", "site-d")
STEWARDS = {slug: person(f"steward-{slug}", f"site-{slug}", f"steward-{slug}", scopes=STEWARD_SCOPES) for slug in SITES}
PEOPLE = (ANNA, BERT, BEA, CARL, DORA, *STEWARDS.values())


@dataclass(frozen=True)
class Build:
    fab: bytes
    title: str
    source: str = "notebook"
    cells: tuple[Cell, ...] = (Cell(3, "def build_model(): ..."),)
    files: tuple[SourceFile, ...] = (SourceFile("app/task.py", "import torch"),)
    imports: tuple[str, ...] = ("torch",)
    config: dict[str, int] = field(default_factory=lambda: {"num-server-rounds": 3})
    dependencies: tuple[str, ...] = ()
    outputs: tuple[DeclaredOutput, ...] = ()
    private_cells: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def fab_hash(self) -> str:
        return hashlib.sha256(self.fab).hexdigest()


class FakeBuilder:
    """The content is the FAB."""

    def build(self, filename: str, content: bytes, at_sites: frozenset[str] = frozenset()) -> Build:
        return Build(content, filename.removesuffix(".ipynb"))


def new_key() -> bytes:
    """A node's public key, as Flower sends it."""
    public_key = ec.generate_private_key(ec.SECP384R1()).public_key()
    return public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


class Federation:
    """Everything that a test of the coordinator or the reconciler needs."""

    def __init__(
        self,
        folder: Path,
        *,
        store: Store | None = None,
        hub: HubDirectory | None = None,
        sites: Mapping[str, Site] = SITES,
        tell: Tell = tell_nobody,
    ) -> None:
        self.store = store or MemoryStore()
        self.artifacts = Artifacts(folder / "artifacts")
        self.changes = Changes()
        self.clock = SetClock()
        ids = itertools.count(1)
        self.coordinator = Coordinator(
            store=self.store,
            artifacts=self.artifacts,
            hub=hub or FakeHubDirectory({one.name: set(one.groups) for one in PEOPLE}),
            builder=FakeBuilder(),
            sites=sites,
            tell=tell,
            changes=self.changes,
            clock=self.clock,
            new_id=lambda: f"id-{next(ids)}",
        )

    def new_project(self, owner: Principal = ANNA, fab: bytes = b"app 1") -> str:
        """A project with one app version; its id."""
        project_id = self.coordinator.create_project(owner, "Lungs", "Nodules").id
        self.add_app(project_id, fab, owner)
        return project_id

    def add_app(self, project_id: str, fab: bytes, owner: Principal = ANNA) -> AppVersion:
        return self.coordinator.add_app(owner, project_id, FakeBuilder().build("lungs.ipynb", fab))

    async def invite_and_join(
        self, project_id: str, who: Principal, dataset: str = "scans", owner: Principal = ANNA
    ) -> str:
        """Make somebody a member who takes part; the participation's id."""
        await self.coordinator.invite(owner, project_id, who.name)
        return self.join(project_id, who, dataset)

    def join(self, project_id: str, who: Principal, dataset: str = "scans") -> str:
        participant = self.coordinator.join(who, project_id, dataset)
        assert participant.participation_id is not None
        return participant.participation_id

    def newest_hash(self, project_id: str) -> str:
        return self.store.app_versions(project_id)[-1].fab_hash

    def decide(
        self, project_id: str, site: str, state: ApprovalState = ApprovalState.APPROVED, dataset: str = "scans"
    ) -> None:
        """The site's steward decides on the newest version."""
        fab_hash = self.newest_hash(project_id)
        self.coordinator.decide(STEWARDS[site], project_id, fab_hash, dataset, site, state, "for a test")

    async def supernode_project(self) -> tuple[str, str]:
        """A project of anna's that dora's site takes part in, approved: ids of the project and the participation."""
        project_id = self.new_project()
        participation_id = await self.invite_and_join(project_id, DORA)
        self.decide(project_id, "d")
        return project_id, participation_id

    def connect(self, who: Principal, participation_id: str) -> bytes:
        """The client registers a fresh key and its node polls; the key."""
        key = new_key()
        self.coordinator.register_node(who, participation_id, key)
        self.coordinator.node_seen(participation_id, working=False)
        return key

    def participation(self, participation_id: str) -> Participation:
        participation = self.store.participation(participation_id)
        assert participation is not None
        return participation

    async def ready_project(self) -> tuple[str, str, str]:
        """A project that anna and bert take part in, approved and connected: project id and participation ids."""
        project_id = self.new_project()
        first = self.join(project_id, ANNA)
        second = await self.invite_and_join(project_id, BERT)
        for who, site, participation_id in ((ANNA, "a", first), (BERT, "b", second)):
            self.decide(project_id, site)
            self.connect(who, participation_id)
        return project_id, first, second
