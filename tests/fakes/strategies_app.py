"""A Flower app that runs with whichever of Flower's strategies its run config names.

A model of two floating arrays for all but the boosted trees, whose model is one array of bytes: JSON, as XGBoost writes
it, with no more in it than the strategies read.
"""

from __future__ import annotations

from flwr.cli.build import build_fab_from_files

from tests.fakes.flower_apps import PYPROJECT

NAME = "strategiesapp"
SITES = 7  # what Bulyan needs to bear one malicious site
SHAPES = {"weight": (2, 3), "bias": (3,)}
TREES = "0"  # the name of the one array, which the strategies for boosted trees look for

SERVER = f"""
import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp import ServerApp, strategy

SITES, SHAPES, TREES = {SITES}, {SHAPES}, {TREES!r}
OPTIONS = {{
    "Bulyan": {{"num_malicious_nodes": 1}},
    "DifferentialPrivacyClientSideAdaptiveClipping": {{"noise_multiplier": 0.1, "num_sampled_clients": SITES}},
    "DifferentialPrivacyClientSideFixedClipping": {{
        "noise_multiplier": 0.1, "clipping_norm": 0.5, "num_sampled_clients": SITES
    }},
    "DifferentialPrivacyServerSideAdaptiveClipping": {{"noise_multiplier": 0.1, "num_sampled_clients": SITES}},
    "DifferentialPrivacyServerSideFixedClipping": {{
        "noise_multiplier": 0.1, "clipping_norm": 0.5, "num_sampled_clients": SITES
    }},
    "FedAdagrad": {{}},
    "FedAdam": {{}},
    "FedAvg": {{}},
    "FedAvgM": {{"server_momentum": 0.9}},
    "FedMedian": {{}},
    "FedProx": {{"proximal_mu": 0.1}},
    "FedTrimmedAvg": {{"beta": 0.2}},
    "FedXgbBagging": {{}},
    "FedXgbCyclic": {{}},
    "FedYogi": {{}},
    "Krum": {{"num_malicious_nodes": 1}},
    "MultiKrum": {{"num_malicious_nodes": 1, "num_nodes_to_select": 3}},
    "QFedAvg": {{"client_learning_rate": 0.1, "train_loss_key": "loss"}},
}}

app = ServerApp()


def strategy_of(name):
    options = dict(OPTIONS[name])
    if name.startswith("DifferentialPrivacy"):
        options["strategy"] = strategy.FedAvg()
    return getattr(strategy, name)(**options)


def first_model(name):
    if name.startswith("FedXgb"):
        return {{TREES: np.zeros(0, dtype=np.uint8)}}
    return {{name: np.zeros(shape, dtype=np.float32) for name, shape in SHAPES.items()}}


@app.main()
def main(grid, context):
    name = context.run_config["strategy"]
    arrays = ArrayRecord({{name: Array(values) for name, values in first_model(name).items()}})
    strategy_of(name).start(grid, arrays, num_rounds=context.run_config["num-server-rounds"])
"""

CLIENT = f"""
import json

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import adaptiveclipping_mod, fixedclipping_mod

TREES = {TREES!r}
MODS = {{
    "DifferentialPrivacyClientSideAdaptiveClipping": adaptiveclipping_mod,
    "DifferentialPrivacyClientSideFixedClipping": fixedclipping_mod,
}}

app = ClientApp()


def clipping_where_asked(message, context, call_next):
    mod = MODS.get(context.run_config["strategy"])
    return mod(message, context, call_next) if mod else call_next(message, context)


def one_tree():
    model = {{
        "gbtree_model_param": {{"num_trees": "1", "num_parallel_tree": "1"}},
        "iteration_indptr": [0, 1],
        "trees": [{{"id": 0}}],
        "tree_info": [0],
    }}
    return np.frombuffer(json.dumps({{"learner": {{"gradient_booster": {{"model": model}}}}}}).encode(), dtype=np.uint8)


@app.train(mods=[clipping_where_asked])
def train(message, context):
    arrays, target = message.content["arrays"], np.float32(context.node_config["target"])
    if TREES in arrays:
        model = {{TREES: one_tree()}}
    else:
        model = {{name: array.numpy() + np.float32(0.5) * (target - array.numpy()) for name, array in arrays.items()}}
    metrics = MetricRecord({{"loss": 1.0 / (1.0 + float(target)), "num-examples": 10}})
    trained = ArrayRecord({{name: Array(values) for name, values in model.items()}})
    return Message(RecordDict({{"arrays": trained, "metrics": metrics}}), reply_to=message)


@app.evaluate()
def evaluate(message, context):
    size = sum(array.numpy().size for array in message.content["arrays"].values())
    return Message(RecordDict({{"metrics": MetricRecord({{"size": size, "num-examples": 5}})}}), reply_to=message)
"""


def strategies_app() -> bytes:
    """The app as a FAB. Its run config has `strategy`: a class of `flwr.serverapp.strategy`."""
    files = {
        "pyproject.toml": PYPROJECT.format(name=NAME) + 'strategy = "FedAvg"\n',
        f"{NAME}/__init__.py": "",
        f"{NAME}/server_app.py": SERVER,
        f"{NAME}/client_app.py": CLIENT,
    }
    return bytes(build_fab_from_files({path: text.encode() for path, text in files.items()})[0])
