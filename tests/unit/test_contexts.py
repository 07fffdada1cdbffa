"""An app's own state at a site is what it would be had the aggregator never been lost."""

from __future__ import annotations

from dataclasses import replace

from federator.contexts import RunContexts
from flwr.app import Context, MetricRecord, RecordDict
from flwr.supercore.run import Run

RUN = replace(Run.create_empty(7), pending_at="1")
AGAIN = replace(RUN, pending_at="2")


def make(run_id: int = 7) -> Context:
    return Context(run_id, 1, {}, RecordDict({"times": MetricRecord({"trained": 0})}), {})


def work(contexts: RunContexts, run: Run, *ask: str) -> int:
    """As an app that counts its work; the count after it."""
    record = contexts.of(run, (ask[0], ask[1]), lambda: make(run.run_id)).state.metric_records["times"]
    record["trained"] = int(record["trained"]) + 1  # type: ignore[call-overload]
    return int(record["trained"])  # type: ignore[call-overload]


def test_a_round_that_is_asked_for_again_is_counted_once() -> None:
    contexts = RunContexts()
    for number, ask in enumerate([("train", "1"), ("evaluate", "1"), ("train", "2"), ("evaluate", "2")], 1):
        assert work(contexts, RUN, *ask) == number
    assert work(contexts, AGAIN, "train", "2") == 3
    assert work(contexts, AGAIN, "evaluate", "2") == 4
    assert work(contexts, AGAIN, "train", "3") == 5


def test_what_was_not_asked_before_goes_on() -> None:
    contexts = RunContexts()
    assert work(contexts, RUN, "train", "1") == 1
    assert work(contexts, RUN, "train", "1") == 2, "an app may ask so twice; its aggregator is the same"
    assert work(contexts, AGAIN, "train", "2") == 3


def test_only_the_newest_runs_are_known() -> None:
    contexts = RunContexts()
    assert work(contexts, RUN, "train", "1") == 1
    for run_id in range(10, 14):
        assert work(contexts, replace(RUN, run_id=run_id), "train", "1") == 1
    assert work(contexts, RUN, "train", "2") == 1
