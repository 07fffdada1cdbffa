"""The models that are measured. Knows of no framework for federated learning: each peer's client runs this file.

A workload's `kind`:

    cnn       a convolutional network of `width` channels, one batch of images a round (torch)
    layers    `layers` vectors of float32, `megabytes` in all; training adds 1 (torch)
    numpy     one vector of 16 numbers; training adds 1 (no torch)
    resnet50  or another ResNet of torchvision, on `device`, batch after batch for `seconds` (torch)

Images are random: `batch` of them, `pixels` wide and high.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np

SEED = 20231206
State = dict[str, Any]


def initial(config: Mapping[str, Any]) -> State:
    """The model before the first round: name -> tensor, or numpy array for the kind `numpy`."""
    if config["kind"] == "numpy":
        return {"vector": np.zeros(16, dtype=np.float32)}
    from . import torch_work

    return torch_work.initial(config)


def train(config: Mapping[str, Any], state: State) -> State:
    """One batch, or some seconds of them. May work in place."""
    if config["kind"] == "numpy":
        return {name: array + np.float32(1) for name, array in state.items()}
    return _torch().train(config, state)


def evaluate(config: Mapping[str, Any], state: State) -> float:
    """A loss."""
    if config["kind"] == "numpy":
        return float(sum(array.sum() for array in state.values()))
    return float(_torch().evaluate(config, state))


def timed(act: Callable[[Mapping[str, Any], State], Any], config: Mapping[str, Any], state: State) -> tuple[Any, dict]:
    """What `act` returns, and when it began and how long it took: seconds of the machine's monotonic clock."""
    begun = time.perf_counter()
    result = act(config, state)
    return result, {"begun": begun, "inside": time.perf_counter() - begun}


@cache
def _torch() -> Any:
    from . import torch_work

    return torch_work
