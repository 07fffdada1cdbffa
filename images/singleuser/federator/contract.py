"""What the Hub's service and a site's notebook servers say to each other. Standard library only.

Both sides import this module: `hub_service` answers with these types, `spawner` grants these scopes and sets these
environment variables, `federator` reads them. A field is added with a default; a field is never given a new meaning.
`API_VERSION` grows when an old client would misread an answer.

Times are ISO 8601 strings in UTC. Hashes are lower-case sha256 in hex. Ids are opaque.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

API_VERSION = 1
SERVICE_NAME = "federation"
SERVICE_PREFIX = f"/services/{SERVICE_NAME}/"
FLEET_PREFIX = "/v1/fleet/"
# Set by the gateway on a 503 that means "your key is good, but no aggregator runs yet: ask again".
FLEET_WAITING_HEADER = "Federation-Waiting"
# Sent by nodes that take letters (`federator.parcel`); a stock SuperNode does not send it.
FLEET_LETTERS_HEADER = "Federation-Letters"
# Set by the gateway on each message: bytes that the node's answer may have.
FLEET_BODY_LIMIT_HEADER = "Federation-Body-Limit"

Metrics = dict[str, float]


class Scope(StrEnum):
    """Hub scopes. USE goes to researchers and to their servers' tokens; APPROVE never to a server's token."""

    ACCESS = f"access:services!service={SERVICE_NAME}"
    USE = "custom:federation:use"
    APPROVE = "custom:federation:approve"
    ADMINISTER = "custom:federation:administer"


SITE_GROUP_PREFIX = "site-"
STEWARD_GROUP_PREFIX = "steward-"


class Env(StrEnum):
    """Environment variables that `spawner.injection` sets on a notebook server and the extension reads."""

    SERVICE_URL = "FEDERATOR_SERVICE_URL"  # https://hub.example/services/federation/
    FLEET_ADDRESS = "FEDERATOR_FLEET_ADDRESS"  # hub.example:443, what a SuperNode dials
    FLEET_TLS = "FEDERATOR_FLEET_TLS"  # "1" or "0"
    SITE = "FEDERATOR_SITE"  # the site's slug
    DATASETS = "FEDERATOR_DATASETS"  # JSON object: dataset name -> folder at the site
    ASSIGNMENT = "FEDERATOR_ASSIGNMENT"  # JSON of one Assignment, set by the provisioner on the client kernel


class Route(StrEnum):
    """Paths below SERVICE_PREFIX. `{...}` is filled with str.format."""

    OPENAPI = "api/openapi.json"
    HOME = "api/home"
    MY_SITE = "api/site"
    PROJECTS = "api/projects"
    PROJECT = "api/projects/{project_id}"
    APPS = "api/projects/{project_id}/apps"
    APP = "api/projects/{project_id}/apps/{fab_hash}"
    INVITATIONS = "api/projects/{project_id}/invitations"
    DECLINE = "api/projects/{project_id}/decline"
    PARTICIPATION = "api/projects/{project_id}/participation"
    MEMBER = "api/projects/{project_id}/members/{user}"
    EVENTS = "api/projects/{project_id}/events"
    RUNS = "api/projects/{project_id}/runs"
    RUN = "api/runs/{run_id}"
    RUN_STOP = "api/runs/{run_id}/stop"
    RUN_MODEL = "api/runs/{run_id}/model"
    RUN_RECORD = "api/runs/{run_id}/record"
    APPROVALS = "api/approvals"
    ASSIGNMENTS = "api/assignments"
    NODE = "api/participations/{participation_id}/node"
    CLIENT = "api/participations/{participation_id}/client"
    SITE_APPROVALS = "api/participations/{participation_id}/approvals"
    APPROVED_APP = "api/participations/{participation_id}/apps/{fab_hash}"


class MemberState(StrEnum):
    INVITED = "invited"
    JOINED = "joined"
    DECLINED = "declined"
    LEFT = "left"
    REMOVED = "removed"


class ApprovalState(StrEnum):
    """What a site's steward says of one app version on one dataset. WAITING: nobody has decided yet."""

    WAITING = "waiting"
    APPROVED = "approved"
    REJECTED = "rejected"
    REVOKED = "revoked"
    EXPIRED = "expired"


class ClientState(StrEnum):
    """What a participant's Flower client is doing, as the page shows it."""

    OFFLINE = "offline"  # no server, or no client kernel in it; or no SuperNode connected
    STARTING = "starting"  # the kernel was started and has not joined yet
    READY = "ready"  # its node waits for work
    WORKING = "working"  # it trains or evaluates
    FAILED = "failed"  # the kernel or the node gave up; `detail` says why
    PAUSED = "paused"  # the researcher shut the kernel down; the launcher tile starts it again


class RunStatus(StrEnum):
    STARTING = "starting"  # the aggregator is being started
    WAITING = "waiting"  # it waits for the sites' nodes
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"

    @property
    def is_final(self) -> bool:
        return self in (RunStatus.FINISHED, RunStatus.FAILED, RunStatus.STOPPED)


@dataclass(frozen=True, slots=True)
class Dataset:
    name: str
    title: str = ""
    description: str = ""


