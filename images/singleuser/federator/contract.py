"""What the Hub's service and a site's notebook servers say to each other. Standard library only.

Both sides import this module: `hub_service` answers with these types, `spawner` grants these scopes and sets these
environment variables, `federator` reads them. A field is added with a default; a field is never given a new meaning.
`API_VERSION` grows when an old client would misread an answer.

Times are ISO 8601 strings in UTC. Hashes are lower-case sha256 in hex. Ids are opaque.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

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
# Sent by a node that answers a message and waits for the next one in the same request: names of the blobs that it has.
FLEET_BLOBS_HEADER = "Federation-Blobs"

Metrics = dict[str, float]


class Scope(StrEnum):
    """Hub scopes. USE goes to researchers and to their servers' tokens; APPROVE never to a server's token."""

    ACCESS = f"access:services!service={SERVICE_NAME}"
    USE = "custom:federation:use"
    APPROVE = "custom:federation:approve"
    ADMINISTER = "custom:federation:administer"
    READ_METRICS = "read:metrics"  # the Hub's own, for its own metrics: one token reads both


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
    SITE_PACKAGES = "api/site/packages"
    BUILD = "api/build"
    STARTERS = "api/starters"
    STARTER = "api/starters/{name}"
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
    RUN_RESULT = "api/runs/{run_id}/result"
    RUN_MODELS = "api/runs/{run_id}/models"
    RUN_CARD = "api/runs/{run_id}/card"
    RUN_SIGNED = "api/runs/{run_id}/signed"
    RUN_CAPSULE = "api/runs/{run_id}/capsule"
    SIGNING_KEY = "api/signing-key"
    RUN_FIGURES = "api/runs/{run_id}/figures"
    RUN_LOG = "api/runs/{run_id}/log"
    APPROVALS = "api/approvals"
    DECISIONS = "api/approvals/{site}/{project_id}"
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
    """What a site's stewards say of one app version on one dataset. Only APPROVED lets it run."""

    WAITING = "waiting"  # nobody has decided yet
    APPROVED_ONCE = "approved-once"  # one steward has approved; the site wants a second one's yes
    APPROVED = "approved"
    LAPSED = "lapsed"  # it was approved for other members: somebody has joined since
    REJECTED = "rejected"
    REVOKED = "revoked"
    EXPIRED = "expired"

    @property
    def asks(self) -> bool:
        """Whether a steward is asked to decide."""
        return self in (ApprovalState.WAITING, ApprovalState.APPROVED_ONCE, ApprovalState.LAPSED)


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


class OutagePolicy(StrEnum):
    """What a run does when a site's client falls silent while it is waited for."""

    WAIT = "wait"  # until it is back, however long
    CONTINUE = "continue"  # after the grace time, with the others; the site rejoins when it is back
    STOP = "stop"  # after the grace time


class SiteState(StrEnum):
    """What one site does in a run that is in flight."""

    WAITING = "waiting"  # it has nothing to do: the others work, or the aggregator does
    RECEIVING = "receiving"  # a message is on its way to it
    COMPUTING = "computing"  # its client trains or evaluates
    SENDING = "sending"  # its answer is on its way
    FAILED = "failed"  # its last answer was an error, or was left out
    OFFLINE = "offline"  # its client is not connected


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
    four_eyes: bool = False  # two of its stewards must approve, neither of them the participant


@dataclass(frozen=True, slots=True)
class Conditions:
    """What an approval allows no more than. None: no limit of the steward's.

    `members` are those who had joined when the steward decided: the approval holds while everybody who has joined is
    among them.
    """

    most_rounds: int | None = None  # of one run
    largest_message: int | None = None  # bytes that leave the site in one message, its envelope included
    members: tuple[str, ...] | None = None


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
    conditions: Conditions = field(default_factory=Conditions)  # of that approval
    client: ClientState = ClientState.OFFLINE
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Starter:
    """A notebook of the service's that runs as it is, for a project to begin with."""

    name: str  # also the notebook's file name, without .ipynb
    title: str
    description: str  # one line


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


ANY_LENGTH = -1


@dataclass(frozen=True, slots=True)
class DeclaredOutput:
    """One thing that a site's answers may hold. An app that declares outputs may answer with nothing else.

    `shape` has ANY_LENGTH where a dimension may differ, as in models that grow. What is no array has dtype "number",
    "text", "bytes" or "bool", and one dimension where it is a list.
    """

    message: str  # type of the message that is answered: "train", "evaluate", ...
    record: str  # name of the record in the answer
    kind: str  # "arrays", "metrics" or "config"
    key: str
    dtype: str
    shape: tuple[int, ...] = ()


OUTPUT_KINDS = ("arrays", "metrics", "config")
_MOST_OUTPUTS = 10_000
_OUTPUT_TYPE = re.compile(r"(?P<dtype>[A-Za-z][A-Za-z0-9_]{0,31})(\[(?P<shape>(-1|\d{1,18})(,(-1|\d{1,18})){0,31})\])?")


