"""What a run's events mean for its status. Pure: from a run and new events to the run as it is then."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from federator.contract import OutagePolicy, RunStatus

from hub_service.domain.runs import LARGEST_COUNT, MOST_COUNTS, EventKind, Run, RunEvent

_NODE_ID = re.compile(r"\b(?:node )?(\d+)\b")


@dataclass(frozen=True, slots=True)
class Progress:
    """A run after some events. `outcome` is what the ServerApp said of its end, None before."""

    run: Run
    outcome: RunStatus | None = None

    def after(self, events: Iterable[RunEvent]) -> Progress:
        progress = self
        for event in events:
            progress = progress._after(event)
        return progress

    def _after(self, event: RunEvent) -> Progress:
        run = self.run
        text = with_site_names(run, event.text)
        if event.kind is EventKind.WAITING:
            return self._with(status=RunStatus.WAITING, phase=f"waiting for {text.replace(',', ', ')}")
        if event.kind is EventKind.PHASE:
            return self._with(status=RunStatus.RUNNING, phase=_phase(run, event), message=text or run.message)
        if event.kind is EventKind.SENT and event.phase == "federated":
            run = replace(run, round=max(run.round, event.round))
            return self._with(status=RunStatus.RUNNING, round=run.round, phase=_phase(run, event))
        if event.kind is EventKind.OUTAGE:
            present = _phase(run, event)
            return self._with(phase=f"{present}: {_waited_for(run, event, text)}" if text else present)
        if event.kind is EventKind.RESUMED:
            return self._resumed(event)
        if event.kind is EventKind.MODEL:
            return self._with(model_round=event.round)
        if event.kind is EventKind.FINISHED:
            return replace(self, outcome=RunStatus.FINISHED)
        if event.kind is EventKind.FAILED:
            return Progress(replace(run, message=text), RunStatus.FAILED)
        return self

    def _resumed(self, event: RunEvent) -> Progress:
        number = event.round if event.phase == "federated" else self.run.round
        phase = f"resuming after round {number}" if event.phase == "federated" else "resuming the comparison"
        return self._with(status=RunStatus.WAITING, round=number, phase=phase)

    def _with(self, **changes: object) -> Progress:
        return replace(self, run=replace(self.run, **changes))  # type: ignore[arg-type]


def _phase(run: Run, event: RunEvent) -> str:
    if event.phase == "alone":
        return f"{site_of(run, event.node_id)} alone"
    if event.phase == "compare":
        return "comparing the models"
    return f"round {run.round} of {run.rounds}" if run.round else "starting the first round"


def _waited_for(run: Run, event: RunEvent, nodes: str) -> str:
    since = datetime.fromtimestamp(event.at - event.seconds, UTC)
    overdue = event.seconds >= run.grace_s
    course = {
        OutagePolicy.WAIT: "the run goes on when it is back",
        OutagePolicy.CONTINUE: "too few sites are left for the app, so the run waits until it is back"
        if overdue
        else f"after {run.grace_s:g} s of silence the round goes on without it",
        OutagePolicy.STOP: f"after {run.grace_s:g} s of silence the run stops",
    }[run.on_outage]
    return f"waiting for {nodes.replace(',', ', ')}, silent since {since:%H:%M:%S} UTC; {course}"


def site_of(run: Run, node_id: int) -> str:
    """The site of a node, or the node's number where the run does not know it."""
    return run.nodes.get(str(node_id), f"node {node_id}")


def with_site_names(run: Run, text: str) -> str:
    """The text with sites in place of node ids, which say nothing to a person."""
    return _NODE_ID.sub(lambda match: run.nodes.get(match[1], match[0]), text)


def _are_counts(values: object) -> bool:
    return (
        isinstance(values, list)
        and len(values) <= MOST_COUNTS
        and all(type(one) is int and 0 <= one <= LARGEST_COUNT for one in values)
    )


def finite(event: RunEvent) -> RunEvent:
    """The event without metrics that are no finite numbers, which a reply names as its error, and without false counts.

    The aggregator runs the owner's code: what it writes is not taken on trust.
    """
    counts = {name: values for name, values in event.counts.items() if _are_counts(values)}
    if counts != event.counts:
        event = replace(event, counts=counts)
    bad = sorted(name for name, value in event.metrics.items() if not math.isfinite(value))
    if not bad:
        return event
    error = f"{', '.join(bad)} is not a finite number" if len(bad) == 1 else f"{', '.join(bad)} are not finite numbers"
    return replace(
        event,
        metrics={name: value for name, value in event.metrics.items() if name not in bad},
        text="; ".join(filter(None, (event.text, error))),
    )
