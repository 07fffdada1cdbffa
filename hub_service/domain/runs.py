"""Runs, and what the observing grid reports of them.

The aggregator's ServerApp process writes one `RunEvent` a line, as JSON, to its run folder
(`hub_service.aggregators.serverapp`); the reconciler reads them into the store. Nodes are named by the SuperLink's
node id there; the reconciler knows which site each is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from federator.contract import Metrics, ModelFile, OutagePolicy, RunStatus

from hub_service.domain.projects import GRACE_S

MOST_ROUNDS = 1000


class RunTarget(StrEnum):
    """What the owner wants; the reconciler drives `status` towards it."""

    FINISHED = "finished"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Run:
    """One execution of an app version.

    `sites` maps each taking-part participation's id to its site, or to "site/dataset" where a site takes part with
    more than one.
    """

    id: str
    project_id: str
    number: int
    fab_hash: str
    rounds: int
    compare: bool  # also train each site alone, for the table
    target: RunTarget
    status: RunStatus
    phase: str
    message: str
    started_by: str
    sites: dict[str, str]
    created_at: datetime
    finished_at: datetime | None
    model_sha256: str
    model_size: int
    model_round: int
    round: int = 0  # the last federated round seen
    nodes: dict[str, str] = field(default_factory=dict)  # decimal node id -> site, for every node that took part
    seed: int | None = None  # in place of the app's own
    models: tuple[ModelFile, ...] = ()  # those that are kept, by round
    on_outage: OutagePolicy = OutagePolicy.WAIT  # as the project's when it was started
    grace_s: float = GRACE_S
    resumed: int = 0  # how often its aggregator was lost and begun anew


WIRE_PRECISION_KEY = "wire-precision"  # of a Flower app's config; an app without it is exact


ROUNDS_KEY = "num-server-rounds"  # of a Flower app's config: how many rounds a run has
SEED_KEY = "seed"  # of an app's config; a run may set it where the app has it
LARGEST_SEED = 2**31


class WirePrecision(StrEnum):
    """How the numbers of models travel between an aggregator and this project's own nodes."""

    EXACT = "exact"  # as they are
    HALF = "half"  # float32 and float64 as float16


# Numbers in one list of counts that an event holds, such as a confusion table of 64 classes; longer ones are left out.
MOST_COUNTS = 4096
LARGEST_COUNT = 2**48


# How the text of a REPLY begins where a silent site was not waited for any longer.
LEFT_OUT = "left out: nothing was heard of this site"


class EventKind(StrEnum):
    WAITING = "waiting"  # text: which nodes are missing
    PHASE = "phase"  # phase: "federated", "alone" (with node_id) or "compare"
    SENT = "sent"  # one message to one node
    REPLY = "reply"  # one node's answer, or its error
    MODEL = "model"  # the global model after a round was written: size, round
    SCORE = "score"  # a model ("federated", or the node id that trained alone) on a node's test data
    # text: which nodes are waited for and silent ("" once there are none); metrics: each one's silence in seconds;
    # seconds: the longest of them
    OUTAGE = "outage"
    RESUMED = "resumed"  # begun anew behind `round` of `phase`: what was reported of later rounds of it is void
    FINISHED = "finished"
    FAILED = "failed"  # text: why, for a person


@dataclass(frozen=True, slots=True)
class RunEvent:
    """One line of a run's event file. Fields that do not apply to a kind keep their default.

    Attributes:
        at: seconds since the epoch, by the aggregator's clock.
        phase: "federated", "alone" or "compare".
        round: 1, 2, ... as the app counts (Flower's `group_id`), 0 outside rounds.
        message_type: "train", "evaluate" or "query".
        node_id: SuperLink node id that the event is about.
        model: for SCORE, "federated" or the decimal node id that trained alone.
        seconds: from sending to the reply's arrival.
        size: bytes of the message's arrays as they travel, or of the model file.
        counts: metrics that are lists of whole numbers, such as `confusion`.
    """

    kind: EventKind
    at: float
    phase: str = ""
    round: int = 0
    message_type: str = ""
    node_id: int = 0
    model: str = ""
    metrics: Metrics = field(default_factory=dict)
    examples: int = 0
    seconds: float = 0.0
    size: int = 0
    text: str = ""
    counts: dict[str, list[int]] = field(default_factory=dict)