def output_type(output: DeclaredOutput) -> str:
    """Such as "float32[10,784]", or "number" for what has no dimensions."""
    return f"{output.dtype}[{','.join(map(str, output.shape))}]" if output.shape else output.dtype


def outputs_table(outputs: Iterable[DeclaredOutput]) -> dict[str, Any]:
    """The declaration as a notebook's metadata and an app's [tool.federator.outputs] hold it, in one order.

    message type -> kind -> record -> key -> types, such as "float32[10,784]".
    """
    table: dict[str, Any] = {}
    for one in sorted(set(outputs), key=lambda one: (one.message, one.kind, one.record, one.key, output_type(one))):
        record = table.setdefault(one.message, {}).setdefault(one.kind, {}).setdefault(one.record, {})
        known = record.get(one.key, [])
        record[one.key] = (
            [*(known if isinstance(known, list) else [known]), output_type(one)] if known else output_type(one)
        )
    return table


def read_outputs(table: object) -> tuple[DeclaredOutput, ...]:
    """What `outputs_table` wrote, in the same order.

    Raises:
        ValueError: it is no such table; the text says where.
    """
    found = [
        _read_output(message, kind, record, key, one)
        for message, kinds in _items(table, "outputs")
        for kind, records in _items(kinds, message)
        for record, keys in _items(records, f"{message}.{kind}")
        for key, types in _items(keys, f"{message}.{kind}.{record}")
        for one in (types if isinstance(types, list) else [types])
    ]
    if len(found) > _MOST_OUTPUTS:
        raise ValueError(f"{len(found)} outputs are declared; at most {_MOST_OUTPUTS} are taken")
    return tuple(sorted(set(found), key=lambda one: (one.message, one.kind, one.record, one.key, output_type(one))))


def _items(table: object, where: str) -> Iterable[tuple[str, Any]]:
    if not isinstance(table, dict) or not all(isinstance(name, str) and name.isprintable() for name in table):
        raise ValueError(f"“{where}” is no table of names")
    return table.items()


def _read_output(message: str, kind: str, record: str, key: str, text: object) -> DeclaredOutput:
    where = f"{message}.{kind}.{record}.{key}"
    if kind not in OUTPUT_KINDS:
        raise ValueError(f"“{where}”: a record holds {', '.join(OUTPUT_KINDS)}, not “{kind}”")
    match = _OUTPUT_TYPE.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"“{where}” is no type such as float32[10,784]")
    shape = tuple(int(length) for length in match["shape"].split(",")) if match["shape"] else ()
    return DeclaredOutput(message, record, kind, key, match["dtype"], shape)


@dataclass(frozen=True, slots=True)
class AppReview:
    """What a steward reads before deciding: the app version and everything in it."""

    version: AppVersion
    cells: tuple[Cell, ...]
    files: tuple[SourceFile, ...]
    imports: tuple[str, ...]
    outputs: tuple[DeclaredOutput, ...] = ()  # none: not declared, so answers may hold anything
    dependencies: tuple[str, ...] = ()  # PEP 508


@dataclass(frozen=True, slots=True)
class SitePackageCheck:
    """Whether a site's image has what an app needs. `known` is False while the site's servers have not reported."""

    site: str
    site_title: str
    known: bool
    lacking: tuple[str, ...] = ()  # requirements and modules, as the app names them


@dataclass(frozen=True, slots=True)
class AppPreview:
    """What a notebook or an app would become; nothing was stored. Answer to BUILD."""

    fab_hash: str
    title: str
    source: str  # "notebook" or "fab"
    size: int  # bytes
    cells: tuple[Cell, ...]  # what leaves the notebook
    private_cells: tuple[int, ...]  # numbers of the code cells that stay in it
    files: tuple[SourceFile, ...]
    imports: tuple[str, ...]
    dependencies: tuple[str, ...]  # PEP 508
    config: dict[str, str | int | float | bool]
    outputs: tuple[DeclaredOutput, ...]
    warnings: tuple[str, ...]  # what works in this notebook and may not at a site, each with its cell and the fix
    packages: tuple[SitePackageCheck, ...]  # of my own site, and of those in the project that was named
    fab: str  # base64


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
    conditions: Conditions = field(default_factory=Conditions)
    members: tuple[str, ...] = ()  # who has joined the project
    four_eyes: bool = False  # the site wants two stewards' yes
    first_steward: str = ""  # the first of the two who approved
    may_approve: bool = True  # whether the person who asks may approve it now, or be the second to


