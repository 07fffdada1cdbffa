"""Flower's FedAvg over all sites. With `pause-s`, each round waits so long before it is sent, and says when it was."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from . import work
from .client_app import arrays_of

app = ServerApp()


class Pausing(FedAvg):
    """Lets the sites fall idle between rounds."""

    pause_s: float

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        time.sleep(self.pause_s)
        config["sent"] = time.perf_counter()
        return super().configure_train(server_round, arrays, config, grid)


@app.main()
def main(grid: Grid, context: Context) -> None:
    config: dict[str, Any] = dict(context.run_config)
    sites = int(config["sites"])
    options: dict[str, Any] = {
        "min_train_nodes": sites,
        "min_evaluate_nodes": sites,
        "min_available_nodes": sites,
    }
    notes = Notes()
    if config["times-file"]:
        options |= {"train_metrics_aggr_fn": notes.trained, "evaluate_metrics_aggr_fn": notes.evaluated}
    strategy = FedAvg(**options)
    if config["pause-s"]:
        strategy = Pausing(**options)
        strategy.pause_s = float(config["pause-s"])
    strategy.start(grid, arrays_of(work.initial(config)), num_rounds=int(config["num-server-rounds"]), timeout=3600)
    if config["times-file"]:
        Path(str(config["times-file"])).write_text(json.dumps({"train": notes.train, "evaluate": notes.evaluate}))


class Notes:
    """What the sites' replies said: a list of rounds, each a list of sites."""

    def __init__(self) -> None:
        self.train: list[list[dict[str, Any]]] = []
        self.evaluate: list[list[dict[str, Any]]] = []

    def trained(self, replies: list[RecordDict], _: str) -> MetricRecord:
        self.train.append(_metrics(replies))
        return MetricRecord({"sites": len(replies)})

    def evaluated(self, replies: list[RecordDict], _: str) -> MetricRecord:
        self.evaluate.append(_metrics(replies))
        return MetricRecord({"sites": len(replies)})


def _metrics(replies: list[RecordDict]) -> list[dict[str, Any]]:
    return [dict(next(iter(reply.metric_records.values()))) for reply in replies]
