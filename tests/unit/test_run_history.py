"""Which events still hold, and which rounds are over, in a run whose aggregator was lost."""

from __future__ import annotations

from hub_service.domain.runs import EventKind, RunEvent
from hub_service.run_history import Overdue, RoundDone, RoundsDone, standing
from tests.fakes.aggregators import reply, sent

FEDERATED = RunEvent(EventKind.PHASE, 1.0, "federated")
COMPARE = RunEvent(EventKind.PHASE, 1.0, "compare")
NOTE = RunEvent(EventKind.PHASE, 1.0, "federated", text="models travel in half precision")


def alone(node: int) -> RunEvent:
    return RunEvent(EventKind.PHASE, 1.0, "alone", node_id=node)


def resumed(phase: str, number: int, node: int = 0) -> RunEvent:
    return RunEvent(EventKind.RESUMED, 5.0, phase, number, node_id=node)


def kept(number: int) -> RunEvent:
    return RunEvent(EventKind.MODEL, 2.0, "federated", number, size=7)


def trained_alone(node: int, number: int) -> RunEvent:
    return RunEvent(EventKind.SENT, 2.0, "alone", number, "train", node)


def scored(model: str) -> RunEvent:
    return RunEvent(EventKind.SCORE, 4.0, "compare", model=model, node_id=1)


def silent(**seconds: float) -> RunEvent:
    return RunEvent(
        EventKind.OUTAGE, 9.0, "federated", 1, metrics={name.removeprefix("node"): one for name, one in seconds.items()}
    )


def test_without_a_loss_all_stand() -> None:
    events = (FEDERATED, NOTE, sent(1, 1), reply(1, 1), kept(1))
    assert standing(events) == events


def test_later_rounds_are_void() -> None:
    first = (FEDERATED, sent(1, 1), reply(1, 1), kept(1), NOTE)
    back = resumed("federated", 1)
    assert standing((*first, sent(1, 2), reply(1, 2), kept(2), back, sent(1, 2))) == (*first, back, sent(1, 2))
    assert standing((FEDERATED, sent(1, 1), resumed("federated", 0))) == (FEDERATED, resumed("federated", 0))
    assert standing((resumed("federated", 0), FEDERATED)) == (resumed("federated", 0), FEDERATED)


def test_a_phase_after_the_one_that_is_gone_on_with_is_void() -> None:
    first = (FEDERATED, sent(1, 1), alone(1), trained_alone(1, 1))
    back = resumed("alone", 1, node=1)
    assert standing((*first, trained_alone(1, 2), alone(2), trained_alone(2, 1), back)) == (*first, back)
    back = resumed("federated", 1)
    assert standing((*first, back, alone(1))) == (FEDERATED, sent(1, 1), back, alone(1))


def test_the_comparison_begins_again() -> None:
    back = resumed("compare", 0)
    events = (FEDERATED, COMPARE, scored("federated"), back, scored("federated"), scored("1"))
    assert standing(events) == (FEDERATED, COMPARE, back, scored("federated"), scored("1"))


def test_rounds_are_over_when_the_run_goes_on() -> None:
    done = RoundsDone()
    assert done.after([FEDERATED, sent(1, 1), sent(2, 1), reply(2, 1), reply(1, 1)]) == []
    assert done.after([sent(1, 1, "evaluate"), reply(1, 1, "evaluate"), NOTE]) == []
    assert done.after([sent(1, 2), reply(1, 2), reply(2, 2, text="too slow")]) == [RoundDone(1, (2, 1))]
    left_out = reply(1, 2, text="site's answer left out: array 'w' is missing")
    assert done.after([left_out, RunEvent(EventKind.FINISHED, 9.0)]) == [RoundDone(2, ())]


def test_a_round_that_was_lost_is_over_once() -> None:
    done = RoundsDone()
    assert done.after([FEDERATED, sent(1, 1), reply(1, 1), sent(1, 2), reply(1, 2)]) == [RoundDone(1, (1,))]
    assert done.after([resumed("federated", 1), sent(1, 2), reply(1, 2), sent(1, 3)]) == [RoundDone(2, (1,))]
    assert done.after([reply(1, 3), resumed("federated", 3), COMPARE]) == [RoundDone(3, (1,))]
    assert len(done.begun) == 3


def test_a_round_with_a_model_is_over_where_the_run_was_ended() -> None:
    done = RoundsDone()
    done.after([FEDERATED, sent(1, 1), reply(1, 1)])
    assert done.at_the_end() == []
    done.after([kept(1)])
    assert done.at_the_end() == [RoundDone(1, (1,))]
    assert done.at_the_end() == []
    done.after([sent(1, 2), kept(2), sent(1, 3)])
    assert done.at_the_end() == []
    done.after([kept(3), resumed("federated", 2), sent(1, 3)])
    assert done.at_the_end() == []


def test_an_overdue_node_is_named_once_until_it_is_back() -> None:
    overdue = Overdue(grace_s=10.0)
    assert overdue.after(silent(node1=9.0)) == []
    assert overdue.after(silent(node1=10.0, node2=3.0)) == ["1"]
    assert overdue.after(silent(node1=11.0)) == []  # the other one blinked
    assert overdue.after(silent(node1=20.0, node2=10.0)) == ["2"]
    assert overdue.after(reply(2, 1)) == []
    assert overdue.after(silent()) == []
    assert overdue.after(silent(node1=10.0)) == ["1"]
    assert overdue.after(resumed("federated", 1)) == []
    assert overdue.after(silent(node1=10.0)) == ["1"]
