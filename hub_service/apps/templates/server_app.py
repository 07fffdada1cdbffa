"""What runs in the aggregator: rounds of training and evaluation over the nodes that are there."""

import logging
from typing import Any

import numpy as np
from flwr.app import DEFAULT_TTL, Context
from flwr.serverapp import Grid, ServerApp

from . import notebook, strategies, task

app = ServerApp()

_log = logging.getLogger("flwr")


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Start from the same initial model each time, and go through the rounds."""
    config: dict[str, Any] = dict(context.run_config)
    task.seed_everything(config["seed"])
    initial = task.arrays_of(notebook.build_model())
    strategy = _strategy(config)
    lower_minima(strategy, nodes=max(1, len(list(grid.get_node_ids()))))
    if _adds_noise(strategy):
        np.random.seed(None)  # who knows the seed could take the noise away again
    # A site may train for hours. One that is gone is answered for by the SuperLink, so nothing waits for it.
    strategy.start(grid=grid, initial_arrays=initial, num_rounds=int(config["num-server-rounds"]), timeout=DEFAULT_TTL)


def _strategy(config: dict[str, Any]) -> Any:
    """The notebook's own strategy, else the one that the configuration names, else federated averaging."""
    return notebook.strategy(config) if hasattr(notebook, "strategy") else strategies.chosen(config)


def _adds_noise(strategy: Any) -> bool:
    """Whether it is one of Flower's wrappers for differential privacy."""
    return hasattr(strategy, "strategy")


def lower_minima(strategy: Any, nodes: int) -> None:
    """Flower waits without end for nodes that a strategy demands beyond those there are; lower what it demands."""
    for name in strategies.MINIMA:
        demanded = getattr(strategy, name, 0)
        if demanded > nodes:
            _log.warning("%s lowered from %d to %d: so many nodes take part", name, demanded, nodes)
            setattr(strategy, name, nodes)
    if _adds_noise(strategy):
        lower_minima(strategy.strategy, nodes)
