"""What runs in the aggregator: a query first, then federated averaging with its answer."""

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from mods_and_query.task import FEATURES

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    scale = ConfigRecord(common_scale(grid))
    FedAvg(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1).start(
        grid=grid,
        initial_arrays=ArrayRecord({"weights": Array(np.zeros(FEATURES + 1, dtype=np.float32))}),
        train_config=scale,
        evaluate_config=scale,
        num_rounds=context.run_config["num-server-rounds"],
    )


def common_scale(grid: Grid) -> dict[str, list[float]]:
    """Mean and deviation of each feature over all nodes."""
    messages = [
        Message(content=RecordDict(), message_type=MessageType.QUERY, dst_node_id=node_id)
        for node_id in grid.get_node_ids()
    ]
    answers = [reply.content["metrics"] for reply in grid.send_and_receive(messages) if not reply.has_error()]
    rows = sum(answer["num-examples"] for answer in answers)
    mean = np.sum([answer["sums"] for answer in answers], axis=0) / rows
    squares = np.sum([answer["squares"] for answer in answers], axis=0) / rows
    deviation = np.sqrt(np.maximum(squares - mean**2, 1e-12))
    return {"mean": mean.tolist(), "deviation": deviation.tolist()}