@dataclass(frozen=True, slots=True)
class PastDecision:
    """One decision of a site's steward on a project's app version. Nothing changes it."""

    dataset: str
    fab_hash: str
    version: int
    state: ApprovalState  # APPROVED_ONCE, APPROVED, REJECTED or REVOKED
    decided_by: str
    decided_at: str
    reason: str = ""
    expires_at: str = ""
    conditions: Conditions = field(default_factory=Conditions)


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
    limits_near: tuple[str, ...] = ()  # what of the deployment's quotas is nearly used up, as sentences
    on_outage: OutagePolicy = OutagePolicy.WAIT  # what runs that are started from now on do when a site falls silent
    grace_s: float = 120.0  # and after how many seconds


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
    absent: tuple[str, ...] = ()  # sites of the run that were not asked in this round


Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class ClassScore:
    """How well one class is found, with 95 % intervals. None where it has no examples, or was never predicted."""

    examples: int
    predicted: int
    recall: float | None = None
    recall_interval: Interval | None = None
    precision: float | None = None
    precision_interval: Interval | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """One cell of the result table: a model on a site's test data, or on all ("" = all sites together).

    `counts` is what the app's `evaluate` returned as lists of whole numbers; `confusion` has a row for each true class.
    """

    model: str  # "federated" or a site's slug: that site alone
    on_site: str
    metrics: Metrics
    examples: int
    counts: dict[str, tuple[int, ...]] = field(default_factory=dict)
    intervals: dict[str, Interval] = field(default_factory=dict)  # by metric; 95 %, by bootstrap
    made_from: dict[str, str] = field(default_factory=dict)  # of each interval: "counts", or "share" of examples
    classes: tuple[ClassScore, ...] = ()  # from the counts, in their order


@dataclass(frozen=True, slots=True)
class Difference:
    """The federated model less the best single site, on all sites' test data."""

    metric: str
    best_site: str
    difference: float
    interval: Interval | None = None  # None: not known for this metric
    verdict: str = "unknown"  # "better", "worse", "not-separated"; "unknown" without an interval


@dataclass(frozen=True, slots=True)
class Labels:
    """How many test examples of each class a site has, from the confusion counts: what is skewed."""

    site: str
    examples: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SiteActivity:
    """What one site does now, and what travelled between it and the aggregator: bytes of the messages' arrays.

    `task` is the message's type ("train", "evaluate", ...) where it has one. `since` is "" where it is not known.
    """

    site: str
    state: SiteState
    since: str = ""
    task: str = ""
    detail: str = ""  # why it is offline; else why an answer of its was none, until one of that type is good
    bytes_in: int = 0  # to the site, in the whole run
    bytes_out: int = 0  # from the site
    round_bytes_in: int = 0  # in the present round
    round_bytes_out: int = 0


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
    activity: tuple[SiteActivity, ...] = ()  # in the order of `sites`; empty once the run has ended
    seconds_left: float | None = None  # an estimate; None where there is nothing to estimate from
    bytes_in: int = 0  # to all sites
    bytes_out: int = 0  # from all sites
    differences: tuple[Difference, ...] = ()
    labels: tuple[Labels, ...] = ()
    seed: int | None = None  # asked for by who started the run; None: the app's own, where it has one
    models: tuple[ModelFile, ...] = ()  # those that are kept, by round
    models_dropped: tuple[int, ...] = ()  # rounds whose model was written and is not kept
    best_round: int = 0  # 0: no round can be told to be the best
    best_metric: str = ""
    on_outage: OutagePolicy = OutagePolicy.WAIT  # what it does when a site falls silent
    grace_s: float = 120.0  # and after how many seconds


@dataclass(frozen=True, slots=True)
class RunResult:
    """Answer to RUN_RESULT: the models by one metric. `figure` is a heat map, Plotly's own JSON."""

    metric: str  # "" where there is nothing to show
    metrics: tuple[str, ...]  # what could be chosen with `metric=`
    conclusion: str = ""  # one sentence
    intervals: str = ""  # what the intervals were made from, or that there are none
    figure: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class SignedRecord:
    """Answer to RUN_SIGNED. The signature, Ed25519 in base64, is of the canonical JSON of the other two.

    Canonical: {"model_sha256": ..., "record": ...} with sorted keys, no spaces, ASCII only.
    """

    record: dict[str, Any]
    model_sha256: str  # "" where the run has no model
    signature: str
    public_key: str  # PEM


@dataclass(frozen=True, slots=True)
class MetricChoice:
    """Something that a run's curves can show."""

    key: str  # "evaluate/accuracy", "train/loss", "work/seconds"
    title: str
    group: str


@dataclass(frozen=True, slots=True)
class RunFigures:
    """Answer to RUN_FIGURES: the curves of one metric, and what else could be chosen with `metric=`.

    `figure` is Plotly's own JSON; None while there is no value. `metric` is "" where there is nothing to show at all.
    """

    metric: str
    metrics: tuple[MetricChoice, ...]
    figure: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class RunLog:
    """Answer to RUN_LOG: whole lines of what the run's ServerApp printed. Ask again with `after=end` for what follows.

    Addresses, folders and tokens are taken out. `start` and `end` are places in the log; where `start` is beyond the
    `after` that was asked for, older lines are left out.
    """

    text: str
    start: int
    end: int


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
    """Answer to SITE_APPROVALS: the FAB hashes that may run on this participation's dataset now.

    `conditions` has an entry for each of them that was approved with some; the site checks them too.
    """

    participation_id: str
    fab_hashes: tuple[str, ...]
    conditions: dict[str, Conditions] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Problem:
    """Every error answer of the API."""

    code: str
    message: str  # what happened, for the person
    next_step: str  # what to do now
