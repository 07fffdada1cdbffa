"""A stock Flower app whose rounds last as long as one says, and whose model depends on nothing but its seed and rounds.

So a run that was disturbed can be held to the bits of one that was not. It trains by waiting: what disturbs it are
kills, and not a machine that is busy. Run config:

    seed      of all sites' steps and of the initial model
    pace-s    how long each site trains in each round, in seconds
"""

from __future__ import annotations

from flwr.cli.build import build_fab_from_files

from tests.fakes.flower_apps import PYPROJECT

NAME = "pacedapp"
CONFIG = """
seed = 0
pace-s = {pace_s}
"""

SERVER = """
import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid, context):
    rng = np.random.default_rng(context.run_config["seed"])
    arrays = {"weight": rng.standard_normal((257, 129), dtype=np.float32), "bias": np.zeros(257, dtype=np.float32)}
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=SITES, min_available_nodes=SITES)
    strategy.start(
        grid,
        ArrayRecord({name: Array(values) for name, values in arrays.items()}),
        num_rounds=context.run_config["num-server-rounds"],
        timeout=24 * 3600,
    )
"""

CLIENT = """
import time
import zlib

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message, context):
    site = zlib.crc32(context.node_config["dataset-path"].rpartition("/")[2].encode())
    number = message.content["config"]["server-round"]
    rng = np.random.default_rng([context.run_config["seed"], site, number])
    time.sleep(context.run_config["pace-s"])
    arrays = {}
    for name, array in message.content["arrays"].items():
        values = array.numpy()
        arrays[name] = Array(values - np.float32(0.1) * rng.standard_normal(values.shape, dtype=np.float32))
    metrics = MetricRecord({"loss": 1.0 / number, "num-examples": 7 * (site % 5) + 3})
    return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message)
"""


def paced_app(sites: int, pace_s: float) -> bytes:
    """The app as a FAB, for so many sites, all of which take part in each round."""
    files = {
        "pyproject.toml": PYPROJECT.format(name=NAME) + CONFIG.format(pace_s=pace_s).lstrip(),
        f"{NAME}/__init__.py": "",
        f"{NAME}/server_app.py": SERVER.replace("SITES", str(sites)),
        f"{NAME}/client_app.py": CLIENT,
    }
    return bytes(build_fab_from_files({path: text.encode() for path, text in files.items()})[0])
