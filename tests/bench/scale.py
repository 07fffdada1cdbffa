"""Many nodes in a project, many projects at once: whether all finish, what it takes, and whether pages stay quick."""

from __future__ import annotations

import asyncio
import contextlib
import math
import statistics
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import asdict
from pathlib import Path

import psutil

from examples.demo.browser import Browser, StepError
from tests.bench import fleet, hub
from tests.bench.hub import Hub, Project, Run, RunFailed
from tests.bench.processes import Watched, watched
from tests.bench.rows import Row
from tests.bench.workload import TINY, Workload

NODES, PROJECTS, SITES_OF_EACH = 50, 20, 3
ROUNDS, ROUNDS_WITH_PAGES = 10, 40  # pages: some hundred looks at each, so that the 99th percentile is not the worst
PAGE_GOAL_MS = 200.0
BETWEEN_PAGES_S = 0.02
SAMPLE_S = 0.5
SETTLE_S = 20.0
WHO = "client processes without notebook servers"


async def measured(folder: Path, with_peers: bool) -> AsyncGenerator[Row]:
    """All rows of this module. There are no peers in them."""
    del folder, with_peers
    async with hub.running_hub("scale", NODES) as running:
        one = await hub.new_project(running, "Many nodes", _of(NODES), running.people)
        yield await _together(running, [one], f"{NODES} nodes ({WHO}) in one project", ROUNDS)
        many = [
            await hub.new_project(running, f"Project {number}", _of(SITES_OF_EACH), _people(running, number))
            for number in range(PROJECTS)
        ]
        pages = Pages(running.people[1])
        name = f"{PROJECTS} projects at once, {SITES_OF_EACH} nodes each ({WHO})"
        yield await _together(running, many, name, ROUNDS_WITH_PAGES, pages)
        for row in pages.rows():
            yield row
        yield await _left(running, [one, *many])


def _of(sites: int) -> Workload:
    return Workload(TINY.title, TINY.kind, sites=sites)


def _people(running: Hub, number: int) -> Sequence[Browser]:
    """No two projects have the same owner."""
    return [running.people[(SITES_OF_EACH * number + one) % NODES] for one in range(SITES_OF_EACH)]


class Pages:
    """Somebody who opens pages one after the other, and looks at the clock."""

    def __init__(self, person: Browser) -> None:
        self._person = person
        self._paths = {
            "Hub's home": "/hub/home",
            "projects page": "/services/federation/",
            "api/projects": "/services/federation/api/projects",
        }
        self._seconds: dict[str, list[float]] = {name: [] for name in self._paths}
        self._errors = 0

    async def look(self) -> None:
        """Until cancelled."""
        while True:
            for name, path in self._paths.items():
                begun = time.perf_counter()
                answer = await self._person.http.get(path)
                self._seconds[name].append(time.perf_counter() - begun)
                self._errors += answer.is_error
                await asyncio.sleep(BETWEEN_PAGES_S)

    def rows(self) -> list[Row]:
        return [
            Row(
                f"99th percentile of {name} while {PROJECTS} projects run",
                "ms",
                [1000 * _percentile(seconds, 0.99)],
                PAGE_GOAL_MS,
                note=f"{len(seconds)} times, median {1000 * statistics.median(seconds):.0f} ms, {self._errors} errors",
                raw={"seconds": seconds},
            )
            for name, seconds in self._seconds.items()
        ]


async def _together(
    running: Hub, projects: Sequence[Project], name: str, rounds: int, pages: Pages | None = None
) -> Row:
    """Run all projects at once; the row counts those that did not finish."""
    parts = [part for project in projects for part in await fleet.assignments(running, project)]
    with fleet.clients(running, parts):
        for project in projects:
            await hub.all_ready(project)
        looking = asyncio.create_task(pages.look()) if pages else None
        with watched(lambda: [running.service, *running.aggregators()], SAMPLE_S) as seen:
            outcomes = await asyncio.gather(*(_outcome(project, rounds) for project in projects))
        if looking:
            looking.cancel()
            await asyncio.wait({looking})
    failures = [outcome for outcome in outcomes if isinstance(outcome, str)]
    return Row(
        f"{name}, {TINY.title}, {rounds} rounds",
        "not finished",
        [len(failures)],
        0,
        note="; ".join([*_said_of(seen, outcomes), *failures[:1]]),
        raw={
            "memory": asdict(seen),
            "failures": failures,
            "run_seconds": [outcome.seconds for outcome in outcomes if isinstance(outcome, Run)],
        },
    )


async def _outcome(project: Project, rounds: int) -> Run | str:
    try:
        return await hub.run(project, rounds)
    except (RunFailed, StepError) as error:
        return str(error)


def _said_of(seen: Watched, outcomes: Sequence[Run | str]) -> list[str]:
    longest = max((outcome.seconds for outcome in outcomes if isinstance(outcome, Run)), default=math.nan)
    return [
        f"the longest took {longest:.1f} s",
        f"service and aggregators: {seen.most} processes, {seen.peak / 1e9:.2f} GB",
        f"{seen.processor:.0f} s of processor in {seen.seconds:.0f} s",
    ]


async def _left(running: Hub, projects: Sequence[Project]) -> Row:
    """Processes of projects in which nothing runs any more; they have a while to end."""
    deadline = time.monotonic() + SETTLE_S
    while (found := _of_projects(running, projects)) and time.monotonic() < deadline:  # noqa: ASYNC110 - no event tells
        await asyncio.sleep(SAMPLE_S)
    shared = len(running.aggregators()) - len(found)
    return Row(
        f"processes of {len(projects)} idle projects",
        "processes",
        [len(found)],
        0,
        note=f"and {shared} beside the service for all projects together",
        raw={"commands": found},
    )


def _of_projects(running: Hub, projects: Sequence[Project]) -> list[str]:
    """Command lines of processes that name a project there or by the folder in which they work."""
    found = []
    for pid in running.aggregators():
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            text = " ".join([*process.cmdline(), process.cwd()])
            if any(project.id in text for project in projects):
                found.append(text)
    return found


def _percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, math.ceil(share * len(values)) - 1)]
