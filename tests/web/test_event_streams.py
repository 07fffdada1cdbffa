"""Live pages: what changes is sent, to those who may see it, for as long as they may."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from hub_service.changes import project_topic
from hub_service.web import events
from hub_service.web.pages.view import SECTIONS
from tests.fakes.web_world import World


async def received(response: httpx.Response) -> AsyncIterator[tuple[str, Any]]:
    """Events as (kind, data); a comment as ("", text)."""
    kind = ""
    async for line in response.aiter_lines():
        if line.startswith(":"):
            yield "", line
        elif line.startswith("event: "):
            kind = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield kind, json.loads(line.removeprefix("data: "))


async def until(stream: AsyncIterator[tuple[str, Any]], kind: str, name: str = "") -> Any:
    async with asyncio.timeout(20):
        async for got, data in stream:
            if got == kind and (not name or data["id"] == name):
                return data
    raise AssertionError(f"the stream ended before {kind} {name}")


async def test_a_page_gets_each_section_and_then_what_changes(world: World) -> None:
    project_id = world.project()
    async with world.browser("ada") as browser:
        page = (await browser.get(f"projects/{project_id}")).text
        async with browser.stream("GET", f"projects/{project_id}/events") as response:
            assert response.headers["content-type"] == "text/event-stream"
            stream = received(response)
            first = {}
            for _ in SECTIONS:
                kind, data = await anext(stream)
                assert kind == "section"
                first[data["id"]] = data
            assert set(first) == set(SECTIONS)
            # The page shows them already.
            assert all(f'data-digest="{one["digest"]}"' in page for one in first.values())

            world.add_app(project_id)
            changed = await until(stream, "section", "versions")
            assert "Version 1: model" in changed["html"]
            world.coordinator.join(world.principal("ada"), project_id, "slides")
            assert "North Hospital" in (await until(stream, "section", "participants"))["html"]


async def test_the_curve_follows_the_rounds(world: World, tmp_path: Path) -> None:
    project_id, _ = await world.shared_project()
    run_id = world.start_run(project_id)
    async with world.browser("ben") as browser:
        await browser.get("")
        async with browser.stream("GET", f"projects/{project_id}/events") as response:
            stream = received(response)
            await until(stream, "section", "runs")
            for number in (1, 2):
                world.report_round(project_id, run_id, number)
                figure = await until(stream, "figure")
                assert [trace["name"] for trace in figure["data"]] == ["North Hospital", "South Clinic", "All sites"]
                assert figure["data"][0]["x"] == list(range(1, number + 1))
            world.finish_run(project_id, run_id, b"weights", tmp_path)
            assert "North Hospital alone" in (await until(stream, "section", "result"))["html"]


async def test_a_script_gets_the_contracts_types(world: World) -> None:
    project_id, _ = await world.shared_project()
    run_id = world.start_run(project_id)
    world.report_round(project_id, run_id, 1)
    async with world.api("ben") as api, api.stream("GET", f"api/projects/{project_id}/events") as response:
        stream = received(response)
        assert (await until(stream, "project"))["id"] == project_id
        assert (await until(stream, "run"))["summary"]["id"] == run_id
        assert (await until(stream, "figure"))["data"]


async def test_the_stream_ends_for_who_is_removed(world: World) -> None:
    project_id, _ = await world.shared_project()
    async with world.api("ben") as api, api.stream("GET", f"api/projects/{project_id}/events") as response:
        stream = received(response)
        await until(stream, "project")
        world.coordinator.remove_member(world.principal("ada"), project_id, "ben")
        assert await until(stream, "gone") == {}
        async with asyncio.timeout(20):
            assert [event async for event in stream] == []


async def test_a_quiet_stream_says_that_it_is_there(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events.EventStream, "heartbeat_s", 0.01)
    project_id = world.project()
    async with world.api("ada") as api, api.stream("GET", f"api/projects/{project_id}/events") as response:
        stream = received(response)
        await until(stream, "project")
        async with asyncio.timeout(20):
            assert await anext(stream) == ("", ": still here")


async def test_a_stream_ends_so_that_the_login_is_proved_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "LONGEST_STREAM_S", 0.05)
    monkeypatch.setattr(events.EventStream, "heartbeat_s", 0.01)
    project_id = world.project()
    async with world.api("ada") as api, api.stream("GET", f"api/projects/{project_id}/events") as response:
        async with asyncio.timeout(20):
            kinds = [kind async for kind, _ in received(response)]
    assert kinds[0] == "project"
    assert "gone" not in kinds


async def eventually(holds: Callable[[], bool]) -> None:
    """Let the event loop go on until something holds, which nothing tells of."""
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_a_viewer_who_goes_leaves_nothing_waiting(world: World) -> None:
    project_id = world.project()
    waiting = world.changes._waiting
    async with world.api("ada") as api:
        async with api.stream("GET", f"api/projects/{project_id}/events") as response:
            await until(received(response), "project")
            await eventually(lambda: len(waiting.get(project_topic(project_id), ())) == 1)
        await eventually(lambda: project_topic(project_id) not in waiting)


@pytest.mark.parametrize(
    ("looked_s", "followers", "pause"),
    [
        (0.001, 1, events.SHORTEST_PAUSE_S),
        (0.010, 20, events.LONGEST_PAUSE_S),
        (0.004, 25, 0.4),
        (5.0, 1, events.LONGEST_PAUSE_S),
    ],
)
def test_the_more_look_the_longer_each_pauses(looked_s: float, followers: int, pause: float) -> None:
    assert events.pause_s(looked_s, followers) == pytest.approx(pause)


async def test_who_follows_is_counted_until_they_go(world: World) -> None:
    project_id = world.project()
    async with world.browser("ada") as browser:
        await browser.get(f"projects/{project_id}")
        async with browser.stream("GET", f"projects/{project_id}/events") as response:
            stream = received(response)
            await anext(stream)
            assert world.changes.followers == 1
        async with asyncio.timeout(10):
            while world.changes.followers:  # noqa: ASYNC110 - the service has noticed
                await asyncio.sleep(0.01)
