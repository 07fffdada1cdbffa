"""A notebook chooses any of Flower's strategies by its CONFIG, and what cannot work is refused with its line."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, MessageType

from hub_service import starters
from hub_service.apps.build import AppBuilder
from hub_service.apps.strategies import key_of, plain_parameters
from hub_service.apps.templates import strategies
from hub_service.domain.errors import Invalid
from tests.fakes.in_memory_grid import InMemoryGrid, loaded, metrics, run, task_identity
from tests.fakes.notebooks import mean_notebook, write_numbers

DOCS = Path(__file__).parents[2] / "docs" / "strategies.md"
builder = AppBuilder(frozenset({"numpy", "xgboost", "flwr"}))
SITES = 7  # what Bulyan needs to bear one malicious site
PRIVATE = {"noise-multiplier": 0.1, "num-sampled-clients": SITES}
OPTIONS: dict[str, dict[str, object]] = {
    "Bulyan": {"num-malicious-nodes": 1},
    "DifferentialPrivacyClientSideAdaptiveClipping": PRIVATE,
    "DifferentialPrivacyClientSideFixedClipping": PRIVATE | {"clipping-norm": 0.5},
    "DifferentialPrivacyServerSideAdaptiveClipping": PRIVATE | {"strategy": "FedAvgM", "server-momentum": 0.5},
    "DifferentialPrivacyServerSideFixedClipping": PRIVATE | {"clipping-norm": 1},
    "FedAdagrad": {"eta": 1},
    "FedAdam": {"eta": 0.5, "beta-1": 0.5},
    "FedAvgM": {"server-momentum": 0.9},
    "FedProx": {"proximal-mu": 0.1},
    "FedTrimmedAvg": {"beta": 0.2},
    "Krum": {"num-malicious-nodes": 1},
    "MultiKrum": {"num-malicious-nodes": 1, "num-nodes-to-select": 3},
    "QFedAvg": {"client-learning-rate": 0.1, "train-loss-key": "loss"},
}
TRAIN = """def train(model, data, config):
    model.weights[0] += config["step"] * (data.mean() - model.weights[0])
    return {"loss": abs(float(data.mean() - model.weights[0][0])), "mu": config.get("proximal-mu", 0.0)}"""


@pytest.fixture(autouse=True)
def _as_a_task() -> Iterator[None]:
    with task_identity():
        yield


def configured(name: str, options: dict[str, object]) -> dict[str, object]:
    return {"strategy": name, **{f"strategy-{key}": value for key, value in options.items()}}


def mean_app(config: dict[str, object], *more: str) -> Any:
    cell = f"CONFIG = {dict(config, step=0.5) | {'num-server-rounds': 2}!r}"
    return builder.build("mean.ipynb", mean_notebook(cell, TRAIN, *more))


def run_mean(config: dict[str, object], folder: Path) -> InMemoryGrid:
    folders = [write_numbers(folder / f"{site}", [float(site)] * 3, [1.0]) for site in range(1, SITES + 1)]
    app = mean_app(config)
    with loaded(app.fab, folder / "apps") as mean:
        return run(mean, folders, app.config)


def last_weight(grid: InMemoryGrid) -> float:
    arrays: ArrayRecord = grid.sent[-1].content["arrays"]
    return float(arrays.to_numpy_ndarrays()[0][0])


@pytest.mark.parametrize("name", [name for name in strategies.names() if not name.startswith("FedXgb")])
def test_the_strategy_is_made_with_its_parameters_and_runs(name: str, tmp_path: Path) -> None:
    config = configured(name, OPTIONS.get(name, {}))
    made = strategies.chosen(config)
    assert type(made).__name__ == name
    for key, value in OPTIONS.get(name, {}).items():
        if key != "strategy":
            parameter = key.replace("-", "_")
            holder = made if hasattr(made, parameter) else made.strategy
            expected = (
                value if isinstance(value, str) else pytest.approx(value, rel=0.02)
            )  # adaptive clipping adjusts it
            assert getattr(holder, parameter) == expected
    grid = run_mean(config, tmp_path)
    trained = metrics(grid.replies, MessageType.TRAIN)
    assert len(trained) == 2 * SITES
    assert np.isfinite(last_weight(grid))
    assert last_weight(grid) != 0
    if name == "FedProx":
        assert {one["mu"] for one in trained} == {0.1}


@pytest.mark.parametrize(("name", "answering", "trees"), [("FedXgbBagging", 2, 4), ("FedXgbCyclic", 1, 1)])
def test_the_strategies_for_trees_run(name: str, answering: int, trees: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for site in "ab":
        (tmp_path / site).mkdir()
        for part in ("train", "test"):
            labels = np.arange(20) % 2
            table = np.column_stack([rng.normal(size=(20, 3)) + labels[:, None], labels])
            np.savetxt(tmp_path / site / f"{part}.csv", table, delimiter=",", header="h")
    content = starters.read("xgboost").replace(b"FedXgbBagging", name.encode())
    app = builder.build("trees.ipynb", content)
    with loaded(app.fab, tmp_path / "apps") as forest:
        grid = run(forest, [tmp_path / "a", tmp_path / "b"], {**app.config, "num-server-rounds": 2})
    assert len(metrics(grid.replies, MessageType.TRAIN)) == 2 * answering
    assert metrics(grid.replies, MessageType.EVALUATE)[-1]["trees"] == trees


def test_without_a_name_it_is_federated_averaging_of_those_that_are_there() -> None:
    made = strategies.chosen({"strategy-fraction-train": 0.5})
    assert (type(made).__name__, made.fraction_train) == ("FedAvg", 0.5)
    assert (made.min_train_nodes, made.min_evaluate_nodes, made.min_available_nodes) == (1, 1, 1)
    assert strategies.chosen({"strategy-min-train-nodes": 3}).min_train_nodes == 3


# --- differential privacy


@pytest.mark.parametrize("side", ["Client", "Server"])
def test_no_update_is_larger_than_the_bound(side: str, tmp_path: Path) -> None:
    """Without noise, so that the bound is seen: sites that want to go 2 on average go 0.1 a round."""
    options = {"noise-multiplier": 0.0, "num-sampled-clients": SITES, "clipping-norm": 0.1}
    grid = run_mean(configured(f"DifferentialPrivacy{side}SideFixedClipping", options), tmp_path)
    sent = [message.content["arrays"].to_numpy_ndarrays()[0][0] for message in grid.sent]
    assert 0 < max(sent) <= 0.2
    if side == "Client":
        answers = [reply.content["arrays"].to_numpy_ndarrays()[0][0] for reply in grid.replies[:SITES]]
        assert max(answers) <= 0.1 + 1e-9


def test_noise_cannot_be_taken_away_by_who_knows_the_seed(tmp_path: Path) -> None:
    config = configured("DifferentialPrivacyServerSideFixedClipping", PRIVATE | {"clipping-norm": 1.0})
    assert last_weight(run_mean(config, tmp_path / "a")) != last_weight(run_mean(config, tmp_path / "b"))
    plain = configured("FedAvg", {})
    assert last_weight(run_mean(plain, tmp_path / "c")) == last_weight(run_mean(plain, tmp_path / "d"))


# --- refusals


@pytest.mark.parametrize(
    ("config", "message", "next_step"),
    [
        (
            {"strategy": "FedAdm"},
            "the strategy “FedAdm”, which Flower does not have",
            "Did you mean FedAdam? There are ",
        ),
        ({"strategy": 3}, "the strategy “3”, which Flower does not have", "There are Bulyan, "),
        ({"strategy": "Strategy"}, "which Flower does not have", "There are Bulyan, "),
        (configured("FedAdam", {"etta": 0.1}), "sets “strategy-etta”, which FedAdam", "Did you mean strategy-eta? "),
        (configured("FedAvg", {"eta": 0.1}), "sets “strategy-eta”, which FedAvg", "strategy-fraction-train"),
        (configured("FedAvg", {"train-metrics-aggr-fn": "x"}), "cannot be given by CONFIG", "define strategy(config)"),
        (configured("FedAdam", {"eta": "big"}), "gives “strategy-eta” 'big'; FedAdam takes a number", "a number"),
        (configured("FedAdam", {"eta": True}), "gives “strategy-eta” True; FedAdam takes a number", "a number"),
        (configured("Krum", {"num-malicious-nodes": 0.5}), "Krum takes a whole number", "a whole number"),
        (configured("QFedAvg", {}), "cannot do without “strategy-client-learning-rate”", 'Add "strategy-client-'),
        (configured("FedTrimmedAvg", {"beta": 0.7}), "FedTrimmedAvg refuses these parameters: `beta`", "Correct"),
        (
            configured("DifferentialPrivacyServerSideFixedClipping", {"strategy": "FedAdm"}),
            "“FedAdm”, which cannot go inside another",
            "Did you mean FedAdam? ",
        ),
        (
            configured(
                "DifferentialPrivacyServerSideFixedClipping",
                PRIVATE | {"clipping-norm": 1, "strategy": "QFedAvg"},
            ),
            "chooses QFedAvg, which cannot do without",
            "strategy-client-learning-rate",
        ),
    ],
)
def test_what_flower_would_not_take_is_refused_with_its_line(
    config: dict[str, object], message: str, next_step: str
) -> None:
    with pytest.raises(Invalid) as refused:
        mean_app(config)
    assert refused.value.message.startswith("Cell 5, line 1: CONFIG")
    assert message in refused.value.message
    assert next_step in refused.value.next_step


def test_the_line_is_that_of_the_key() -> None:
    cell = 'CONFIG = {\n    "step": 0.5,\n    "strategy": "FedAdam",\n    "strategy-etta": 1.0,\n}'
    with pytest.raises(Invalid, match=r"Cell 5, line 4: CONFIG sets"):
        builder.build("mean.ipynb", mean_notebook(cell))


def test_who_defines_a_strategy_may_use_the_keys_otherwise(tmp_path: Path) -> None:
    own = "from flwr.serverapp.strategy import FedMedian\ndef strategy(config):\n    return FedMedian()"
    app = mean_app({"strategy": "DifferentialPrivacyClientSideFixedClipping", "strategy-x": 1}, own)
    with loaded(app.fab, tmp_path / "apps") as mean:
        assert sys.modules["federated_mean.server_app"]._strategy(app.config).__class__.__name__ == "FedMedian"
        grid = run(mean, [write_numbers(tmp_path / "a", [1.0], [1.0])], app.config)
    assert len(metrics(grid.replies, MessageType.TRAIN)) == 2


# --- docs/strategies.md


def rows(table: int) -> list[list[str]]:
    tables = re.findall(r"(?:^\|.*\n)+", DOCS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|\n").split("|")] for line in tables[table].splitlines()[2:]]


def written(parameter: inspect.Parameter) -> str:
    default = parameter.default
    return "required" if default is inspect.Parameter.empty else "none" if default is None else str(default)


def test_the_documents_table_has_what_flower_has() -> None:
    ones = dict.fromkeys(strategies.MINIMA, "1")
    common = {key_of(name): ones.get(name, written(one)) for name, one in plain_parameters("FedAvg").items()}
    assert {row[0].strip("`"): row[1] for row in rows(1)} == common
    documented = {row[0].strip("`"): row for row in rows(0)}
    assert sorted(documented) == list(strategies.names())
    for name, (_, parameters, when, source) in documented.items():
        assert when
        assert source
        own = {key_of(one): written(described) for one, described in plain_parameters(name).items()}
        is_wrapper = name.startswith(strategies.WRAPPERS)
        lacking = set() if is_wrapper else common.keys() - own.keys()
        expected = {key: value for key, value in own.items() if is_wrapper or key not in common}
        without = parameters.startswith("without ")
        assert set(re.findall(r"`(strategy-[\w-]+)`", parameters) if without else ()) == lacking
        assert ({} if without else dict(re.findall(r"`(strategy-[\w-]+)` ([\w.]+)", parameters))) == expected


def test_the_documents_examples_are_taken() -> None:
    for config in re.findall(r"^CONFIG = \{.*?\}$", DOCS.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL):
        builder.build("mean.ipynb", mean_notebook(config))
