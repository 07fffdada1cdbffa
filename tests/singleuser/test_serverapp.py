"""The ServerApp process against a real SuperLink: phases, scores, model file, and how a run fails."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from federator.contract import ClientState
from safetensors.numpy import load_file

from hub_service.aggregators.base import ServerAppSpec
from hub_service.aggregators.events import MODEL_FILE
from hub_service.aggregators.superlink import SuperLink
from hub_service.domain.runs import EventKind, RunEvent
from tests.fakes.fleet import PROJECT, Fleet, fleet
from tests.fakes.flower_apps import SERVER, averaging_app

TARGETS = {"a": 1.0, "b": 3.0}


@pytest.fixture(scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    async with fleet(tmp_path_factory.mktemp("fleet")) as it:
        for name, target in TARGETS.items():
            await it.start_node(name, target, b"").reaches(ClientState.READY)
        yield it


async def run(
    it: Fleet,
    server: str,
    run_id: str,
    *,
    train: str = "",
    config: str = "",
    rounds: int = 1,
    compare: bool = False,
) -> list[RunEvent]:
    app = averaging_app(train, server, config)
    members = list(it.members.values())
    for member in members:
        member.approve(app)
    await it.start_run(app, members, rounds=rounds, compare=compare, run_id=run_id)
    return await it.end_of_run(run_id)


def model(it: Fleet, run_id: str) -> np.ndarray:
    return load_file(it.backend.run_folder(PROJECT, run_id) / MODEL_FILE)["weight"]


async def test_compare_trains_each_site_alone_and_scores_every_model_everywhere(running: Fleet) -> None:
    """After one round a model stands halfway between 0 and the mean of the targets of those who trained it."""
    events = await run(running, SERVER, "compare", compare=True)
    a, b = (member.node_id for member in running.members.values())
    phases = [(event.phase, event.node_id) for event in events if event.kind is EventKind.PHASE]
    assert phases == [("federated", 0), ("alone", a), ("alone", b), ("compare", 0)]
    scores = {(event.model, event.node_id): event for event in events if event.kind is EventKind.SCORE}
    assert {key: event.metrics["distance"] for key, event in scores.items()} == {
        ("federated", a): pytest.approx(0.0),
        ("federated", b): pytest.approx(2.0),
        (str(a), a): pytest.approx(0.5),
        (str(a), b): pytest.approx(2.5),
        (str(b), a): pytest.approx(0.5),
        (str(b), b): pytest.approx(1.5),
    }
    assert all(event.examples == 5 for event in scores.values())
    assert events[-1].kind is EventKind.FINISHED
    np.testing.assert_array_equal(model(running, "compare"), np.full((2, 3), 1.0, np.float32))
    assert model(running, "compare").dtype == np.float32
    (written,) = [event for event in events if event.kind is EventKind.MODEL]
    assert written.round == 1
    assert written.size == (running.backend.run_folder(PROJECT, "compare") / MODEL_FILE).stat().st_size


async def test_without_evaluation_the_last_model_is_what_the_strategy_returns(running: Fleet) -> None:
    """Two rounds: 1 after the first, 1.5 after the second, which no message carries any more."""
    server = SERVER.replace("FedAvg(", "FedAvg(fraction_evaluate=0.0, ")
    events = await run(running, server, "no-evaluation", rounds=2, compare=True)
    assert [event.round for event in events if event.kind is EventKind.MODEL] == [1, 2]
    np.testing.assert_allclose(model(running, "no-evaluation"), 1.5)
    assert "no evaluate messages" in events[-2].text
    assert events[-1].kind is EventKind.FINISHED


async def test_an_app_that_needs_two_sites_has_no_rows_alone(running: Fleet) -> None:
    """Flower's defaults: the run still finishes, and says why."""
    server = SERVER.replace("min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1", "")
    events = await run(running, server, "needs-two", compare=True)
    (note,) = [event for event in events if event.phase == "alone" and event.text]
    assert note.text == "this app cannot run with one site: the app waits for more sites than the 1 that take part"
    assert {event.model for event in events if event.kind is EventKind.SCORE} == {"federated"}
    assert events[-1].kind is EventKind.FINISHED


