"""A run while it goes, as members see it: activity, curves to choose from, and the ServerApp's log."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from federator.contract import Route, RunStatus
from plotly import graph_objects as go

from hub_service.domain.runs import EventKind, RunEvent
from hub_service.site_stages import Stage
from hub_service.web.templating import time_left
from tests.fakes.web_world import World, path
from tests.web.test_event_streams import received, until


def report(world: World, run_id: str, *events: RunEvent) -> None:
    world.store.add_events(run_id, list(events))


def message(kind: EventKind, node_id: int, number: int, message_type: str = "train", **fields: Any) -> RunEvent:
    return RunEvent(
        kind, float(number), "federated", number, message_type, node_id, size=fields.pop("size", 2048), **fields
    )


async def ask(world: World, name: str, route: Route, run_id: str, **query: Any) -> Any:
    async with world.api(name) as api:
        response = await api.get(path(route, run_id=run_id), params=query)
        return response.status_code, response.json()


async def test_members_see_what_each_site_does(world: World) -> None:
    project_id, _ = await world.shared_project()
    run_id = world.start_run(project_id)
    report(world, run_id, message(EventKind.SENT, 10, 1), message(EventKind.SENT, 11, 1))
    world.coordinator.node_moved(world.participation(project_id, "ada"), Stage.SENDING)
    world.coordinator.node_cut_off(world.participation(project_id, "ben"))
    _, run = await ask(world, "ben", Route.RUN, run_id)
    states = {one["site"]: (one["state"], one["task"], one["bytes_in"]) for one in run["activity"]}
    assert states == {"north": ("sending", "train", 2048), "south": ("computing", "train", 2048)}
    async with world.browser("ben") as browser:
        page = (await browser.get(f"projects/{project_id}")).text
    assert "sending" in page
    assert "4.0 KB to the sites, 0 bytes from them" in page


async def test_each_step_of_a_message_is_told_to_the_page(world: World) -> None:
    project_id, _ = await world.shared_project()
    run_id = world.start_run(project_id)
    report(world, run_id, message(EventKind.SENT, 10, 1))
    participation = world.participation(project_id, "ada")
    async with world.api("ben") as api, api.stream("GET", f"api/projects/{project_id}/events") as response:
        stream = received(response)
        await until(stream, "run")
        for stage in (Stage.RECEIVING, Stage.SENDING, Stage.ANSWERED):
            world.coordinator.node_moved(participation, stage)
            run = await until(stream, "run")
            assert run["activity"][0]["state"] == {"answered": "waiting"}.get(stage, stage)


async def test_a_sites_error_is_shown_with_the_site_and_its_cause(world: World) -> None:
    project_id, _ = await world.shared_project()
    run_id = world.start_run(project_id)
    cause = "ValueError: 3 classes, not <2> (train.py:12)"
    report(world, run_id, message(EventKind.SENT, 11, 1), message(EventKind.REPLY, 11, 1, text=cause, size=0))
    _, run = await ask(world, "ada", Route.RUN, run_id)
    assert [(one["state"], one["detail"]) for one in run["activity"]] == [("waiting", ""), ("failed", cause)]
    assert [one["error"] for one in run["rounds"][0]["sites"] if one["site"] == "south"] == [cause]
    async with world.browser("ada") as browser:
        page = (await browser.get(f"projects/{project_id}")).text
    assert page.count("ValueError: 3 classes, not &lt;2&gt; (train.py:12)") == 2
    assert "<2>" not in page


async def test_every_metric_can_be_chosen(world: World) -> None:
    project_id, _ = await world.shared_project()
    run_id = world.start_run(project_id)
    status, answer = await ask(world, "ben", Route.RUN_FIGURES, run_id)
    assert (status, answer) == (200, {"metric": "", "metrics": [], "figure": None})
    world.report_round(project_id, run_id, 1)
    report(world, run_id, message(EventKind.REPLY, 10, 1, metrics={"loss": 0.25}, seconds=2.0))
    _, answer = await ask(world, "ben", Route.RUN_FIGURES, run_id)
    offered = {one["key"]: one["title"] for one in answer["metrics"]}
    assert list(offered) == [
        "evaluate/accuracy",
        "evaluate/loss",
        "train/loss",
        "work/seconds",
        "work/bytes-in",
        "work/bytes-out",
    ]
    assert answer["metric"] == "evaluate/accuracy"
    for asked, shown, values in (
        ("loss", "evaluate/loss", ([1.0], [1.0], [1.0])),
        ("train/loss", "train/loss", ([0.25], [], [0.25])),
        ("work/seconds", "work/seconds", ([2.5], [0.5])),
        ("no such", "evaluate/accuracy", ([0.65], [0.68], [pytest.approx(0.665, abs=0.001)])),
    ):
        _, answer = await ask(world, "ben", Route.RUN_FIGURES, run_id, metric=asked)
        assert answer["metric"] == shown
        assert tuple(trace["y"] for trace in answer["figure"]["data"]) == values
        go.Figure(answer["figure"])  # raises for anything that Plotly does not know


async def test_a_stream_follows_the_chosen_metric(world: World) -> None:
    project_id, _ = await world.shared_project()
    run_id = world.start_run(project_id)
    address = f"api/projects/{project_id}/events"
    async with world.api("ben") as api, api.stream("GET", address, params={"metric": "loss"}) as response:
        stream = received(response)
        await until(stream, "run")
        for number in (1, 2):
            world.report_round(project_id, run_id, number)
            figure = await until(stream, "figure")
            assert figure["layout"]["meta"]["metric"] == "evaluate/loss"
            assert figure["data"][0]["y"] == [1.0 / one for one in range(1, number + 1)]


async def test_training_is_shown_where_the_app_does_not_evaluate(world: World) -> None:
    project_id, _ = await world.shared_project()
    run_id = world.start_run(project_id)
    report(world, run_id, message(EventKind.REPLY, 10, 1, metrics={"loss": 0.5}))
    _, answer = await ask(world, "ben", Route.RUN_FIGURES, run_id)
    assert answer["figure"] is None  # an evaluation may follow
    report(world, run_id, message(EventKind.SENT, 10, 2))
    _, answer = await ask(world, "ben", Route.RUN_FIGURES, run_id)
    assert answer["metric"] == "train/loss"
    assert answer["figure"]["layout"]["yaxis"]["title"]["text"] == "Loss in training"


async def test_members_read_the_log_without_what_is_the_machines(world: World) -> None:
    project_id, _ = await world.shared_project()
    run_id = world.start_run(project_id)
    assert await ask(world, "ben", Route.RUN_LOG, run_id) == (200, {"text": "", "start": 0, "end": 0})
    world.logs[run_id] = b'node 11 sent <b>\nFile "/srv/state/app/server.py", line 3 at 10.0.0.7:9092\nhalf a l'
    _, answer = await ask(world, "ben", Route.RUN_LOG, run_id)
    assert answer["text"] == 'south sent <b>\nFile "…/server.py", line 3 at [address]\n'
    world.logs[run_id] += b"ine\n"
    _, more = await ask(world, "ben", Route.RUN_LOG, run_id, after=answer["end"])
    assert (more["text"], more["start"]) == ("half a line\n", answer["end"])
    for wrong in ("-1", "many", "1e300"):
        status, problem = await ask(world, "ben", Route.RUN_LOG, run_id, after=wrong)
        assert (status, problem["code"]) == (400, "invalid")


async def test_a_run_that_has_ended_has_no_activity(world: World) -> None:
    project_id, _ = await world.shared_project()
    run_id = world.start_run(project_id)
    world.report_round(project_id, run_id, 1)
    run = world.store.run(run_id)
    assert run is not None
    world.coordinator.stop_run(world.principal("ada"), run_id)
    _, going = await ask(world, "ben", Route.RUN, run_id)
    assert going["activity"]
    world.store.put_run(replace(run, status=RunStatus.STOPPED))
    _, ended = await ask(world, "ben", Route.RUN, run_id)
    assert (ended["activity"], ended["seconds_left"], ended["bytes_out"]) == ([], None, 4096)
    assert json.dumps(ended)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "a few seconds left"),
        (34, "about 30 s left"),
        (89, "about 90 s left"),
        (91, "about 2 min left"),
        (5390, "about 1 h 30 min left"),
        (9000, "about 2 h 30 min left"),
    ],
)
def test_an_estimate_is_no_more_exact_than_it_is(seconds: float, words: str) -> None:
    assert time_left(seconds) == words
