"""Generated apps at work: the starter notebooks and a small one, through Flower's own messages and strategies."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg
from PIL import Image

from examples.demo.data import TABULAR_SITES, write_wisconsin_sites
from hub_service import starters
from hub_service.apps.build import AppBuilder, BuiltApp
from tests.fakes.in_memory_grid import RUN_ID, InMemoryGrid, loaded, metrics, run, task_identity
from tests.fakes.notebooks import MEAN_CELLS, mean_notebook, write_numbers

builder = AppBuilder(frozenset({"numpy", "torch", "torchvision", "flwr"}))


@pytest.fixture(autouse=True)
def _as_a_task() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads of several test processes fighting for two cores are slower than one
    with task_identity():
        yield
    torch.set_num_threads(threads)


def build_mean(*more: str, cells: Sequence[str] = MEAN_CELLS) -> BuiltApp:
    return builder.build("mean.ipynb", mean_notebook(*more, cells=cells))


def build_starter(name: str) -> BuiltApp:
    return builder.build(f"{name}.ipynb", starters.read(name))


def last_model(grid: InMemoryGrid) -> ArrayRecord:
    return grid.sent[-1].content["arrays"]


# --- the connection to Flower, by a notebook without torch


@pytest.mark.parametrize("sites", [1, 2, 3])
def test_any_number_of_nodes_takes_part(tmp_path, sites):
    folders = [write_numbers(tmp_path / f"{site}", [site] * (10 * site), [0.0, 1.0]) for site in range(1, sites + 1)]
    app = build_mean()
    with loaded(app.fab, tmp_path / "apps") as mean:
        grid = run(mean, folders, app.config)
    trained = metrics(grid.replies, MessageType.TRAIN)
    assert sorted((entry["round"], entry["num-examples"]) for entry in trained) == [
        (round_number, 10 * site) for round_number in range(1, 5) for site in range(1, sites + 1)
    ]
    assert [entry["num-examples"] for entry in metrics(grid.replies, MessageType.EVALUATE)] == [2] * 4 * sites
    centre = sum(10 * site**2 for site in range(1, sites + 1)) / sum(10 * site for site in range(1, sites + 1))
    [weight] = last_model(grid).to_numpy_ndarrays()
    assert weight[0] == pytest.approx(centre * (1 - 0.5**4))


STRATEGY = """from flwr.serverapp.strategy import FedAvg


