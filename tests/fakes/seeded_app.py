"""A stock Flower app whose result depends on nothing but its seed, the sites' names and the order of the replies.

It imports nothing of ours. Its model has what real ones have: weights of odd shapes, a counter without dimensions, as
BatchNorm's, and an array that Flower cuts into several chunks. Run config:

    seed      of all sites' data and of the initial model
    sorted    whether the strategy puts the replies in order before it adds them up
    result    file that the ServerApp writes the final model to at its end, as .npz
    turns     folder in which a site waits for its turn, the file "<round>-<site>"; "" for no wait
"""

from __future__ import annotations

from flwr.cli.build import build_fab_from_files

from tests.fakes.flower_apps import PYPROJECT

NAME = "seededapp"
CONFIG = """
seed = 0
sorted = true
result = ""
turns = ""
"""

SERVER = """
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

SHAPES = {"layer.weight": (3, 5), "layer.bias": (3,), "norm.running_mean": (5,), "embedding.weight": (1499, 1031)}

app = ServerApp()


class SortedFedAvg(FedAvg):
    def aggregate_train(self, server_round, replies):
        return super().aggregate_train(server_round, sorted(replies, key=site_of))


def site_of(reply):
    return reply.content["metrics"]["site"]


@app.main()
def main(grid, context):
    config = context.run_config
    rng = np.random.default_rng(config["seed"])
    model = {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in SHAPES.items()}
    model["norm.num_batches_tracked"] = np.array(0, dtype=np.int64)
    strategy = (SortedFedAvg if config["sorted"] else FedAvg)(
        fraction_evaluate=0.0, min_train_nodes=3, min_available_nodes=3
    )
    arrays = ArrayRecord({name: Array(values) for name, values in model.items()})
    result = strategy.start(grid, arrays, num_rounds=config["num-server-rounds"])
    partial = Path(config["result"]).with_suffix(".partial.npz")
    np.savez(partial, **{name: array.numpy() for name, array in result.arrays.items()})
    partial.rename(config["result"])
"""

# A linear layer by gradient descent, and a random walk of the large array: few operations, each with one outcome.
CLIENT = """
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

STEPS, BATCH, RATE, MOMENTUM = 4, 6, np.float32(0.05), np.float32(0.1)
TURN_WITHIN_S = 60.0

app = ClientApp()


def wait_for_turn(path):
    deadline = time.monotonic() + TURN_WITHIN_S
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path} did not come")
        time.sleep(0.01)


@app.train()
def train(message, context):
    config, site = context.run_config, ord(context.node_config["site"])
    number = message.content["config"]["server-round"]
    if config["turns"]:
        wait_for_turn(Path(config["turns"], f"{number}-{context.node_config['site']}"))
    rng = np.random.default_rng([config["seed"], site, number])
    model = {name: array.numpy().copy() for name, array in message.content["arrays"].items()}
    mean, loss = model["norm.running_mean"], 0.0
    for _ in range(STEPS):
        inputs = rng.standard_normal((BATCH, 5), dtype=np.float32)
        wanted = np.tanh(inputs[:, :3] * np.float32(site % 7 + 1))
        mean += MOMENTUM * (inputs.mean(axis=0) - mean)
        error = (inputs - mean) @ model["layer.weight"].T + model["layer.bias"] - wanted
        model["layer.weight"] -= RATE * error.T @ (inputs - mean)
        model["layer.bias"] -= RATE * error.sum(axis=0)
        model["embedding.weight"] += RATE * rng.standard_normal(model["embedding.weight"].shape, dtype=np.float32)
        loss = float(np.square(error).mean())
    model["norm.num_batches_tracked"] = np.array(int(model["norm.num_batches_tracked"]) + STEPS, dtype=np.int64)
    arrays = ArrayRecord({name: Array(values) for name, values in model.items()})
    metrics = MetricRecord({"loss": loss, "site": site, "num-examples": 7 * (site % 5) + 3})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)
"""


def seeded_app() -> bytes:
    """The app as a FAB."""
    files = {
        "pyproject.toml": PYPROJECT.format(name=NAME) + CONFIG.lstrip(),
        f"{NAME}/__init__.py": "",
        f"{NAME}/server_app.py": SERVER,
        f"{NAME}/client_app.py": CLIENT,
    }
    return bytes(build_fab_from_files({path: text.encode() for path, text in files.items()})[0])
