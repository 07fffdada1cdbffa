"""What sites do in a run, what travelled, and the time left: from events as aggregators write them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from federator.contract import RunDetail, RunStatus, SiteActivity, SiteState

from hub_service.domain.runs import EventKind, Run, RunEvent
from hub_service.run_activity import seconds_left, with_activity
from hub_service.run_views import run_detail
from hub_service.site_stages import SiteStages, Stage, StageSince
from tests.fakes.aggregators import reply, sent
from tests.unit.test_run_views import RUN as FINITE_RUN

RUN = replace(FINITE_RUN, rounds=4, compare=False)
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def seen(
    events: list[RunEvent],
    run: Run = RUN,
    stages: dict[str, StageSince] | None = None,
    offline: dict[str, str] | None = None,
) -> RunDetail:
    detail = run_detail(run, 1, events)
    return with_activity(detail, run, events, stages=stages or {}, offline=offline or {}, now=NOW)


def north(detail: RunDetail) -> SiteActivity:
    assert [one.site for one in detail.activity] == ["north", "east"]
    return detail.activity[0]


@pytest.mark.parametrize(
    ("stage", "state"),
    [
        (Stage.RECEIVING, SiteState.RECEIVING),
        (Stage.COMPUTING, SiteState.COMPUTING),
        (Stage.SENDING, SiteState.SENDING),
        (Stage.ANSWERED, SiteState.WAITING),
    ],
)
def test_a_site_with_an_open_message_is_as_far_as_the_gateway_has_seen(stage: Stage, state: SiteState) -> None:
    found = north(seen([sent(11, 1)], stages={"north": StageSince(stage, NOW)}))
    assert (found.state, found.task, found.since) == (state, "train", "2026-03-01T12:00:00+00:00")


def test_after_a_restart_of_the_service_a_site_with_an_open_message_is_taken_to_compute() -> None:
    assert north(seen([sent(11, 1, "evaluate.custom")])).state is SiteState.COMPUTING
    assert north(seen([sent(11, 1, "evaluate.custom")])).task == "evaluate"


def test_a_site_that_has_answered_waits_whatever_the_gateway_saw_last() -> None:
    found = north(seen([sent(11, 1), reply(11, 1)], stages={"north": StageSince(Stage.SENDING, NOW)}))
    assert (found.state, found.since) == (SiteState.WAITING, "1970-01-01T00:00:02+00:00")


def test_an_error_is_told_until_a_message_of_its_type_went_well() -> None:
    failed = [sent(11, 1), reply(11, 1, text="OSError: no slides (client_app.py:3)", size=0)]
    assert north(seen(failed)).state is SiteState.FAILED
    assert north(seen(failed)).detail == "OSError: no slides (client_app.py:3)"
    going_on = [*failed, sent(11, 1, "evaluate"), reply(11, 1, "evaluate"), sent(11, 2)]
    assert north(seen(going_on)).state is SiteState.COMPUTING
    assert north(seen(going_on)).detail == "OSError: no slides (client_app.py:3)"
    assert north(seen([*going_on, reply(11, 2)])).detail == ""


def test_a_client_that_is_gone_is_offline_with_its_cause() -> None:
    found = north(seen([sent(11, 1)], offline={"north": "The client kernel was killed (signal 9)."}))
    assert (found.state, found.detail) == (SiteState.OFFLINE, "The client kernel was killed (signal 9).")


def test_bytes_are_counted_for_the_run_and_for_the_present_round() -> None:
    events = [sent(11, 1, size=100), reply(11, 1, size=90), sent(11, 2, size=30), sent(22, 2, size=7)]
    detail = seen(events)
    found = north(detail)
    assert (found.bytes_in, found.bytes_out) == (130, 90)
    assert (found.round_bytes_in, found.round_bytes_out) == (30, 0)
    assert (detail.bytes_in, detail.bytes_out) == (137, 90)


def test_a_run_that_has_ended_has_totals_and_no_activity() -> None:
    detail = seen([sent(11, 1, size=100), reply(11, 1, size=90)], replace(RUN, status=RunStatus.FINISHED))
    assert (detail.activity, detail.seconds_left, detail.bytes_in, detail.bytes_out) == ((), None, 100, 90)


def rounds_of(seconds: float, count: int) -> list[RunEvent]:
    """Rounds that begin every so many seconds; each site works half of each, and evaluates for a tenth of it."""
    events = []
    for number in range(1, count + 1):
        at = seconds * (number - 1)
        for node in (11, 22):
            events += [
                replace(sent(node, number), at=at),
                replace(reply(node, number), at=at + 0.4 * seconds, seconds=0.4 * seconds),
                replace(sent(node, number, "evaluate"), at=at + 0.5 * seconds),
                replace(reply(node, number, "evaluate"), at=at + 0.6 * seconds, seconds=0.1 * seconds),
            ]
    return events


def left(run: Run, events: list[RunEvent], at: float) -> float | None:
    return seconds_left(run, events, datetime.fromtimestamp(at, UTC))


def phase(name: str, node_id: int = 0) -> RunEvent:
    return RunEvent(EventKind.PHASE, 0.0, name, node_id=node_id)


def test_nothing_is_said_of_the_time_before_a_round_is_over() -> None:
    assert left(RUN, [], 0) is None
    assert left(RUN, [phase("federated"), *rounds_of(10, 1)], 9) is None


def test_the_rounds_left_take_as_long_as_the_last_ones() -> None:
    assert left(RUN, rounds_of(10, 2), 10) == pytest.approx(30)
    assert left(RUN, rounds_of(10, 2), 14) == pytest.approx(26)
    assert left(RUN, rounds_of(10, 2), 1000) == pytest.approx(20)  # a round that takes longer is not counted as more


def test_the_comparison_is_part_of_the_time_left() -> None:
    run = replace(RUN, compare=True)
    events = [phase("federated"), *rounds_of(10, 4)]
    alone, compare = 2 * 4 * 5.0, 3 * 1.0
    assert left(run, events, 30) == pytest.approx(10 + alone + compare)
    assert left(run, [*events, phase("alone", 11)], 40) == pytest.approx(alone + compare)
    in_its_third = replace(sent(11, 3), phase="alone")
    assert left(run, [*events, phase("alone", 11), in_its_third], 40) == pytest.approx(0.75 * alone + compare)
    events += [phase("alone", 11), phase("alone", 22)]
    assert left(run, events, 40) == pytest.approx(alone / 2 + compare)
    events += [phase("compare")]
    assert left(run, events, 40) == pytest.approx(compare)
    once = [RunEvent(EventKind.REPLY, 0.0, "compare", message_type="evaluate", node_id=node) for node in (11, 22)]
    assert left(run, [*events, *once], 40) == pytest.approx(compare * 2 / 3)


def test_a_stage_is_new_once() -> None:
    times = iter(NOW + timedelta(seconds=number) for number in range(9))
    stages = SiteStages(lambda: next(times))
    assert stages.moved("p", Stage.COMPUTING)
    assert not stages.moved("p", Stage.COMPUTING)
    assert stages.of("p") == StageSince(Stage.COMPUTING, NOW)
    stages.forget("p")
    assert stages.of("p") is None
