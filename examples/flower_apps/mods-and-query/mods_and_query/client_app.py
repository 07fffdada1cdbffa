"""What runs at each site."""

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from mods_and_query.mods import bounded_mod, seconds_mod
from mods_and_query.task import load_table, scores, step

app = ClientApp(mods=[seconds_mod])


@app.query()
def query(msg: Message, context: Context) -> Message:
    """Sums of the training rows, from which the mean and the deviation over all sites follow."""
    features, labels = load_table(context.node_config, "train")
    metrics = MetricRecord(
        {
            "sums": features.sum(axis=0).astype(float).tolist(),
            "squares": (features.astype(float) ** 2).sum(axis=0).tolist(),
            "num-examples": len(labels),
        }
    )
    return Message(content=RecordDict({"metrics": metrics}), reply_to=msg)


@app.train(mods=[bounded_mod])
def train(msg: Message, context: Context) -> Message:
    features, labels = load_table(context.node_config, "train")
    features = scaled(features, msg.content["config"])
    weights = msg.content["arrays"]["weights"].numpy()
    for _ in range(10):
        weights = step(weights, features, labels, context.run_config["learning-rate"])
    metrics = MetricRecord(scores(weights, features, labels))
    content = RecordDict({"arrays": ArrayRecord({"weights": Array(weights)}), "metrics": metrics})
    return Message(content=content, reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    features, labels = load_table(context.node_config, "test")
    features = scaled(features, msg.content["config"])
    metrics = MetricRecord(scores(msg.content["arrays"]["weights"].numpy(), features, labels))
    return Message(content=RecordDict({"metrics": metrics}), reply_to=msg)


def scaled(features: np.ndarray, config: ConfigRecord) -> np.ndarray:
    mean, deviation = (np.array(config[key], dtype=np.float32) for key in ("mean", "deviation"))
    return (features - mean) / deviation
