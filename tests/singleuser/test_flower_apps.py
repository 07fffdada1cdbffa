"""Flower apps that import nothing of ours: handed in as zip files, run to their end, with each site's curves."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from federator.contract import ClientState, Round, RunStatus
from safetensors.numpy import load_file

from hub_service import starters
from hub_service.aggregators.base import ServerAppSpec
from hub_service.aggregators.events import MODEL_FILE
from hub_service.aggregators.superlink import SuperLink
from hub_service.apps.build import AppBuilder, BuiltApp
from hub_service.domain.runs import EventKind, Run, RunEvent, RunTarget
from hub_service.run_views import rounds
from tests.fakes.fleet import PROJECT, Fleet, fleet
from tests.fakes.stock_apps import APPS, NAMES, write_table, zipped

SITES = ("north", "south", "harbour")


def build(name: str) -> BuiltApp:
    return AppBuilder(frozenset({"numpy"})).build(f"{name}.zip", zipped(name))


@pytest.fixture(scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    """Three sites with their data, which serve one app after the other."""
    async with fleet(tmp_path_factory.mktemp("apps")) as it:
        for seed, name in enumerate(SITES):
            member = it.admit(name)
            member.more_config = {"dataset-path": str(write_table(it.folder / name, seed))}
            member.start(it.address, it.folder)
        yield it


async def run_to_its_end(it: Fleet, app: BuiltApp, run_id: str) -> tuple[list[RunEvent], dict[str, str]]:
    """Events of the run, and which node is which site's."""
    members = list(it.members.values())
    for member in members:
        member.approve(app.fab)
    nodes = await it.register(*members)
    superlink = SuperLink(await it.backend.start(PROJECT))
    flower_run_id = await superlink.start_run(app.fab, {})
    count = int(app.config["num-server-rounds"])
    await it.backend.start_serverapp(PROJECT, ServerAppSpec(run_id, flower_run_id, nodes, count, False, 30.0))
    return await it.end_of_run(run_id), dict(zip(map(str, nodes), SITES, strict=True))


def live_rounds(events: list[RunEvent], nodes: dict[str, str]) -> tuple[Round, ...]:
    """What the project's page and a notebook show, from what the aggregator has reported."""
    run = Run(
        id="r1",
        project_id=PROJECT,
        number=1,
        fab_hash="f" * 64,
        rounds=9,
        compare=False,
        target=RunTarget.FINISHED,
        status=RunStatus.RUNNING,
        phase="",
        message="",
        started_by="ada",
        sites={name: name for name in SITES},
        created_at=datetime(2026, 3, 1, tzinfo=UTC),
        finished_at=None,
        model_sha256="",
        model_size=0,
        model_round=0,
        nodes=nodes,
    )
    return rounds(run, events)


@pytest.mark.parametrize("name", NAMES)
async def test_it_runs_to_its_end_with_the_curves_of_each_site(running: Fleet, name: str) -> None:
    app = build(name)
    assert "federator" not in " ".join(file.text for file in app.files)
    events, nodes = await run_to_its_end(running, app, name)
    model = load_file(running.backend.run_folder(PROJECT, name) / MODEL_FILE)
    assert all(member.states[-1][0] is not ClientState.FAILED for member in running.members.values())
    assert events[-1].kind is EventKind.FINISHED, events[-1].text
    shown = live_rounds(events, nodes)
    assert len(shown) == int(app.config["num-server-rounds"])
    for one in shown:
        assert [site.site for site in one.sites] == list(SITES)
        for site in one.sites:
            assert not site.error
            assert {"loss", "accuracy"} <= set(site.evaluate)
            assert (site.train_examples, site.evaluate_examples) == (80, 40)
            assert 0 < site.bytes_in < 10_000
    assert shown[-1].evaluate["loss"] < shown[0].evaluate["loss"]
    assert shown[-1].evaluate["accuracy"] > 0.65
    assert all(np.isfinite(values).all() and values.any() for values in model.values())
    check = {"decaying-rate": the_rate_falls, "own-loop": lambda *_: None, "mods-and-query": the_mods_and_the_query_ran}
    check[name](events, shown)


def the_rate_falls(_: list[RunEvent], shown: tuple[Round, ...]) -> None:
    rates = [one.train["learning-rate"] for one in shown]
    assert rates == pytest.approx([0.5 * 0.7**number for number in range(len(shown))])


def the_mods_and_the_query_ran(events: list[RunEvent], shown: tuple[Round, ...]) -> None:
    for one in shown:
        for site in one.sites:
            assert 0 < site.train["change"] <= 1.0 + 1e-6
            assert site.train["seconds"] > 0
    asked = [event for event in events if event.kind is EventKind.REPLY and event.message_type == "query"]
    assert [event.examples for event in asked] == [80] * len(SITES)


async def test_an_own_loop_may_end_early(running: Fleet) -> None:
    """With a gain that no round reaches, the second round is its last."""
    files = zipped("own-loop")
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(files)) as before, zipfile.ZipFile(buffer, "w") as after:
        for one in before.namelist():
            after.writestr(one, before.read(one).replace(b"smallest-gain = 0.0001", b"smallest-gain = 10.0"))
    app = AppBuilder(frozenset()).build("own.zip", buffer.getvalue())
    events, nodes = await run_to_its_end(running, app, "early")
    assert events[-1].kind is EventKind.FINISHED, events[-1].text
    assert [one.number for one in live_rounds(events, nodes)] == [1, 2]


async def test_the_forest_of_the_xgboost_starter_grows_over_real_messages(running: Fleet) -> None:
    """Its model is another array each round, empty before the first."""
    content = starters.read("xgboost").replace(b'\\"num-server-rounds\\": 15', b'\\"num-server-rounds\\": 3')
    app = AppBuilder(frozenset({"numpy", "xgboost"})).build("xgboost.ipynb", content)
    events, nodes = await run_to_its_end(running, app, "forest")
    assert events[-1].kind is EventKind.FINISHED, events[-1].text
    shown = live_rounds(events, nodes)
    assert [[site.evaluate["trees"] for site in one.sites] for one in shown] == [[3] * 3, [6] * 3, [9] * 3]
    assert shown[-1].evaluate["loss"] < shown[0].evaluate["loss"]


@pytest.mark.parametrize("name", NAMES)
def test_flower_builds_it_from_its_folder(name: str, tmp_path: Path) -> None:
    """As `flwr build` and `flwr run` do, with the files that our build has."""
    command = (str(Path(sys.executable).parent / "flwr"), "build", "--app", str(APPS / name))
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "FLWR_TELEMETRY_ENABLED": "0"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (fab,) = tmp_path.glob("*.fab")
    ours = {file.path: file.text for file in build(name).files}
    theirs = {file.path: file.text for file in AppBuilder(frozenset()).build("a.fab", fab.read_bytes()).files}
    assert theirs == ours
