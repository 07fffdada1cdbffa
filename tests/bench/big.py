"""Big models: how close to the speed of loopback, and how much memory the aggregator takes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from tests.bench import hub, loopback, nginx, nvflare_poc
from tests.bench.hub import Hub, Run, RunFailed
from tests.bench.peers import NotInstalled
from tests.bench.processes import Watched, watched
from tests.bench.rows import Peer, Row
from tests.bench.timings import overheads
from tests.bench.workload import HUGE, LARGE, Workload

SITES, MORE_SITES = 3, 6
ROUNDS = 12  # the machine goes faster and slower by turns
BELOW_NVFLARE = 4
OF_LOOPBACK = 0.4
MODELS_GOAL = 3.0
HALF = replace(HUGE, title="500 MB model", megabytes=500, layers=10)


async def measured(folder: Path, with_peers: bool) -> AsyncGenerator[Row]:
    """All rows of this module. `folder`: for files of the peers; it does not exist yet."""
    folder.mkdir(parents=True)
    peers = await asyncio.to_thread(_peers, folder, with_peers)
    yield await _large(peers)
    yield await _large_behind_nginx([peer for peer in peers if peer.name == nvflare_poc.NAME])
    async with hub.running_hub("big", MORE_SITES) as running:
        await hub.start_servers(running.people[:SITES])
        yield await _memory(running, HUGE, SITES)
        yield await _memory(running, HALF, SITES)
        await hub.start_servers(running.people[SITES:])
        yield await _memory(running, HALF, MORE_SITES)


def _peers(folder: Path, with_peers: bool) -> list[Peer]:
    """The floor is no other product: it is measured without peers, too."""
    floor = [
        Peer(
            f"plain {client} over loopback",
            loopback.floor(LARGE.megabytes, SITES, ROUNDS, client),
            OF_LOOPBACK if client == loopback.CLIENTS[0] else None,
        )
        for client in loopback.CLIENTS
    ]
    return [_nvflare(folder / "nvflare"), *floor] if with_peers else floor


async def _large(peers: Sequence[Peer]) -> Row:
    run = await _run_large("big-direct", behind_nginx=False)
    return Row(
        f"overhead of a round, {LARGE.title} ({LARGE.layers} arrays), {SITES} sites",
        values=overheads(run.site_rounds()),
        peers=peers,
        note="down, up, and down again to be evaluated; NVFlare's goes down and up once",
        raw={"sites": run.site_rounds(), "run_seconds": run.seconds},
    )


async def _large_behind_nginx(peers: Sequence[Peer]) -> Row:
    name = f"overhead of a round, {LARGE.title}, behind nginx that sends /v1/fleet/ straight to the service"
    if nginx.program() is None:
        return Row(name, not_run="nginx is not installed")
    run = await _run_large("big-nginx", behind_nginx=True)
    return Row(
        name,
        values=overheads(run.site_rounds()),
        peers=peers,
        note=f"{SITES} sites, as above; deploy/nginx.conf without its TLS",
        raw={"sites": run.site_rounds(), "run_seconds": run.seconds},
    )


async def _run_large(name: str, *, behind_nginx: bool) -> Run:
    async with hub.running_hub(name, SITES, behind_nginx=behind_nginx) as running:
        await hub.start_servers(running.people)
        project = await hub.new_project(running, LARGE.title, LARGE, running.people)
        await hub.all_ready(project)
        return await hub.run(project, ROUNDS)


def _nvflare(folder: Path) -> Peer:
    folder.mkdir()
    try:
        (run,) = nvflare_poc.run_jobs(folder, [LARGE.with_rounds(ROUNDS)])
    except (NotInstalled, nvflare_poc.NVFlareFailed) as error:
        return Peer(nvflare_poc.NAME, ratio_goal=BELOW_NVFLARE, not_run=str(error))
    return Peer(nvflare_poc.NAME, overheads(run.sites), BELOW_NVFLARE)


async def _memory(running: Hub, workload: Workload, sites: int) -> Row:
    """The most memory of everything that the service has started, while the run goes on."""
    workload = replace(workload, sites=sites)
    size = f"{workload.title} ({workload.layers} arrays)"
    name = f"aggregator's peak memory, {size}, {sites} sites, {workload.rounds} rounds"
    project = await hub.new_project(running, f"{workload.title}, {sites}", workload, running.people[:sites])
    await hub.all_ready(project)
    with watched(running.aggregators) as seen, watched(lambda: [running.service]) as service:
        try:
            run = await hub.run(project, workload.rounds)
        except RunFailed as error:
            run, failure = None, str(error)
    await hub.leave(running, project)
    raw = {"aggregator": asdict(seen), "service": asdict(service)}
    if run is None:
        return Row(name, "models", goal=MODELS_GOAL, not_run=failure, raw=raw)
    return Row(
        name,
        "models",
        [seen.peak / (workload.megabytes * 10**6)],
        MODELS_GOAL,
        note=_said_of(seen, service, run.seconds),
        raw={**raw, "run_seconds": run.seconds, "overheads": overheads(run.site_rounds())},
    )


def _said_of(seen: Watched, service: Watched, seconds: float) -> str:
    return (
        f"completed in {seconds:.0f} s; {seen.peak / 1e9:.2f} GB not reclaimable ({seen.before / 1e9:.2f} before), "
        f"{seen.peak_rss / 1e9:.2f} GB resident; beside it the service: {service.peak / 1e9:.2f} GB"
    )
