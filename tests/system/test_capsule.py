"""A run of ours, exported as a capsule, and reproduced from it by stock Flower over the same folders."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import zipfile
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import packages_distributions
from pathlib import Path

import numpy as np
import pytest
from federator.contract import ClientState, RunStatus
from safetensors.numpy import load_file

from hub_service.aggregators.base import ServerAppSpec
from hub_service.aggregators.events import MODEL_FILE
from hub_service.aggregators.superlink import SuperLink
from hub_service.apps.build import AppBuilder, BuiltApp
from hub_service.artifacts import Artifacts
from hub_service.domain.projects import AppVersion, Project
from hub_service.domain.runs import EventKind, Run, RunEvent, RunTarget
from hub_service.results.capsule import Capsule
from hub_service.results.signing import SigningKey
from hub_service.run_views import record, run_config, run_detail
from tests.fakes.fleet import PROJECT, Fleet, fleet
from tests.fakes.seeded_app import seeded_app

ROUNDS = 2
WITHIN_S = 400.0
SEED = 5
SITES = ("a", "b", "c")
NOW = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each site. This app makes its data from its seed and the site's name: nodes here share a process."""
    folder = tmp_path_factory.mktemp("data")
    for site in SITES:
        (folder / site).mkdir()
    return folder


def built_app() -> BuiltApp:
    return AppBuilder(frozenset(packages_distributions())).build("seeded.zip", seeded_app())


@pytest.fixture(scope="module")
async def capsule(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The capsule of a run of ours, unpacked."""
    folder = tmp_path_factory.mktemp("capsule")
    built = built_app()
    async with fleet(tmp_path_factory.mktemp("ours")) as it:
        for site in SITES:
            member = it.admit(site)
            member.approve(built.fab)
            member.start(it.address, it.folder)
            await member.reaches(ClientState.READY)
        await start(it, built, folder)
        events = await it.end_of_run()
        assert events[-1].kind is EventKind.FINISHED, events[-1].text
        written = capsule_of(it, built, events, folder)
    with zipfile.ZipFile(written) as archive:
        archive.extractall(folder)
    return folder


def config(result: Path) -> dict[str, str | int | bool]:
    """FedAvg as it is, so that the model depends on the order of the replies."""
    return {"num-server-rounds": ROUNDS, "seed": SEED, "sorted": False, "result": str(result)}


async def start(it: Fleet, built: BuiltApp, folder: Path) -> None:
    nodes = await it.register(*it.members.values())
    superlink = SuperLink(await it.backend.start(PROJECT))
    flower_run_id = await superlink.start_run(built.fab, config(folder / "ours.npz"))
    await it.backend.start_serverapp(PROJECT, ServerAppSpec("r1", flower_run_id, nodes, ROUNDS, False, 30.0))


def capsule_of(it: Fleet, built: BuiltApp, events: Sequence[RunEvent], folder: Path) -> Path:
    """As the service makes it."""
    artifacts = Artifacts(folder / "artifacts")
    sha256, size = artifacts.put_model(it.backend.run_folder(PROJECT, "r1") / MODEL_FILE)
    nodes = {str(member.node_id): name for name, member in it.members.items()}
    run = Run(
        id="r1",
        project_id=PROJECT,
        number=1,
        fab_hash=built.fab_hash,
        rounds=ROUNDS,
        compare=False,
        target=RunTarget.FINISHED,
        status=RunStatus.FINISHED,
        phase="",
        message="",
        started_by="anna",
        sites={name: name for name in it.members},
        created_at=NOW,
        finished_at=NOW,
        model_sha256=sha256,
        model_size=size,
        model_round=ROUNDS,
        nodes=nodes,
    )
    app = AppVersion(
        project_id=PROJECT,
        number=1,
        fab_hash=built.fab_hash,
        title=built.title,
        source=built.source,
        created_by="anna",
        created_at=NOW,
        size=len(built.fab),
        cells=built.cells,
        files=built.files,
        imports=built.imports,
    )
    project = Project(PROJECT, "Aspirates", "", "anna", NOW)
    states = record(project, run, app, [], run_detail(run, 1, events))
    signed = SigningKey.new().sign(states, sha256)
    path = folder / "capsule.zip"
    with path.open("wb") as file:
        Capsule(
            built.fab, artifacts.model(sha256), signed, SITES, run_config(run, app) | config(folder / "stock.npz")
        ).write(file)
    return path


async def reproduce(capsule: Path, *arguments: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(capsule / "reproduce.py"),
        *arguments,
        env={**os.environ, "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.05"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(WITHIN_S):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    return process.returncode or 0, output.decode()


async def test_stock_flower_comes_to_the_same_model_bit_for_bit(capsule: Path, data: Path) -> None:
    """The sites are named in another order than that in which they took part: they are recognised."""
    status, said = await reproduce(capsule, *(f"{site}={data / site}" for site in reversed(SITES)))
    assert "The same model, bit for bit" in said, said
    assert status == 0


async def test_a_model_that_differs_is_told_with_the_largest_difference(capsule: Path) -> None:
    recorded = load_file(capsule / "model.safetensors")
    made = {name: values.copy() for name, values in recorded.items()}
    name = next(one for one, values in made.items() if values.ndim)
    made[name].flat[0] += 0.25
    result = capsule / "changed.npz"
    np.savez(result, *made.values(), names=np.array(list(made)))
    status, said = await reproduce(capsule, "--compare", str(result))
    assert status == 1
    assert "the largest difference is 0.25" in said
    assert name in said


async def test_a_capsule_asks_for_the_folder_of_each_site(capsule: Path, data: Path) -> None:
    status, said = await reproduce(capsule, f"{SITES[0]}={data / SITES[0]}")
    assert status == 2
    assert all(site in said for site in SITES)


def test_the_approved_code_is_in_the_capsule_as_it_was(capsule: Path) -> None:
    built = built_app()
    for file in built.files:
        kept = "approved-pyproject.toml" if file.path == "pyproject.toml" else file.path
        assert (capsule / "app" / kept).read_text() == file.text
    assert json.loads((capsule / "capsule.json").read_text())["sites"] == list(SITES)
