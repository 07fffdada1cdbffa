"""What runs in the aggregator: each message made, sent and read by the app itself."""

from logging import INFO

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.common import log
from flwr.serverapp import Grid, ServerApp

from own_loop.task import FEATURES

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    weights = np.zeros(FEATURES + 1, dtype=np.float32)
    best = np.inf
    for number in range(1, context.run_config["num-server-rounds"] + 1):
        weights = mean_weights(ask(grid, "train", number, weights), weights)
        answers = ask(grid, "evaluate", number, weights)
        loss = np.average([one["metrics"]["loss"] for one in answers], weights=examples(answers)) if answers else best
        log(INFO, "round %d: loss %.4f at %d nodes", number, loss, len(answers))
        if best - loss < context.run_config["smallest-gain"]:
            return
        best = loss


def ask(grid: Grid, message_type: str, number: int, weights: np.ndarray) -> list[RecordDict]:
    """Send the model to every node; the answers of those that could."""
    content = RecordDict({"model": ArrayRecord({"weights": Array(weights)})})
    messages = [
        Message(content=content, message_type=message_type, dst_node_id=node_id, group_id=str(number))
        for node_id in grid.get_node_ids()
    ]
    return [reply.content for reply in grid.send_and_receive(messages) if not reply.has_error()]


def examples(answers: list[RecordDict]) -> list[int]:
    return [answer["metrics"]["num-examples"] for answer in answers]


def mean_weights(answers: list[RecordDict], before: np.ndarray) -> np.ndarray:
    """Weighted by examples; the model as it was where nobody answered."""
    if not answers:
        return before
    every = [answer["model"]["weights"].numpy() for answer in answers]
    return np.average(every, axis=0, weights=examples(answers)).astype(np.float32)