async def test_an_app_that_fails_alone_has_no_rows_either(running: Fleet) -> None:
    server = SERVER.replace(
        "    strategy =",
        "    if len(list(grid.get_node_ids())) == 1:\n        raise ValueError('lonely')\n    strategy =",
    )
    events = await run(running, server, "fails-alone", compare=True)
    notes = [event.text for event in events if event.phase == "alone" and event.text]
    assert len(notes) == 2
    assert notes[0].startswith("this site could not train alone: ValueError: lonely (tinyapp/server_app.py:")
    assert events[-1].kind is EventKind.FINISHED


async def test_a_run_that_fails_behind_its_last_round_has_that_rounds_model(running: Fleet) -> None:
    """The disk is slow, and the service ends what runs as soon as it hears of the failure."""
    slow_disk = """
from hub_service.aggregators import model_file

pieces = model_file._pieces


def slow_pieces(*arguments):
    __import__("time").sleep(1)
    return pieces(*arguments)


model_file._pieces = slow_pieces
"""
    server = slow_disk + SERVER + "    raise ValueError('no room for the plots')\n"
    events = await run(running, server, "fails-at-last")
    assert [event.kind for event in events[-2:]] == [EventKind.MODEL, EventKind.FAILED]
    assert events[-2].round == 1
    np.testing.assert_array_equal(model(running, "fails-at-last"), np.full((2, 3), 1.0, np.float32))


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("raise KeyError('momentum')", "KeyError: 'momentum' (tinyapp/server_app.py:12)"),
        ("raise SystemExit('enough')", "SystemExit: enough (tinyapp/server_app.py:12)"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module' (tinyapp/server_app.py:12)"),
        (
            "from flwr.app import Message, RecordDict; grid.push_messages([Message(RecordDict(), 5, 'query')])",
            "the app sent a message to node 5, which does not take part",
        ),
    ],
    ids=["raises", "exits", "import", "stranger"],
)
async def test_an_app_that_raises_fails_with_its_own_line(
    running: Fleet, line: str, text: str, request: pytest.FixtureRequest
) -> None:
    run_id = f"fails-{request.node.callspec.id}"
    events = await run(running, SERVER.replace("    strategy =", f"    {line}\n    strategy ="), run_id)
    assert (events[-1].kind, events[-1].text) == (EventKind.FAILED, text)
    log = (running.backend.run_folder(PROJECT, run_id) / "serverapp.log").read_text()
    assert "Traceback" in log


HALF = 'wire-precision = "half"'
LARGE = SERVER.replace("np.zeros((2, 3), dtype=np.float32)", "(np.arange(60000) / 7e4).astype(np.float32)")


def traffic(it: Fleet) -> np.ndarray:
    """Bytes to and from all nodes so far."""
    counted = it.gateway.traffic.values()
    return np.array([sum(one.to_node for one in counted), sum(one.from_node for one in counted)])


def notes(events: list[RunEvent]) -> list[str]:
    return [event.text for event in events if event.kind is EventKind.PHASE and event.text]


