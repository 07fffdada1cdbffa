"""What each site of a run does now, what travelled, and how long it may take yet. Pure functions of the run's events.

The events say which messages have no answer yet; `site_stages` says how far such a message has come.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import pairwise
from statistics import median

from federator.contract import RunDetail, SiteActivity, SiteState

from hub_service.domain.clock import utc_text
from hub_service.domain.runs import EventKind, Run, RunEvent
from hub_service.run_progress import site_of
from hub_service.site_stages import Stage, StageSince

_RECENT_ROUNDS = 5  # how many rounds an estimate is made from: sites become slower and faster
_FEDERATED, _ALONE, _COMPARE = "federated", "alone", "compare"
_STATES = {
    Stage.RECEIVING: SiteState.RECEIVING,
    Stage.COMPUTING: SiteState.COMPUTING,
    Stage.SENDING: SiteState.SENDING,
    Stage.ANSWERED: SiteState.WAITING,
}


@dataclass(slots=True)
class _SiteLog:
    """What the events say of one site."""

    bytes_in: int = 0
    bytes_out: int = 0
    round: int = 0
    round_bytes_in: int = 0
    round_bytes_out: int = 0
    last: RunEvent | None = None  # the last message to it, or its last answer
    errors: dict[str, str] = field(default_factory=dict)  # by type of message, until one of that type went well

    def take(self, event: RunEvent) -> None:
        if event.round != self.round:
            self.round, self.round_bytes_in, self.round_bytes_out = event.round, 0, 0
        if event.kind is EventKind.SENT:
            self.bytes_in += event.size
            self.round_bytes_in += event.size
        else:
            self.bytes_out += event.size
            self.round_bytes_out += event.size
            self.errors.pop(event.message_type, None)
            if event.text:
                self.errors[event.message_type] = event.text
        self.last = event


def with_activity(
    detail: RunDetail,
    run: Run,
    events: Sequence[RunEvent],
    *,
    stages: Mapping[str, StageSince],
    offline: Mapping[str, str],
    now: datetime,
) -> RunDetail:
    """The detail with what its sites do, its bytes and the time left.

    Args:
        stages: by site, where its present message is; a site may be missing.
        offline: sites whose client is not connected, each with the reason or "".
    """
    logs = _site_logs(run, events)
    detail = replace(
        detail,
        bytes_in=sum(log.bytes_in for log in logs.values()),
        bytes_out=sum(log.bytes_out for log in logs.values()),
    )
    if run.status.is_final:
        return detail
    return replace(
        detail,
        activity=tuple(
            _activity(site, logs.get(site, _SiteLog()), stages.get(site), offline.get(site))
            for site in run.sites.values()
        ),
        seconds_left=seconds_left(run, events, now),
    )


def _site_logs(run: Run, events: Iterable[RunEvent]) -> dict[str, _SiteLog]:
    logs: dict[str, _SiteLog] = defaultdict(_SiteLog)
    for event in events:
        if event.kind in (EventKind.SENT, EventKind.REPLY):
            logs[site_of(run, event.node_id)].take(event)
    return logs


def _activity(site: str, log: _SiteLog, known: StageSince | None, away: str | None) -> SiteActivity:
    activity = SiteActivity(
        site,
        SiteState.WAITING,
        since=_since(log.last),
        detail="; ".join(dict.fromkeys(log.errors.values())),
        bytes_in=log.bytes_in,
        bytes_out=log.bytes_out,
        round_bytes_in=log.round_bytes_in,
        round_bytes_out=log.round_bytes_out,
    )
    if away is not None:
        return replace(activity, state=SiteState.OFFLINE, since="", detail=away)
    if log.last is None:
        return activity
    if log.last.kind is EventKind.REPLY:
        return replace(activity, state=SiteState.FAILED) if log.last.text else activity
    working = replace(activity, task=log.last.message_type.partition(".")[0])
    if known is None:  # the service was restarted meanwhile; a site that polls for the message gets it at once
        return replace(working, state=SiteState.COMPUTING)
    return replace(working, state=_STATES[known.stage], since=utc_text(known.since))


def _since(event: RunEvent | None) -> str:
    return "" if event is None else utc_text(datetime.fromtimestamp(event.at, UTC))


# --- time


@dataclass(slots=True)
class _Course:
    """How far a run has come and how long its parts took, in seconds."""

    phase: str = _FEDERATED
    began: dict[int, float] = field(default_factory=dict)  # when each federated round's first message was sent
    ended_at: float = 0.0  # when the federated phase's last event was
    work: dict[str, dict[int, float]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(float)))
    evaluating: dict[int, float] = field(default_factory=lambda: defaultdict(float))  # the slowest site's, by round
    alone_done: int = 0  # sites that have trained alone
    alone_round: int = 0  # of the site that trains alone now
    compared: dict[int, int] = field(default_factory=lambda: defaultdict(int))  # evaluate messages by node

    def take(self, run: Run, event: RunEvent) -> None:
        if event.kind is EventKind.PHASE and not event.text:
            self.alone_done += self.phase == _ALONE
            self.phase, self.alone_round = event.phase, 0
        elif event.phase == _FEDERATED and event.round:
            self._take_federated(run, event)
        elif event.phase == _ALONE and event.round:
            self.alone_round = max(self.alone_round, event.round)
        elif event.phase == _COMPARE and event.kind is EventKind.REPLY:
            self.compared[event.node_id] += 1

    def _take_federated(self, run: Run, event: RunEvent) -> None:
        self.ended_at = event.at
        if event.kind is EventKind.SENT:
            self.began.setdefault(event.round, event.at)
        elif event.kind is EventKind.REPLY and not event.text:
            self.work[site_of(run, event.node_id)][event.round] += event.seconds
            if event.message_type.startswith("evaluate"):
                self.evaluating[event.round] = max(self.evaluating[event.round], event.seconds)


def seconds_left(run: Run, events: Iterable[RunEvent], now: datetime) -> float | None:
    """An estimate from the last rounds: of the rounds left, and of the comparison where it was asked for.

    None before the first round is over, and where the run has ended.
    """
    course = _Course()
    for event in events:
        course.take(run, event)
    round_s = _round_seconds(course)
    if run.status.is_final or round_s is None:
        return None
    left = _federated_left(run, course, round_s, now.timestamp()) if course.phase == _FEDERATED else 0.0
    if run.compare:
        left += _comparison_left(run, course)
    return left


def _round_seconds(course: _Course) -> float | None:
    """How long a federated round takes."""
    starts = sorted(course.began.values())
    if course.phase != _FEDERATED and starts:
        starts.append(course.ended_at)
    lengths = [later - earlier for earlier, later in pairwise(starts)]
    return median(lengths[-_RECENT_ROUNDS:]) if lengths else None


def _federated_left(run: Run, course: _Course, round_s: float, now: float) -> float:
    present = max(course.began)
    spent = min(max(0.0, now - course.began[present]), round_s)
    return round_s * max(0, run.rounds - present + 1) - spent


def _comparison_left(run: Run, course: _Course) -> float:
    """Each site trains alone as long as it worked in the rounds; then every model is evaluated at every site."""
    sites = list(run.sites.values())
    alone = [_recent(course.work[site]) * run.rounds for site in sites] if len(sites) > 1 else []
    models = len(alone) + 1
    evaluating = _recent(course.evaluating) * models
    if course.phase == _COMPARE:
        return evaluating * (1 - min(1.0, min(course.compared.values(), default=0) / models))
    left = sum(alone[course.alone_done :])
    if course.phase == _ALONE and course.alone_done < len(alone):
        left -= alone[course.alone_done] * min(1.0, max(0, course.alone_round - 1) / run.rounds)
    return left + evaluating


def _recent(by_round: Mapping[int, float]) -> float:
    lengths = [by_round[number] for number in sorted(by_round)][-_RECENT_ROUNDS:]
    return median(lengths) if lengths else 0.0
