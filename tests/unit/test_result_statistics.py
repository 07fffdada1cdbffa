"""Intervals from counts and shares, and what they separate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from federator.contract import Round, RunStatus, Score
from safetensors.numpy import load_file

from hub_service.aggregators.events import MODEL_FILE, round_model_file
from hub_service.aggregators.model_file import keep_model, write_model
from hub_service.artifacts import Artifacts
from hub_service.domain.errors import NotFound
from hub_service.domain.runs import EventKind, RunEvent
from hub_service.results import statistics
from hub_service.results.models import RoundModels, best_round
from hub_service.results.scores import differences, labels, scores
from hub_service.run_progress import finite
from tests.fakes.runs import RUN as RUNNING

RUN = replace(RUNNING, status=RunStatus.FINISHED)


def scored(model: str, node_id: int, counts: list[int] | None = None, examples: int = 0, **metrics: float) -> RunEvent:
    return RunEvent(
        EventKind.SCORE,
        1.0,
        model=model,
        node_id=node_id,
        metrics=metrics,
        examples=examples or sum(counts or ()),
        counts={"confusion": counts} if counts else {},
    )


def by_cell(events: list[RunEvent]) -> dict[tuple[str, str], Score]:
    return {(score.model, score.on_site): score for score in scores(RUN, events)}


def test_an_interval_is_as_wide_as_the_examples_are_few() -> None:
    """Against the normal approximation, which is good for these."""
    for examples in (100, 2500):
        table = (examples // 2 * 8 // 10, examples // 2 * 2 // 10, examples // 2 * 2 // 10, examples // 2 * 8 // 10)
        low, high = statistics.of_tables((table,), 1).accuracy.interval
        half = 1.96 * np.sqrt(0.8 * 0.2 / examples)
        assert low == pytest.approx(0.8 - half, abs=0.2 * half)
        assert high == pytest.approx(0.8 + half, abs=0.2 * half)


def test_a_tables_classes_and_its_balanced_accuracy() -> None:
    found = statistics.of_tables(((90, 10, 5, 5),), 1)
    assert found.accuracy.value == pytest.approx(95 / 110)
    assert found.balanced_accuracy.value == pytest.approx((0.9 + 0.5) / 2)
    first, second = found.classes
    assert (first.examples, first.predicted, first.recall) == (100, 95, 0.9)
    assert (second.examples, second.predicted, second.recall, second.precision) == (10, 15, 0.5, 1 / 3)
    assert second.recall_interval is not None
    assert second.recall_interval[0] < 0.5 < second.recall_interval[1]


def test_a_class_without_examples_has_no_recall() -> None:
    absent = statistics.of_tables(((9, 1, 0, 0),), 1).classes[1]
    assert (absent.recall, absent.recall_interval, absent.precision) == (None, None, 0.0)
    never_predicted = statistics.of_tables(((9, 0, 1, 0),), 1).classes[1]
    assert (never_predicted.precision, never_predicted.recall) == (None, 0.0)


def test_no_error_among_few_examples_is_no_certainty() -> None:
    """By the rule of Clopper and Pearson: 0.025 ** (1 / n)."""
    found = statistics.of_tables(((5, 0, 0, 5),), 1)
    assert found.accuracy.interval == (pytest.approx(0.6915, abs=1e-4), 1.0)
    assert found.balanced_accuracy.interval == (pytest.approx(0.4782, abs=1e-4), 1.0)
    assert statistics.of_shares(((0.0, 10),), 1).interval == (0.0, pytest.approx(0.3085, abs=1e-4))


def test_the_same_run_has_the_same_intervals_and_another_has_others() -> None:
    table = (40, 10, 20, 30)
    again = [statistics.of_tables.__wrapped__((table,), seed).accuracy.interval for seed in (1, 1, 2)]
    assert again[0] == again[1] != again[2]


@pytest.mark.parametrize(
    ("counts", "is_one"),
    [
        ((1, 2, 3, 4), True),
        ((1, 2, 3), False),
        ((5,), False),
        ((), False),
        ((0, 0, 0, 0), False),
        ((1, -1, 1, 1), False),
    ],
)
def test_what_is_a_confusion_table(counts: tuple[int, ...], is_one: bool) -> None:
    assert statistics.is_table(counts) is is_one


def test_all_sites_together_are_the_sum_of_their_tables() -> None:
    cells = by_cell([scored("federated", 11, [30, 10, 10, 50]), scored("federated", 22, [5, 5, 0, 10])])
    together = cells["federated", ""]
    assert together.counts == {"confusion": (35, 15, 10, 60)}
    assert together.metrics["accuracy"] == pytest.approx(95 / 120)
    # Not the mean of the sites' balanced accuracies, which is another number.
    assert together.metrics["balanced-accuracy"] == pytest.approx((35 / 50 + 60 / 70) / 2)
    assert together.made_from == {"accuracy": "counts", "balanced-accuracy": "counts"}
    assert [one.examples for one in together.classes] == [50, 70]
    low, high = together.intervals["accuracy"]
    assert low < 95 / 120 < high


def test_a_share_of_known_examples_has_an_interval_and_says_what_from() -> None:
    cells = by_cell([scored("federated", 11, examples=100, accuracy=0.8, loss=0.3, auc=0.7)])
    north = cells["federated", "north"]
    assert north.made_from == {"accuracy": "share"}
    assert north.intervals["accuracy"][0] == pytest.approx(0.72, abs=0.02)
    assert cells["federated", ""].made_from == {"accuracy": "share"}


def test_a_metric_that_is_not_what_its_counts_say_is_left_as_the_app_says() -> None:
    """Such as an accuracy that takes one of five guesses."""
    north = by_cell([scored("federated", 11, [50, 50, 50, 50], accuracy=0.9)])["federated", "north"]
    assert north.metrics["accuracy"] == 0.9
    assert north.made_from == {"accuracy": "share", "balanced-accuracy": "counts"}


def test_sites_with_other_numbers_of_classes_have_no_table_together() -> None:
    cells = by_cell([scored("federated", 11, [1, 1, 1, 1]), scored("federated", 22, [1] * 9)])
    assert cells["federated", ""].counts == {}
    assert "accuracy" not in cells["federated", ""].intervals


def pair(ours: list[int], theirs: list[int]) -> list[RunEvent]:
    return [scored("federated", 11, ours), scored("22", 11, theirs)]


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        ([430, 70, 70, 430], [300, 200, 200, 300], "better"),
        ([300, 200, 200, 300], [430, 70, 70, 430], "worse"),
        ([43, 7, 7, 43], [42, 8, 8, 42], "not-separated"),
    ],
)
def test_a_difference_that_the_interval_does_not_separate_is_no_win(
    ours: list[int], theirs: list[int], verdict: str
) -> None:
    found = {one.metric: one for one in differences("r1", scores(RUN, pair(ours, theirs)))}
    accuracy = found["accuracy"]
    assert (accuracy.best_site, accuracy.verdict) == ("east", verdict)
    assert accuracy.interval is not None
    assert accuracy.interval[0] < accuracy.difference < accuracy.interval[1]
    assert found["balanced-accuracy"].verdict == verdict


def test_a_metric_without_an_interval_has_no_verdict() -> None:
    events = [scored("federated", 11, examples=9, loss=0.1), scored("22", 11, examples=9, loss=0.5)]
    (loss,) = differences("r1", scores(RUN, events))
    assert (loss.interval, loss.verdict, loss.best_site) == (None, "unknown", "east")
    shares = [scored("federated", 11, examples=900, accuracy=0.9), scored("22", 11, examples=900, accuracy=0.5)]
    assert [one.verdict for one in differences("r1", scores(RUN, shares))] == ["better"]
    errors = [scored("federated", 11, examples=900, error_rate=0.1), scored("22", 11, examples=900, error_rate=0.5)]
    assert [one.verdict for one in differences("r1", scores(RUN, errors))] == ["better"]
    assert differences("r1", scores(RUN, [shares[1]])) == ()


def test_the_labels_of_each_site_come_from_the_rows() -> None:
    table = scores(RUN, [scored("federated", 11, [30, 10, 10, 50]), scored("federated", 22, [5, 5, 0, 0])])
    assert [(one.site, one.examples) for one in labels(table)] == [("north", (40, 60)), ("east", (10, 0))]


def test_false_counts_are_not_kept() -> None:
    event = scored("federated", 11, [1, 2, 3, 4])
    assert finite(event) is event
    for bad in ([-1, 1], [1.5], ["1"], [True], "1111", [1] * 5000, [2**60]):
        kept = finite(replace(event, counts={"confusion": bad, "good": [1]}))  # type: ignore[dict-item]
        assert kept.counts == {"good": [1]}


# --- models of rounds


def evaluated(*values: float, metric: str = "accuracy") -> list[Round]:
    return [Round(number, (), evaluate={metric: value}) for number, value in enumerate(values, start=1)]


@pytest.mark.parametrize(
    ("rounds", "best"),
    [
        (evaluated(0.5, 0.9, 0.9, 0.7), (2, "accuracy")),
        (evaluated(0.5, 0.9, 0.4, metric="loss"), (3, "loss")),
        (evaluated(0.5, float("nan")), (1, "accuracy")),
        (evaluated(float("nan")), (0, "")),
        ([Round(1, ())], (0, "")),
    ],
)
def test_the_best_round(rounds: list[Round], best: tuple[int, str]) -> None:
    assert best_round(rounds) == best


def test_the_last_and_the_best_model_are_kept_then_the_newest_that_fit(tmp_path: Path) -> None:
    models = RoundModels(tmp_path, budget=45)
    for number in range(1, 7):
        (tmp_path / round_model_file(number)).write_bytes(bytes([number]) * 10)
        if models.add(number, 10):
            models.prune(best=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [round_model_file(one) for one in (2, 4, 5, 6)]
    assert models.to_keep(best=2) == {one: tmp_path / round_model_file(one) for one in (2, 4, 5, 6)}


def test_what_the_owners_code_says_of_models_is_not_believed(tmp_path: Path) -> None:
    """A name that leads elsewhere, a link, a size that is too small, a folder, a number beyond a name's length."""
    (tmp_path / "run").mkdir()
    secret = tmp_path / "secret.safetensors"
    secret.write_bytes(b"secret")
    models = RoundModels(tmp_path / "run", budget=25)
    models.add("/../../secret", 1)  # type: ignore[arg-type]
    (tmp_path / "run" / round_model_file(1)).write_bytes(b"x" * 1000)
    (tmp_path / "run" / round_model_file(2)).symlink_to(secret)
    (tmp_path / "run" / round_model_file(3)).write_bytes(b"x" * 10)
    (tmp_path / "run" / round_model_file(4)).mkdir()
    for number in (1, 2, 3, 4, 10**300):
        models.add(number, 1)
    artifacts = Artifacts(tmp_path / "artifacts")
    to_keep = models.to_keep(best=3)
    assert list(to_keep) == [3, 4]
    with pytest.raises(NotFound):
        artifacts.put_model(to_keep[4])


def test_a_kept_model_stays_when_the_next_one_is_written(tmp_path: Path) -> None:
    for number in (1, 2):
        write_model(tmp_path / MODEL_FILE, {"w": np.array([number])}, {})
        keep_model(tmp_path / MODEL_FILE, tmp_path / round_model_file(number))
    assert load_file(tmp_path / round_model_file(1))["w"].tolist() == [1]
    assert load_file(tmp_path / MODEL_FILE)["w"].tolist() == [2]
