"""How much of a round a GPU computes that the sites share."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch

from tests.bench import hub
from tests.bench.rows import Row
from tests.bench.timings import busy_shares, overheads
from tests.bench.workload import RESNET, Workload

SITES = 3
BYTES_OF_A_SITE = 8 * 10**9  # the model, its gradients and activations of a batch, and what CUDA itself takes


async def measured(folder: Path, with_peers: bool, *, workload: Workload = RESNET) -> AsyncGenerator[Row]:
    """One row; there are no peers in it. A workload of another device is measured on that one."""
    del folder, with_peers
    name = f"share of a round in which the GPU computes, {workload.title}, {workload.seconds:g} s of training a round"
    sites, reason = _sites(workload)
    if not sites:
        yield Row(name, "%", not_run=reason)
        return
    yield await _measured(name, replace(workload, sites=sites))


def _sites(workload: Workload) -> tuple[int, str]:
    """How many sites the device has memory for, and where there is none, why."""
    if not workload.device.startswith("cuda"):
        return SITES, ""
    if not torch.cuda.is_available():
        return 0, "no GPU here"
    free, _ = torch.cuda.mem_get_info()
    room = free // BYTES_OF_A_SITE
    return min(
        SITES, room
    ), f"{free / 1e9:.0f} GB of the GPU's memory are free; a site needs {BYTES_OF_A_SITE / 1e9:.0f}"


async def _measured(name: str, workload: Workload) -> Row:
    async with hub.running_hub("gpu", workload.sites) as running:
        await hub.start_servers(running.people)
        project = await hub.new_project(running, workload.title, workload, running.people)
        await hub.all_ready(project)
        run = await hub.run(project, workload.rounds)
    sites = run.site_rounds()
    return Row(
        f"{name}, {workload.sites} sites",
        "%",
        [100 * share for share in busy_shares(sites)],
        note=f"{_device_name(workload)}, {datetime.now(UTC):%Y-%m-%d}; time in which a site is inside train or "
        "evaluate, the model's way to the GPU and back included",
        raw={"sites": sites, "overheads": overheads(sites), "run_seconds": run.seconds},
    )


def _device_name(workload: Workload) -> str:
    return torch.cuda.get_device_name() if workload.device.startswith("cuda") else workload.device
