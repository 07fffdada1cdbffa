from __future__ import annotations

import pytest
from federator.contract import (
    MemberState,
    Metrics,
    Participant,
    Round,
    RunDetail,
    RunStatus,
    RunSummary,
    Score,
    SiteRound,
)
from plotly import graph_objects as go

from hub_service.results.metrics import main_metric
from hub_service.web.figures import run_figure, site_titles
from hub_service.web.result_figures import result_table

TITLES = {"north": "North Hospital", "south": "South Clinic"}


def run(rounds: tuple[Round, ...] = (), scores: tuple[Score, ...] = ()) -> RunDetail:
    return RunDetail(
        summary=RunSummary("r", 1, RunStatus.RUNNING, 5, 1, "", "ada", "2026-11-23T12:00:00+00:00"),
        project_id="p",
        fab_hash="f",
        version=1,
        sites=("north", "south"),
        rounds=rounds,
        scores=scores,
    )


def round_(number: int, north: Metrics, south: Metrics, together: Metrics) -> Round:
    return Round(number, (SiteRound("north", evaluate=north), SiteRound("south", evaluate=south)), evaluate=together)


def test_a_run_without_values_has_no_figure() -> None:
    assert run_figure(run(), TITLES) is None
    assert run_figure(run((round_(1, {}, {"num-examples": 5.0}, {}),)), TITLES) is None


def test_the_figure_has_a_curve_for_each_site_and_one_for_all() -> None:
    rounds = (
        round_(1, {"accuracy": 0.5, "loss": 2.0}, {"accuracy": 0.6, "loss": 1.0}, {"accuracy": 0.55}),
        round_(2, {}, {"accuracy": 0.7}, {"accuracy": 0.7}),
    )
    figure = run_figure(run(rounds), TITLES)
    assert figure is not None
    curves = {trace["name"]: (trace["x"], trace["y"]) for trace in figure["data"]}
    assert curves == {
        "North Hospital": ([1], [0.5]),
        "South Clinic": ([1, 2], [0.6, 0.7]),
        "All sites": ([1, 2], [0.55, 0.7]),
    }
    assert figure["layout"]["yaxis"]["title"]["text"] == "Accuracy"
    go.Figure(figure)  # raises for anything that Plotly does not know


def test_sites_differ_by_more_than_colour() -> None:
    figure = run_figure(run((round_(1, {"auc": 0.5}, {"auc": 0.6}, {"auc": 0.5}),)), TITLES)
    assert figure is not None
    north, south, _ = figure["data"]
    assert north["line"]["dash"] != south["line"]["dash"]
    assert north["marker"]["symbol"] != south["marker"]["symbol"]


def test_plotly_gets_no_markup_from_a_site() -> None:
    figure = run_figure(run((round_(1, {"auc": 0.5}, {}, {}),)), {"north": "<a href='x'>N</a>", "south": "S & T"})
    assert figure is not None
    assert [trace["name"] for trace in figure["data"]][:2] == ["&lt;a href='x'>N&lt;/a>", "S &amp; T"]


@pytest.mark.parametrize(
    ("measured", "chosen"),
    [
        ([{"loss": 1.0, "accuracy": 0.5}], "accuracy"),
        ([{"loss": 1.0}, {"recall": 0.5}], "recall"),
        ([{"eval_loss": 1.0, "num-examples": 3.0}], "eval_loss"),
        ([{"num-examples": 3.0}], None),
        ([], None),
    ],
)
def test_the_metric_that_people_look_at_first(measured: list[Metrics], chosen: str | None) -> None:
    assert main_metric(measured) == chosen


def test_a_diverging_site_leaves_a_gap() -> None:
    rounds = (
        round_(1, {"loss": 1.0}, {"loss": float("nan")}, {"loss": float("inf")}),
        round_(2, {"loss": 2.0}, {"loss": 3.0}, {"loss": 2.5}),
    )
    figure = run_figure(run(rounds), TITLES)
    assert figure is not None
    assert [trace["x"] for trace in figure["data"]] == [[1, 2], [2], [2]]


def score(model: str, on: str, **metrics: float) -> Score:
    return Score(model, on, metrics, 10)


def test_the_table_names_the_best_model_of_each_column() -> None:
    scores = (
        score("federated", "north", accuracy=0.8),
        score("federated", "south", accuracy=0.9),
        score("federated", "", accuracy=0.85),
        score("north", "north", accuracy=0.95),
        score("north", "south", accuracy=0.5),
        score("north", "", accuracy=0.7),
    )
    table = result_table(run(scores=scores), TITLES)
    assert table is not None
    assert table.columns == ("All sites", "North Hospital", "South Clinic")
    assert [row.title for row in table.rows] == ["Federated", "North Hospital alone"]
    assert [[cell.best for cell in row.cells] for row in table.rows] == [[True, False, True], [False, True, False]]
    assert "accuracy 0.850" in table.conclusion
    assert "North Hospital, has 0.700 alone" in table.conclusion


def test_less_loss_is_better_and_a_missing_score_is_shown_as_missing() -> None:
    scores = (score("federated", "", loss=0.5), score("south", "", loss=0.2), score("south", "south", loss=0.1))
    table = result_table(run(scores=scores), TITLES)
    assert table is not None
    federated, south = table.rows
    assert [cell.value for cell in federated.cells] == [0.5, None, None]
    assert not federated.cells[0].best
    assert south.cells[0].best
    assert "South Clinic, has 0.200 alone" in table.conclusion


def test_without_comparison_nothing_is_concluded() -> None:
    table = result_table(run(scores=(score("federated", "", accuracy=0.5),)), TITLES)
    assert table is not None
    assert table.conclusion == ""
    diverged = result_table(
        run(scores=(score("federated", "", loss=float("nan")), score("north", "", loss=0.5))), TITLES
    )
    assert diverged is not None
    assert diverged.rows[0].cells[0].value is None
    assert result_table(run(), TITLES) is None


def test_a_site_with_two_datasets_has_two_titles() -> None:
    participants = [Participant("ada", "owner", MemberState.JOINED, site="north", site_title="North Hospital")]
    assert site_titles(participants, ["north/scans", "gone"]) == {
        "north/scans": "North Hospital, scans",
        "gone": "gone",
    }
