"""What came out of a run, through the real routes: as the page shows it, and as a notebook gets it."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import federator
import httpx
import numpy as np
import pytest
from federator import notebook
from federator.contract import ApprovalState, Env, ModelFile, Route, RunStatus
from plotly import graph_objects as go
from safetensors.numpy import save_file

from hub_service.audit import Decision
from hub_service.domain.runs import EventKind, RunEvent
from hub_service.web.results import RunModelHandler
from tests.fakes.web_world import World, path, plain

T = TypeVar("T")

APP = """
import numpy as np

CONFIG = {"seed": 3, "num-server-rounds": 2}


class Mean:
    def __init__(self):
        self.weights = [np.zeros(2)]

    def get_weights(self):
        return self.weights

    def set_weights(self, weights):
        self.weights = [np.array(one) for one in weights]


def build_model():
    return Mean()


def load_data(path, config):
    return list(range(8)), list(range(40))


def train(model, data, config):
    model.weights = [one + 1.0 for one in model.weights]
    return {"loss": 1.0}


def evaluate(model, data, config):
    return {"accuracy": 0.75, "confusion": np.array([[15, 5], [5, 15]])}
"""
COUNTS = {
    "federated": ([430, 70, 70, 430], [45, 5, 5, 45]),
    "10": ([300, 200, 200, 300], [30, 20, 20, 30]),
    "11": ([250, 250, 250, 250], [26, 24, 24, 26]),
}


async def finished_run(world: World, folder: Path, project_id: str, counts: dict[str, Any] = COUNTS) -> str:
    """A run with models of two rounds, the first of which did best, and with confusion counts."""
    run_id = world.start_run(project_id, rounds=2)
    for number in (1, 2):
        world.report_round(project_id, run_id, number)
    models = []
    for number in (1, 2):
        source = folder / f"{run_id}-{number}.safetensors"
        save_file({"0": np.array([number, number], dtype=np.float64)}, source)
        models.append(ModelFile(*world.artifacts.put_model(source), number))
    events = [
        RunEvent(EventKind.MODEL, 8.0, round=1, size=models[0].size),
        RunEvent(EventKind.MODEL, 8.0, round=2, size=models[1].size),
    ]
    events += [
        RunEvent(
            EventKind.SCORE,
            9.0,
            model=model,
            node_id=10 + place,
            metrics={"loss": 0.5},
            examples=sum(table),
            counts={"confusion": table},
        )
        for model, tables in counts.items()
        for place, table in enumerate(tables)
    ]
    world.store.add_events(run_id, events)
    run = world.store.run(run_id)
    assert run is not None
    world.store.put_run(
        replace(
            run,
            status=RunStatus.FINISHED,
            finished_at=world.clock[0],
            model_sha256=models[1].sha256,
            model_size=models[1].size,
            model_round=2,
            models=tuple(models),
        )
    )
    return run_id


@pytest.fixture
async def in_notebook(world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Calls in a thread what a researcher calls in a notebook of ada's server."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(Env.SERVICE_URL, world.url)
    monkeypatch.setenv("JUPYTERHUB_API_TOKEN", world.person("ada").headers["Authorization"].split()[1])
    notebook._service.cache_clear()

    async def call(what: Callable[[], T]) -> T:
        return await asyncio.to_thread(what)

    yield call
    if notebook._service.cache_info().currsize:
        notebook._service().close()
    notebook._service.cache_clear()


@pytest.fixture
async def run_id(world: World, tmp_path: Path) -> str:
    project_id, _ = await world.shared_project()
    fab_hash = world.add_app(project_id, source=APP)
    for steward, site in (("norma", "north"), ("sue", "south")):
        world.coordinator.decide(world.principal(steward), project_id, fab_hash, "slides", site, ApprovalState.APPROVED)
    return await finished_run(world, tmp_path, project_id)


async def test_the_result_by_any_metric_as_a_heat_map(world: World, run_id: str) -> None:
    async with world.api("ben") as api:
        main = plain(await api.get(path(Route.RUN_RESULT, run_id=run_id)))
        loss = plain(await api.get(path(Route.RUN_RESULT, run_id=run_id), params={"metric": "loss"}))
    assert main["metric"] == "accuracy"
    assert set(main["metrics"]) == {"accuracy", "balanced-accuracy", "loss"}
    assert "The federated model is better" in main["conclusion"]
    heat = main["figure"]["data"][0]
    assert heat["y"] == ["South Clinic alone", "North Hospital alone", "Federated"]
    assert heat["z"][-1] == pytest.approx([950 / 1100, 0.86, 0.9])
    assert heat["text"][-1][0] == "0.864"
    assert heat["customdata"][-1][0][0].startswith(" [0.")
    go.Figure(main["figure"])
    assert "not known" in loss["conclusion"]
    assert loss["figure"]["data"][0]["reversescale"]


async def test_the_page_has_intervals_classes_skew_and_models(world: World, run_id: str) -> None:
    project_id = world.store.run(run_id).project_id  # type: ignore[union-attr]
    async with world.browser("ada") as browser:
        page = (await browser.get(f"projects/{project_id}")).text
    assert 'class="interval">[0.' in page
    assert "95 % intervals, by bootstrap from confusion counts" in page
    assert "What is skewed" in page
    assert f"runs/{run_id}/model?round=1" in page
    assert "best accuracy" in page


async def test_best_last_and_any_rounds_model(world: World, run_id: str) -> None:
    async with world.api("ada") as api:
        listed = plain(await api.get(path(Route.RUN_MODELS, run_id=run_id)))
        address = path(Route.RUN_MODEL, run_id=run_id)
        last, best, first = [await api.get(address, params={"round": one}) for one in ("last", "best", "1")]
        gone, odd = [await api.get(address, params={"round": one}) for one in ("7", "../x")]
    assert [one["round"] for one in listed] == [1, 2]
    assert best.content == last.content != first.content
    assert (gone.status_code, plain(gone)["next_step"]) == (404, "There are those of rounds 1, 2.")
    assert odd.status_code == 400
    assert [line.action for line in world.store.audit_lines()][-3:] == [Decision.MODEL_DOWNLOADED] * 3


async def test_the_signed_record_is_checked_without_the_service(world: World, run_id: str, tmp_path: Path) -> None:
    async with world.api("ada") as api:
        files = {
            "signed.json": await api.get(path(Route.RUN_SIGNED, run_id=run_id)),
            "model.safetensors": await api.get(path(Route.RUN_MODEL, run_id=run_id)),
            "key.pem": await api.get(Route.SIGNING_KEY),
        }
    for name, answer in files.items():
        (tmp_path / name).write_bytes(answer.content)

    def verify(*arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "hub_service.results.verify", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
        return done.returncode, done.stdout + done.stderr

    record, model, key = (str(tmp_path / name) for name in files)
    assert verify(record, model, "--key", key)[0] == 0
    status, said = verify(record)
    assert (status, "compare it with the Hub's" in said) == (0, True)
    (tmp_path / "model.safetensors").write_bytes(b"another")
    status, said = verify(record, model)
    assert (status, "not the one of the record" in said) == (1, True)
    signed = json.loads((tmp_path / "signed.json").read_text())
    signed["record"]["scores"][0]["metrics"]["accuracy"] = 1.0
    (tmp_path / "signed.json").write_text(json.dumps(signed))
    status, said = verify(record)
    assert (status, "signature is not good" in said) == (1, True)
    assert verify(str(tmp_path / "key.pem"))[0] == verify(str(tmp_path / "none"))[0] == 1
    for changes in ({"signature": 5}, {"public_key": None}, {"record": []}):
        (tmp_path / "odd.json").write_text(json.dumps({**signed, **changes}))
        assert verify(str(tmp_path / "odd.json")) == (
            1,
            f"{tmp_path / 'odd.json'} is no signed record. Download it from the run's page: “Signed record”.\n",
        )
    (tmp_path / "key.pem").write_bytes(b"\xff\xfe")
    assert verify(record, "--key", key) == (
        1,
        "The public key cannot be read. Take it from the service: api/signing-key.\n",
    )


async def test_the_card_says_who_what_and_how_sure(world: World, run_id: str) -> None:
    async with world.api("ada") as api:
        card = (await api.get(path(Route.RUN_CARD, run_id=run_id))).text
    assert card.startswith("# Model of Lungs, run 1")
    assert "federated is better" in card
    assert "\\[0." in card
    assert "| 0 | 550 |" in card
    assert "Nobody has shown that it is fit" in card


async def test_a_run_in_a_notebook(run_id: str, in_notebook: Any, tmp_path: Path) -> None:
    run = notebook.Run(run_id)
    frame = await in_notebook(run.compare)
    assert frame.loc[("federated", "all"), "accuracy"] == pytest.approx(950 / 1100)
    assert frame.loc[("federated", "all"), "accuracy low"] < 950 / 1100
    assert frame.loc[("north", "north"), "interval from"] == "counts"
    classes = await in_notebook(run.classes)
    assert classes.loc[("federated", "north", 1), "recall"] == pytest.approx(0.86)
    heat_map = await in_notebook(run.heat_map)
    assert "application/vnd.plotly.v1+json" in heat_map._repr_mimebundle_()
    assert "is better" in repr(heat_map)
    assert [one.round for one in await in_notebook(lambda: run.models)] == [1, 2]
    written = await in_notebook(lambda: run.model(which=1))
    assert "after round 1" in await in_notebook(lambda: run.verify(written))
    written.write_bytes(b"another")
    with pytest.raises(federator.ServiceError, match="no model of this run"):
        await in_notebook(lambda: run.verify(written))
    assert "# Model of Lungs" in (await in_notebook(run.card))._repr_markdown_()
    assert json.loads((await in_notebook(run.signed)).read_text())["model_sha256"]
    with zipfile.ZipFile(await in_notebook(run.capsule)) as archive:
        assert {"README.md", "reproduce.py", "app/capsule_run.py", "model.safetensors"} <= set(archive.namelist())


async def test_a_model_is_loaded_in_one_line(run_id: str, in_notebook: Any) -> None:
    model = await in_notebook(lambda: federator.load_model(run_id))
    assert type(model).__name__ == "Mean"
    assert model.weights[0].tolist() == [2.0, 2.0]
    earlier = await in_notebook(lambda: federator.load_model(notebook.Run(run_id), which=1))
    assert earlier.weights[0].tolist() == [1.0, 1.0]


async def test_pooled_data_are_trained_on_here(run_id: str, in_notebook: Any, tmp_path: Path) -> None:
    frame = await in_notebook(lambda: notebook.Run(run_id).compare(pooled=tmp_path))
    row = frame.loc[("pooled", "all")]
    assert (row["accuracy"], row["examples"], row["interval from"]) == (0.75, 40, "share")
    assert row["accuracy low"] < 0.75 < row["accuracy high"]


async def test_runs_are_compared_over_their_seeds(world: World, run_id: str, in_notebook: Any, tmp_path: Path) -> None:
    run = world.store.run(run_id)
    assert run is not None
    with pytest.raises(federator.ServiceError, match="no comparison"):
        await in_notebook(lambda: federator.project(run.project_id).compare())
    other = await finished_run(
        world, tmp_path, run.project_id, COUNTS | {"federated": ([400, 100, 100, 400], [40, 10, 10, 40])}
    )
    second = world.store.run(other)
    assert second is not None
    world.store.put_run(replace(second, seed=9))
    frame = await in_notebook(lambda: federator.project(run.project_id).compare())
    assert frame.attrs["seeds"] == [9, 3]
    assert frame.loc[("federated", "all"), "mean"] == pytest.approx((950 / 1100 + 0.8) / 2)
    assert frame.loc[("federated", "all"), "std"] > 0
    assert frame.loc[("north", "all"), "std"] == 0


async def test_a_seed_is_for_apps_that_take_one(world: World, in_notebook: Any) -> None:
    project_id, _ = await world.shared_project()
    world.make_ready(project_id)
    run = await in_notebook(lambda: federator.project(project_id).run(rounds=1, seed=7))
    stored = world.store.run(run.id)
    assert stored is not None
    assert stored.seed == 7


async def test_a_run_is_logged_to_mlflow(run_id: str, in_notebook: Any, tmp_path: Path) -> None:
    import mlflow  # takes seconds, of this test only

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    logged = await in_notebook(lambda: notebook.Run(run_id).log_to_mlflow(uri))
    client = mlflow.MlflowClient(tracking_uri=uri)
    found = client.get_run(logged)
    assert found.data.params["rounds"] == "2"
    assert found.data.metrics["score/federated/on all/accuracy"] == pytest.approx(950 / 1100)
    assert len(client.get_metric_history(logged, "evaluate/north/accuracy")) == 2
    assert {one.path for one in client.list_artifacts(logged)} == {"CARD.md", "model.safetensors", "signed.json"}


async def test_a_download_that_is_broken_off_is_no_fault(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    project_id, _ = await world.shared_project()
    run_id = world.start_run(project_id)
    world.finish_run(project_id, run_id, bytes(64 << 20), tmp_path)
    done = asyncio.Event()
    send = RunModelHandler.get

    async def noted(handler: RunModelHandler, run_id: str) -> None:
        try:
            await send(handler, run_id)
        finally:
            done.set()

    monkeypatch.setattr(RunModelHandler, "get", noted)
    reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(world.url).port)
    address = f"{httpx.URL(world.url).path}{path(Route.RUN_MODEL, run_id=run_id)}"
    token = world.person("ada").headers["Authorization"]
    writer.write(f"GET {address} HTTP/1.1\r\nHost: hub\r\nAuthorization: {token}\r\n\r\n".encode())
    assert b" 200 " in await reader.readline()
    writer.transport.abort()
    async with asyncio.timeout(10):
        await done.wait()
    assert [one.getMessage() for one in caplog.records if one.levelno >= logging.ERROR] == []