@dataclass(frozen=True, slots=True)
class Site:
    """A site as members see it: no engine, no path."""

    slug: str
    title: str
    kind: str  # "embedded", "docker", "swarm", "supernode"
    isolates: bool  # False: the site's servers share one machine and one account with the Hub
    contact: str
    datasets: tuple[Dataset, ...] = ()


@dataclass(frozen=True, slots=True)
class Participant:
    """One member of a project and, once they joined, their site's participation."""

    user: str
    role: str  # "owner" or "member"
    state: MemberState
    site: str | None = None
    site_title: str | None = None
    dataset: str | None = None
    participation_id: str | None = None
    approval: ApprovalState | None = None  # for the project's newest app version
    approval_reason: str = ""
    client: ClientState = ClientState.OFFLINE
    detail: str = ""


@dataclass(frozen=True, slots=True)
class SourceFile:
    path: str
    text: str


@dataclass(frozen=True, slots=True)
class Cell:
    """One exported notebook cell. `number` counts all cells of the notebook from 1, as JupyterLab shows them."""

    number: int
    source: str


@dataclass(frozen=True, slots=True)
class AppVersion:
    """One immutable build of a project's Flower app."""

    number: int  # 1, 2, ... within the project
    fab_hash: str
    title: str  # name of the notebook or app it was built from
    source: str  # "notebook" or "fab"
    created_by: str
    created_at: str
    size: int  # bytes


@dataclass(frozen=True, slots=True)
class AppReview:
    """What a steward reads before deciding: the app version and everything in it."""

    version: AppVersion
    cells: tuple[Cell, ...]
    files: tuple[SourceFile, ...]
    imports: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ApprovalRequest:
    """One decision a steward has to take, or took."""

    project_id: str
    project_name: str
    owner: str
    requested_by: str
    site: str
    dataset: str
    fab_hash: str
    version: int
    state: ApprovalState
    decided_by: str = ""
    decided_at: str = ""
    reason: str = ""
    expires_at: str = ""


@dataclass(frozen=True, slots=True)
class ProjectSummary:
    id: str
    name: str
    owner: str
    role: str
    member_state: MemberState
    created_at: str
    sites: int  # participations that have joined
    last_run: RunSummary | None = None


@dataclass(frozen=True, slots=True)
class RunSummary:
    id: str
    number: int
    status: RunStatus
    rounds: int
    round: int  # the last round seen, 0 before the first
    phase: str  # what it is doing, in words: "round 3 of 10", "hospital-b alone", ...
    started_by: str
    created_at: str
    finished_at: str = ""
    message: str = ""  # why it failed or stopped, and what to do next


@dataclass(frozen=True, slots=True)
class ProjectDetail:
    id: str
    name: str
    description: str
    owner: str
    role: str
    member_state: MemberState
    created_at: str
    participants: tuple[Participant, ...]
    versions: tuple[AppVersion, ...]  # newest first
    runs: tuple[RunSummary, ...]  # newest first
    actions: tuple[str, ...]  # what this person may do now, from domain.policy


@dataclass(frozen=True, slots=True)
class Home:
    """The Hub panel: what is mine and what waits for me."""

    user: str
    site: str | None
    projects: tuple[ProjectSummary, ...]
    invitations: tuple[ProjectSummary, ...]
    approvals: tuple[ApprovalRequest, ...]


@dataclass(frozen=True, slots=True)
class SiteRound:
    """What one site did in one round."""

    site: str
    train: Metrics = field(default_factory=dict)
    evaluate: Metrics = field(default_factory=dict)
    train_examples: int = 0
    evaluate_examples: int = 0
    seconds: float = 0.0
    bytes_in: int = 0
    bytes_out: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class Round:
    """`train` and `evaluate` are the sites' metrics weighted by their examples."""

    number: int
    sites: tuple[SiteRound, ...]
    train: Metrics = field(default_factory=dict)
    evaluate: Metrics = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Score:
    """One cell of the result table: a model on a site's test data, or on all ("" = all sites together)."""

    model: str  # "federated" or a site's slug: that site alone
    on_site: str
    metrics: Metrics
    examples: int


@dataclass(frozen=True, slots=True)
class ModelFile:
    sha256: str
    size: int
    round: int


@dataclass(frozen=True, slots=True)
class RunDetail:
    summary: RunSummary
    project_id: str
    fab_hash: str
    version: int
    sites: tuple[str, ...]
    rounds: tuple[Round, ...]
    scores: tuple[Score, ...]
    model: ModelFile | None = None


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a participant's notebook server must run."""

    participation_id: str
    project_id: str
    project_name: str
    site: str
    dataset: str
    kernel_id: str  # a UUID; the kernel's id in the participant's server
    fab_hash: str  # newest approved app version


@dataclass(frozen=True, slots=True)
class Assignments:
    """Answer to ASSIGNMENTS. Ask again with `version` and `wait` (seconds) to hear of the next change."""

    version: str
    assignments: tuple[Assignment, ...]


@dataclass(frozen=True, slots=True)
class SiteApprovals:
    """Answer to SITE_APPROVALS: the FAB hashes that may run on this participation's dataset now."""

    participation_id: str
    fab_hashes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """Every error answer of the API."""

    code: str
    message: str  # what happened, for the person
    next_step: str  # what to do now
