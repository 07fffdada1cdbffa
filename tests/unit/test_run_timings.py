"""How long runs wait and rounds take, from what the aggregator reports."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from hub_service.domain.runs import EventKind, RunEvent
from hub_service.run_timings import RunTimings, Timed
from tests.fakes.runs import RUN as A_RUN

RUN = replace(A_RUN, created_at=datetime.fromtimestamp(100, UTC))


def sent(number: int, at: float, phase: str = "federated") -> RunEvent:
    return RunEvent(EventKind.SENT, at=at, phase=phase, round=number)


def reply(number: int, at: float, phase: str = "federated") -> RunEvent:
    return RunEvent(EventKind.REPLY, at=at, phase=phase, round=number)


def test_a_round_is_over_when_the_next_begins() -> None:
    timings = RunTimings()
    assert timings.after(RUN, [sent(1, 103), sent(1, 103.5), reply(1, 105)]) == Timed(queued=3.0)
    assert timings.after(RUN, [reply(1, 106), sent(2, 107)]) == Timed(rounds=(3.0,))


def test_the_last_round_is_over_with_the_phase_or_the_run() -> None:
    for end in (RunEvent(EventKind.FINISHED, at=9), RunEvent(EventKind.PHASE, at=9, phase="compare")):
        timings = RunTimings()
        assert timings.after(RUN, [sent(1, 103), reply(1, 105), end, end]).rounds == (2.0,)


def test_rounds_of_other_phases_and_without_an_answer_are_not_counted() -> None:
    events = [sent(1, 103), sent(2, 104), reply(2, 105), sent(1, 106, "alone"), reply(1, 109, "alone")]
    assert RunTimings().after(RUN, [*events, RunEvent(EventKind.FINISHED, at=10)]).rounds == (1.0,)


def test_a_round_that_is_done_again_counts_once() -> None:
    timings = RunTimings()
    timings.after(RUN, [sent(1, 101), reply(1, 102), sent(2, 103), reply(2, 104)])
    again = [RunEvent(EventKind.RESUMED, at=110, phase="federated", round=1), sent(2, 111), reply(2, 113)]
    assert timings.after(RUN, [*again, RunEvent(EventKind.FINISHED, at=114)]).rounds == (2.0,)


def test_a_run_that_an_earlier_service_has_seen_was_queued_once() -> None:
    later = replace(RUN, round=4)
    assert RunTimings().after(later, [sent(4, 130)]).queued is None
    assert RunTimings().after(replace(RUN, round=0), [RunEvent(EventKind.WAITING, at=101)]) == Timed()


def test_what_is_forgotten_is_begun_afresh() -> None:
    timings = RunTimings()
    timings.after(RUN, [sent(1, 103)])
    timings.forget("r1")
    timings.forget("r1")
    assert timings.after(RUN, [sent(1, 104)]).queued == 4.0
