"""What becomes of silent nodes under each policy, and what is said of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from federator.contract import OutagePolicy, RunStatus

from hub_service.aggregators.outages import Outages, Silent
from hub_service.domain.runs import EventKind, RunEvent
from hub_service.run_progress import Progress
from tests.unit.test_run_activity import RUN

WAIT, CONTINUE, STOP = OutagePolicy.WAIT, OutagePolicy.CONTINUE, OutagePolicy.STOP


@pytest.mark.parametrize(
    ("policy", "silent", "others", "left_out", "must_stop"),
    [
        (WAIT, {1: 1e6}, True, set(), False),
        (CONTINUE, {1: 9.0}, True, set(), False),
        (CONTINUE, {1: 10.0, 2: 9.0}, True, {1}, False),
        (CONTINUE, {1: 10.0}, False, set(), False),
        (STOP, {1: 9.0}, True, set(), False),
        (STOP, {1: 10.0}, True, set(), True),
    ],
)
def test_what_becomes_of_them(
    policy: OutagePolicy, silent: Silent, others: bool, left_out: set[int], must_stop: bool
) -> None:
    outages = Outages(policy, 10.0, lambda _: None)
    assert outages.must_stop(silent) is must_stop
    assert outages.left_out(silent, others=others) == left_out


def test_it_is_noted_when_others_are_silent_or_the_grace_time_is_used_up() -> None:
    noted: list[Silent] = []
    outages = Outages(WAIT, 10.0, noted.append)
    for silent in ({}, {1: 1.0}, {1: 2.0}, {1: 3.0, 2: 1.0}, {1: 10.0, 2: 8.0}, {1: 11.0, 2: 9.0}, {2: 9.5}, {}, {}):
        outages.waiting(silent)
    assert noted == [{1: 1.0}, {1: 3.0, 2: 1.0}, {1: 10.0, 2: 8.0}, {2: 9.5}, {}]


@pytest.mark.parametrize(
    ("policy", "seconds", "course"),
    [
        (WAIT, 5.0, "the run goes on when it is back"),
        (CONTINUE, 5.0, "after 10 s of silence the round goes on without it"),
        (CONTINUE, 10.0, "too few sites are left for the app, so the run waits until it is back"),
        (STOP, 5.0, "after 10 s of silence the run stops"),
    ],
)
def test_the_phase_says_who_is_waited_for_and_since_when(policy: OutagePolicy, seconds: float, course: str) -> None:
    run = replace(RUN, on_outage=policy, grace_s=10.0, rounds=3, nodes={"7": "south", "8": "north"})
    sent = RunEvent(EventKind.SENT, 100.0, "federated", 2, "train", 7)
    outage = RunEvent(EventKind.OUTAGE, 3600.0 + seconds, "federated", 2, seconds=seconds, text="7,8")
    reply = RunEvent(EventKind.REPLY, 3605.0, "federated", 2, "train", 8)
    progress = Progress(run).after([sent, outage, reply])
    assert progress.run.phase == f"round 2 of 3: waiting for south, north, silent since 01:00:00 UTC; {course}"
    assert progress.run.status is RunStatus.RUNNING
    assert progress.after([replace(outage, text="")]).run.phase == "round 2 of 3"
