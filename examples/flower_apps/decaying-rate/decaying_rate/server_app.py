"""What runs in the aggregator: federated averaging with a learning rate that falls."""

from collections.abc import Iterable

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from decaying_rate.task import Net

app = ServerApp()


class DecayingRate(FedAvg):
    """FedAvg that multiplies the sites' learning rate by `decay` after each round."""

    def __init__(self, decay: float) -> None:
        super().__init__(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
        self.decay = decay

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        if server_round > 1:
            config["learning-rate"] *= self.decay
        return super().configure_train(server_round, arrays, config, grid)


@app.main()
def main(grid: Grid, context: Context) -> None:
    torch.manual_seed(1)
    strategy = DecayingRate(decay=context.run_config["decay"])
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(Net().state_dict()),
        train_config=ConfigRecord({"learning-rate": context.run_config["learning-rate"]}),
        num_rounds=context.run_config["num-server-rounds"],
    )
