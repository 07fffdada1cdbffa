"""Rounds and the result table, from events as aggregators write them."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from federator.contract import SourceFile

from hub_service.apps.build import AppBuilder, BuiltApp
from hub_service.domain.projects import AppVersion, Project
from hub_service.domain.runs import EventKind, RunEvent
from hub_service.results.scores import scores, weighted
from hub_service.results.signing import SigningKey
from hub_service.run_progress import Progress, finite, with_site_names
from hub_service.run_views import record, rounds, run_detail
from tests.fakes.aggregators import reply, sent
from tests.fakes.flower_apps import averaging_app
from tests.fakes.notebooks import mean_notebook
from tests.fakes.runs import RUN


def test_a_round_joins_what_each_site_did() -> None:
    events = [
        sent(22, 1, size=100),
        sent(11, 1, size=100),
        reply(11, 1, loss=1.0, examples=10, size=90),
        reply(22, 1, loss=2.0, examples=30, size=80),
        sent(11, 1, "evaluate", size=50),
        reply(11, 1, "evaluate", accuracy=0.5, examples=4, size=1),
        sent(11, 2),
    ]
    first, second = rounds(RUN, events)
    assert [one.site for one in first.sites] == ["north", "east"]
    north = first.sites[0]
    assert (north.train, north.train_examples) == ({"loss": 1.0}, 10)
    assert (north.evaluate, north.evaluate_examples) == ({"accuracy": 0.5}, 4)
    assert (north.bytes_in, north.bytes_out, north.seconds) == (150, 91, 1.0)
    assert first.train == {"loss": 1.75}
    assert first.evaluate == {"accuracy": 0.5}
    assert (second.number, second.sites[0].train) == (2, {})


def test_other_phases_and_messages_outside_rounds_are_no_rounds() -> None:
    alone = replace(reply(11, 1, loss=1.0), phase="alone")
    assert rounds(RUN, [alone, reply(11, 0, loss=1.0), RunEvent(EventKind.FINISHED, 1.0)]) == ()


def test_a_reply_that_was_left_out_after_all_does_not_count() -> None:
    events = [
        reply(11, 1, loss=1.0, examples=10),
        reply(22, 1, loss=9.0, examples=10),
        reply(22, 1, examples=0, text="site's answer left out: array 'w' is missing", size=0),
    ]
    (only,) = rounds(RUN, events)
    assert only.train == {"loss": 1.0}
    assert only.sites[1].error == "site's answer left out: array 'w' is missing"
    assert only.sites[1].train_examples == 0


def test_an_apps_own_kind_of_train_message_is_training() -> None:
    (only,) = rounds(RUN, [reply(11, 1, "train.boost", loss=0.5)])
    assert only.sites[0].train == {"loss": 0.5}


def test_an_unknown_node_is_named_by_its_number() -> None:
    (only,) = rounds(RUN, [reply(99, 1, loss=0.5)])
    assert only.sites[0].site == "node 99"


def test_the_table_has_each_model_on_each_site_and_on_all() -> None:
    events = [
        RunEvent(EventKind.SCORE, 1.0, model="federated", node_id=22, metrics={"accuracy": 0.5}, examples=3),
        RunEvent(EventKind.SCORE, 1.0, model="22", node_id=11, metrics={"accuracy": 0.2}, examples=1),
        RunEvent(EventKind.SCORE, 1.0, model="federated", node_id=11, metrics={"accuracy": 1.0}, examples=1),
    ]
    table = [(one.model, one.on_site, one.metrics, one.examples) for one in scores(RUN, events)]
    assert table == [
        ("federated", "north", {"accuracy": 1.0}, 1),
        ("federated", "east", {"accuracy": 0.5}, 3),
        ("federated", "", {"accuracy": 0.625}, 4),
        ("east", "north", {"accuracy": 0.2}, 1),
        ("east", "", {"accuracy": 0.2}, 1),
    ]


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([], {}),
        ([({"a": 1.0}, 1), ({"a": 3.0}, 3)], {"a": 2.5}),
        ([({"a": 1.0}, 0), ({"a": 3.0}, 0)], {"a": 2.0}),
        ([({"a": 1.0, "b": 5.0}, 1), ({"a": 3.0}, 1)], {"a": 2.0, "b": 5.0}),
        ([({"a": 1.0}, 0), ({"a": 3.0}, 2)], {"a": 3.0}),
    ],
)
def test_metrics_are_weighted_by_examples(
    parts: list[tuple[dict[str, float], int]], expected: dict[str, float]
) -> None:
    assert weighted(parts) == expected


def test_a_run_without_a_model_has_none() -> None:
    detail = run_detail(RUN, 3, [])
    assert (detail.model, detail.version, detail.sites) == (None, 3, ("north", "east"))
    kept = run_detail(replace(RUN, model_sha256="a" * 64, model_size=5, model_round=2), 3, [])
    assert kept.model is not None
    assert (kept.model.size, kept.model.round) == (5, 2)


def test_a_note_on_a_phase_is_kept_as_the_runs_message() -> None:
    note = RunEvent(EventKind.PHASE, 1.0, "alone", node_id=22, text="node 22 could not train")
    progress = Progress(RUN).after([note, RunEvent(EventKind.PHASE, 1.0, "compare")])
    assert progress.run.message == "east could not train"
    assert progress.run.phase == "comparing the models"
    assert progress.outcome is None


def test_only_whole_numbers_that_are_nodes_become_sites() -> None:
    assert with_site_names(RUN, "11 of node 111 lost, node 22") == "north of node 111 lost, east"


def test_a_finite_event_is_left_as_it_is() -> None:
    event = reply(11, 1, loss=1.0)
    assert finite(event) is event
    spoiled = finite(reply(11, 1, loss=math.nan, accuracy=1.0, text="late"))
    assert (spoiled.metrics, spoiled.text) == ({"accuracy": 1.0}, "late; loss is not a finite number")


@pytest.mark.parametrize(
    ("name", "content", "precision"),
    [
        ("mean.ipynb", mean_notebook("CONFIG = {'wire-precision': 'half'}"), "half"),
        ("mean.ipynb", mean_notebook(), "exact"),
        ("app.fab", averaging_app(config='wire-precision = "half"'), "half"),
        ("app.fab", averaging_app(), "exact"),
    ],
)
def test_the_record_states_how_models_travelled(name: str, content: bytes, precision: str) -> None:
    """As the approved bytes say: no run overrides it, and no report of the app's own code can."""
    app = version_of(AppBuilder(frozenset({"numpy", "flwr", "torch"})).build(name, content))
    project = Project("p1", "Lungs", "", "anna", RUN.created_at)
    states = json.loads(json.dumps(record(project, RUN, app, [], run_detail(RUN, 1, []))))["run"]
    assert states["wire_precision"] == precision


def test_the_record_of_an_app_of_before_has_infinity_as_a_text() -> None:
    """Such an app is refused now. JSON has no word for it, and what is no JSON cannot be signed."""
    built = AppBuilder(frozenset({"numpy"})).build("mean.ipynb", mean_notebook("CONFIG = {'limit': 17.25}"))
    pyproject = next(one for one in built.files if one.path == "pyproject.toml")
    old = SourceFile("pyproject.toml", pyproject.text.replace("17.25", "inf"))
    app = replace(version_of(built), files=(old,))
    made = record(Project("p1", "Lungs", "", "anna", RUN.created_at), RUN, app, [], run_detail(RUN, 1, []))
    signed = SigningKey.new().sign(made, "f" * 64)
    assert signed.record["run"]["config"]["limit"] == "inf"


def version_of(built: BuiltApp) -> AppVersion:
    return AppVersion(
        project_id="p1",
        number=1,
        fab_hash=built.fab_hash,
        title=built.title,
        source=built.source,
        created_by="anna",
        created_at=RUN.created_at,
        size=len(built.fab),
        cells=built.cells,
        files=built.files,
        imports=built.imports,
    )