def strategy(config):
    return FedAvg(min_train_nodes=9, min_evaluate_nodes=1, min_available_nodes=9)"""


def test_a_strategy_that_demands_more_nodes_than_there_are_does_not_wait_for_them(tmp_path, caplog):
    app = build_mean(STRATEGY)
    folders = [write_numbers(tmp_path / name, [1.0], [1.0]) for name in "ab"]
    with loaded(app.fab, tmp_path / "apps") as mean, caplog.at_level("WARNING", logger="flwr"):
        inner = FedAvg(min_available_nodes=9)
        sys.modules["federated_mean.server_app"].lower_minima(
            DifferentialPrivacyServerSideFixedClipping(inner, 1.0, 1.0, 2), nodes=2
        )
        assert inner.min_available_nodes == 2
        grid = run(mean, folders, app.config)
    assert len(metrics(grid.replies, MessageType.TRAIN)) == 8


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        ("{'loss': 'low'}", "ValueError: train(): the metric 'loss' is a str, not a number"),
        ("{'loss': np.zeros(0)}", "ValueError: train(): the metric 'loss' is an empty list"),
        ("{'loss': [1.0, 'low']}", "ValueError: train(): the metric 'loss' is a str, not a number"),
        ("{'loss': None}", "ValueError: train(): the metric 'loss' is a NoneType, not a number"),
        ("None", "ValueError: train() returned NoneType; a dictionary of numbers is needed"),
        ("{'num-examples': 0}", "ValueError: train(): the data hold no examples"),
    ],
)
def test_metrics_that_are_no_numbers_are_named(tmp_path, returned, reason):
    app = build_mean(f"def train(model, data, config):\n    return {returned}")
    with loaded(app.fab, tmp_path / "apps") as mean:
        grid = run(mean, [write_numbers(tmp_path / "a", [1.0], [1.0])], app.config)
    assert grid.replies[0].error.reason == reason


def test_plain_numbers_come_out_of_arrays_and_tensors(tmp_path):
    app = build_mean(
        "import torch\ndef evaluate(model, data, config):\n"
        "    return {'a': np.float32(0.5), 'b': torch.tensor(2), 'c': np.ones((1, 1)), 'd': True, 'num-examples': 5}"
    )
    with loaded(app.fab, tmp_path / "apps") as mean:
        grid = run(mean, [write_numbers(tmp_path / "a", [1.0], [1.0])], app.config)
    assert metrics(grid.replies, MessageType.EVALUATE)[0] == {"a": 0.5, "b": 2, "c": 1.0, "d": 1, "num-examples": 5}


@pytest.mark.parametrize(
    ("data", "examples"),
    [
        ("(np.zeros((7, 3)), np.zeros(7))", 7),
        ("[(1, 2), (3, 4), (5, 6)]", 3),
        ("torch.utils.data.DataLoader(list(range(11)), batch_size=4)", 11),
        ("torch.utils.data.TensorDataset(torch.zeros(6, 2))", 6),
    ],
)
def test_examples_are_counted(tmp_path, data, examples):
    app = build_mean(
        f"import torch\ndef load_data(path, config):\n    return {data}, {data}",
        "def train(model, data, config):\n    return {}\ndef evaluate(model, data, config):\n    return {}",
    )
    with loaded(app.fab, tmp_path / "apps") as mean:
        grid = run(mean, [tmp_path], app.config)
    assert {entry["num-examples"] for entry in metrics(grid.replies, MessageType.TRAIN)} == {examples}


def test_data_that_cannot_be_counted_ask_for_the_number(tmp_path):
    app = build_mean(
        "def load_data(path, config):\n    return iter([1.0]), iter([1.0])",
        "def train(model, data, config):\n    return {}",
    )
    with loaded(app.fab, tmp_path / "apps") as mean:
        grid = run(mean, [tmp_path], app.config)
    assert "return it as metrics['num-examples']" in grid.replies[0].error.reason


def test_a_model_of_neither_kind_is_refused(tmp_path):
    app = build_mean("def build_model():\n    return 3")
    with loaded(app.fab, tmp_path / "apps") as mean, pytest.raises(TypeError, match=r"build_model\(\) returned a int"):
        run(mean, [tmp_path], app.config)


def test_a_node_without_a_data_folder_says_so(tmp_path):
    app = build_mean()
    with loaded(app.fab, tmp_path / "apps") as mean:
        message = Message(RecordDict({"arrays": ArrayRecord([np.zeros(1)])}), 1, MessageType.TRAIN)
        with pytest.raises(ValueError, match="names no dataset-path"):
            mean.client(message, Context(RUN_ID, 1, {}, RecordDict(), dict(app.config)))


COUNTING_CELLS = (
    *MEAN_CELLS[:2],
    MEAN_CELLS[2].replace("    return", "    LOADS.append(path)\n    return") + "\n\n\nLOADS = []",
    MEAN_CELLS[3].replace('"error":', '"loads": len(LOADS), "error":'),
)


def test_data_are_loaded_once_and_again_when_a_new_run_finds_them_changed(tmp_path):
    app = build_mean(cells=COUNTING_CELLS)
    folder = write_numbers(tmp_path / "a", [1.0], [1.0])

    def loads(run_id: int, **config: float) -> float:
        context = Context(run_id, 1, {"dataset-path": str(folder)}, RecordDict(), {**app.config, **config})
        message = Message(RecordDict({"arrays": ArrayRecord([np.zeros(1)])}), 1, MessageType.EVALUATE)
        return mean.client(message, context).content["metrics"]["loads"]

    with loaded(app.fab, tmp_path / "apps") as mean:
        assert [loads(run_id=1), loads(run_id=1), loads(run_id=2)] == [1, 1, 1]
        write_numbers(folder, [2.0, 3.0], [1.0])
        assert loads(run_id=2) == 1  # a run works on one state of the data
        assert loads(run_id=3) == 2
        os.utime(folder / "test.txt", ns=(0, 2**62))
        assert loads(run_id=4) == 3
        assert loads(run_id=4, step=0.25) == 4


def test_every_start_begins_with_the_same_model(tmp_path):
    app = build_starter("tabular")
    write_wisconsin_sites(tmp_path)
    folders = [tmp_path / site.slug for site in TABULAR_SITES]
    config = {**app.config, "num-server-rounds": 2}
    with loaded(app.fab, tmp_path / "apps") as tabular:
        first, second = run(tabular, folders, config), run(tabular, folders, config)
        other = run(tabular, folders, {**config, "seed": 2})

    def initial(grid: InMemoryGrid) -> bytes:
        return grid.sent[0].content["arrays"]["weight"].data

    assert initial(first) == initial(second) != initial(other)
    assert last_model(first)["weight"].data == last_model(second)["weight"].data


# --- the starters


def test_federated_beats_every_single_hospital_on_the_wisconsin_data(tmp_path):
    app = build_starter("tabular")
    write_wisconsin_sites(tmp_path)
    folders = [tmp_path / site.slug for site in TABULAR_SITES]

    with loaded(app.fab, tmp_path / "apps") as tabular:

        def accuracy_on_all_tests(trained_on: Sequence[Path]) -> float:
            model = last_model(run(tabular, trained_on, app.config))
            everyone = InMemoryGrid(tabular.client, dict(enumerate(folders)), app.config)
            question = RecordDict({"arrays": model})
            everyone.push_messages([Message(question, node, MessageType.EVALUATE) for node in range(len(folders))])
            answers = metrics(everyone.replies, MessageType.EVALUATE)
            return float(np.average([a["accuracy"] for a in answers], weights=[a["num-examples"] for a in answers]))

        federated = accuracy_on_all_tests(folders)
        alone = [accuracy_on_all_tests([folder]) for folder in folders]
    assert federated > 0.92
    assert federated - max(alone) > 0.05


def test_the_image_starter_learns_from_image_folders(tmp_path):
    app = build_starter("histopathology")
    rng = np.random.default_rng(1)
    for site in "ab":
        for part in ("train", "test"):
            for brightness, name in ((60, "idc"), (180, "normal")):
                folder = tmp_path / site / part / name
                folder.mkdir(parents=True)
                for number in range(8):
                    pixels = rng.integers(brightness - 40, brightness + 40, (50, 50, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(folder / f"{number}.png")
    config = {**app.config, "num-server-rounds": 4, "batch-size": 4}
    with loaded(app.fab, tmp_path / "apps") as images:
        grid = run(images, [tmp_path / "a", tmp_path / "b"], config)
    scores = metrics(grid.replies, MessageType.EVALUATE)
    assert all(score["num-examples"] == 16 for score in scores)
    assert scores[-1]["loss"] < scores[0]["loss"]
    assert all(torch.isfinite(weight).all() for weight in last_model(grid).to_torch_state_dict().values())
