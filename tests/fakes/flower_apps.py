"""Small Flower apps without torch, as FABs. Each bad one is named for how it is bad."""

from __future__ import annotations

from flwr.cli.build import build_fab_from_files

PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "{name}"
version = "1.0.0"
description = "A small app for tests"
license = "Apache-2.0"
dependencies = []

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "tests"

[tool.flwr.app.components]
serverapp = "{name}.server_app:app"
clientapp = "{name}.client_app:app"

[tool.flwr.app.config]
num-server-rounds = 2
"""

SERVER = """
import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid, context):
    strategy = FedAvg(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
    arrays = ArrayRecord({"weight": Array(np.zeros((2, 3), dtype=np.float32))})
    strategy.start(grid, arrays, num_rounds=int(context.run_config["num-server-rounds"]))
"""

# Each site pulls the weight towards its own "target": what it learns alone differs from what all learn together.
CLIENT = """
import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


def weight_of(message):
    return next(iter(message.content.array_records.values()))["weight"].numpy()


@app.train()
def train(message, context):
    target = float(context.node_config["target"])
    weight = weight_of(message) * np.float32(0.5) + np.float32(0.5 * target)
{train}
    times = context.state.metric_records.get("times", MetricRecord({{"trained": 0}}))
    times["trained"] += 1
    context.state["times"] = times
    arrays = ArrayRecord({{"weight": Array(weight)}})
    loss = float(abs(weight - target).mean())
    metrics = MetricRecord({{"loss": loss, "trained": times["trained"], "num-examples": 10}})
    return Message(RecordDict({{"arrays": arrays, "metrics": metrics}}), reply_to=message)


@app.evaluate()
def evaluate(message, context):
    target = float(context.node_config["target"])
    distance = float(abs(weight_of(message) - target).mean())
    metrics = MetricRecord({{"distance": distance, "num-examples": 5}})
    return Message(RecordDict({{"metrics": metrics}}), reply_to=message)
"""


def fab(files: dict[str, str], name: str = "tinyapp", config: str = "") -> bytes:
    """A FAB of these files, in a package of the name. `config`: more lines of its config."""
    all_files = {"pyproject.toml": PYPROJECT.format(name=name) + config, f"{name}/__init__.py": ""}
    all_files |= {f"{name}/{path}": text for path, text in files.items()}
    return bytes(build_fab_from_files({path: text.encode() for path, text in all_files.items()})[0])


def averaging_app(train: str = "", server: str = SERVER, config: str = "") -> bytes:
    """FedAvg over one small array. `train` is put into the client's training, where `target` and `weight` are known."""
    body = "\n".join(f"    {line}" for line in train.splitlines())
    return fab({"server_app.py": server, "client_app.py": CLIENT.format(train=body)}, config=config)


def app_with_bad_sites() -> bytes:
    """Training raises where the target is 2, answers with NaN where it is 3, with another shape where it is 4."""
    return averaging_app(
        "if target == 2:\n"
        "    raise OSError('cannot read patients.csv')\n"
        "if target == 3:\n"
        "    weight = weight * np.float32('nan')\n"
        "if target == 4:\n"
        "    weight = np.zeros((5,), dtype=np.float32)"
    )