async def test_half_precision_halves_what_travels(running: Fleet) -> None:
    """The model of such a run is near to the exact one, in the same dtype, and the run says so."""
    before = traffic(running)
    exact_events = await run(running, LARGE, "exact", rounds=2, compare=True)
    between = traffic(running)
    half_events = await run(running, LARGE, "half", config=HALF, rounds=2, compare=True)
    after = traffic(running)
    assert half_events[-1].kind is exact_events[-1].kind is EventKind.FINISHED
    ratio = (after - between) / (between - before)
    assert (ratio > 0.45).all()
    assert (ratio < 0.6).all()
    exact, half = model(running, "exact"), model(running, "half")
    assert exact.dtype == half.dtype == np.float32
    np.testing.assert_allclose(half, exact, atol=2e-3)
    assert not np.array_equal(half, exact)
    assert not np.array_equal(half, half.astype(np.float16)), "the aggregator's own model is not rounded"
    for kind in (EventKind.SENT, EventKind.REPLY):
        sizes = [sum(one.size for one in events if one.kind is kind) for events in (exact_events, half_events)]
        assert sizes[1] == pytest.approx(sizes[0] / 2, rel=0.02)
    assert notes(half_events) == ["models travel in half precision"]
    assert notes(exact_events) == []
    assert [event.model for event in half_events if event.kind is EventKind.SCORE] == [
        event.model for event in exact_events if event.kind is EventKind.SCORE
    ]


async def test_an_exact_run_may_say_so(running: Fleet) -> None:
    events = await run(running, LARGE, "said-exact", config='wire-precision = "exact"', rounds=2)
    np.testing.assert_array_equal(model(running, "said-exact"), model(running, "exact"))
    assert notes(events) == []


@pytest.mark.parametrize("value", ['"hlaf"', "16", "true"])
async def test_another_precision_fails_the_run_at_once(running: Fleet, value: str) -> None:
    events = await run(running, SERVER, f"precision-{value.strip(chr(34))}", config=f"wire-precision = {value}")
    (only,) = events
    assert only.kind is EventKind.FAILED
    assert only.text.startswith("the app's config has wire-precision = ")
    assert only.text.endswith("; it may be 'exact' or 'half'")


async def test_a_model_beyond_half_precision_is_not_sent(running: Fleet) -> None:
    events = await run(running, SERVER.replace("np.zeros((2, 3)", "np.full((2, 3), 1e5"), "too-large", config=HALF)
    assert events[-1].kind is EventKind.FAILED
    assert events[-1].text == (
        "array 'weight' has values beyond half precision, which ends at 65504; use wire-precision = exact"
    )
    assert not any(event.kind is EventKind.SENT for event in events)


async def test_an_answer_beyond_half_precision_is_left_out(running: Fleet) -> None:
    """The other site's stands alone: halfway between 0 and its target."""
    train = "if target == 3:\n    weight = weight * np.float32(1e6)"
    events = await run(running, SERVER, "one-too-large", train=train, config=HALF)
    (text,) = [event.text for event in events if event.kind is EventKind.REPLY and event.text]
    assert text == (
        "site's answer left out: array 'weight' has an infinite value; "
        "half precision, which ends at 65504, may be the cause"
    )
    np.testing.assert_array_equal(model(running, "one-too-large"), np.full((2, 3), 0.5, np.float32))


async def test_sites_that_do_not_come_are_named(tmp_path: Path) -> None:
    async with fleet(tmp_path) as it:
        (absent,) = await it.register(it.admit("absent"))
        superlink = SuperLink(await it.backend.start(PROJECT))
        flower_run_id = await superlink.start_run(averaging_app(), {})
        spec = ServerAppSpec("r1", flower_run_id, (absent,), 1, False, 0.5)
        await it.backend.start_serverapp(PROJECT, spec)
        events = await it.end_of_run()
        assert (events[0].kind, events[0].text) == (EventKind.WAITING, str(absent))
        assert events[-1].text == f"not all sites connected within 0.5 s; missing: {absent}"


async def test_a_run_stopped_at_the_superlink_ends_as_stopped(running: Fleet) -> None:
    app = averaging_app("import time\ntime.sleep(3)")
    members = list(running.members.values())
    for member in members:
        member.approve(app)
    flower_run_id = await running.start_run(app, members, rounds=3, run_id="stopped")
    await running.events(lambda event: event.kind is EventKind.SENT, "stopped")
    await SuperLink(await running.backend.start(PROJECT)).stop_run(flower_run_id)
    events = await running.end_of_run("stopped")
    assert (events[-1].kind, events[-1].text) == (EventKind.FAILED, "the run was stopped")
