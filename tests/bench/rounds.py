"""What a round costs beside its training, and a short run from start to end: ours, NVFlare's and stock Flower's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

from tests.bench import flower, hub, nvflare_poc
from tests.bench.hub import Hub, Project, Run
from tests.bench.peers import NotInstalled
from tests.bench.rows import Peer, Row
from tests.bench.timings import overheads
from tests.bench.workload import MEDIUM, SMALL, Workload

OVERHEAD_GOAL_S = 0.1
BELOW_NVFLARE, BELOW_FLOWER = 20, 200
RUN_BELOW_NVFLARE = 6
OUR_ROUNDS, SHORT_ROUNDS, FLOWER_ROUNDS = 10, 5, 6
REPEATED = 3
SITES = 3


async def measured(folder: Path, with_peers: bool) -> AsyncGenerator[Row]:
    """All rows of this module. `folder`: for files of the peers; it does not exist yet."""
    folder.mkdir(parents=True)
    async with hub.running_hub("rounds", SITES) as running:
        await hub.start_servers(running.people)
        small = await _ready(running, SMALL)
        short = [await hub.run(small, SHORT_ROUNDS) for _ in range(REPEATED)]
        runs = {SMALL.title: await hub.run(small, OUR_ROUNDS)}
        medium = await _ready(running, MEDIUM)
        runs[MEDIUM.title] = await hub.run(medium, OUR_ROUNDS)
    theirs: dict[str, list[Peer]] = {SMALL.title: [], MEDIUM.title: [], "short": []}
    if with_peers:
        await asyncio.to_thread(_nvflare, folder / "nvflare", theirs)
        await asyncio.to_thread(_flower, folder / "flower", theirs)
    for workload in (SMALL, MEDIUM):
        yield _overhead_row(workload, runs[workload.title], theirs[workload.title])
    yield Row(
        f"{SHORT_ROUNDS} rounds of the {SMALL.title}, start to finished, {SITES} sites ready",
        values=[one.seconds for one in short],
        peers=theirs["short"],
    )


async def _ready(running: Hub, workload: Workload) -> Project:
    project = await hub.new_project(running, workload.title, workload, running.people)
    await hub.all_ready(project)
    return project


def _overhead_row(workload: Workload, run: Run, peers: Sequence[Peer]) -> Row:
    sites = run.site_rounds()
    return Row(
        f"overhead of a round, {workload.title}, {SITES} sites",
        values=overheads(sites),
        goal=OVERHEAD_GOAL_S,
        peers=peers,
        note="train + evaluate; round time less the time inside both",
        raw={"sites": sites, "run_seconds": run.seconds},
    )


def _nvflare(folder: Path, rows: dict[str, list[Peer]]) -> None:
    folder.mkdir()
    jobs = [*[SMALL.with_rounds(SHORT_ROUNDS)] * 2, MEDIUM.with_rounds(SHORT_ROUNDS)]
    name, goals = nvflare_poc.NAME, {SMALL.title: BELOW_NVFLARE, MEDIUM.title: BELOW_NVFLARE}
    try:
        *small, medium = nvflare_poc.run_jobs(folder, jobs)
    except (NotInstalled, nvflare_poc.NVFlareFailed) as error:
        for title, goal in {**goals, "short": RUN_BELOW_NVFLARE}.items():
            rows[title].append(Peer(name, ratio_goal=goal, not_run=str(error)))
        return
    of_small = [value for one in small for value in overheads(one.sites)]
    rows[SMALL.title].append(Peer(name, of_small, BELOW_NVFLARE))
    rows[MEDIUM.title].append(Peer(name, overheads(medium.sites), BELOW_NVFLARE))
    rows["short"].append(Peer(name, [one.seconds for one in small], RUN_BELOW_NVFLARE))


def _flower(folder: Path, rows: dict[str, list[Peer]]) -> None:
    name = flower.NAME
    try:
        with flower.running_flower(folder, SITES) as running:
            small = running.run(SMALL.with_rounds(SHORT_ROUNDS))
            rows[SMALL.title].append(Peer(name, overheads(small.sites), BELOW_FLOWER))
            rows["short"].append(Peer(name, [small.seconds]))
            medium = running.run(MEDIUM.with_rounds(FLOWER_ROUNDS))
            rows[MEDIUM.title].append(Peer(name, overheads(medium.sites), BELOW_FLOWER))
    except flower.FlowerFailed as error:
        for title, goal in ((SMALL.title, BELOW_FLOWER), (MEDIUM.title, BELOW_FLOWER), ("short", None)):
            if all(peer.name != name for peer in rows[title]):
                rows[title].append(Peer(name, ratio_goal=goal, not_run=str(error)))
