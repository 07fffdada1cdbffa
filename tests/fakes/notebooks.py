"""Small notebooks, as bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

# A whole app without torch: one weight that moves to the mean of a site's numbers.
MEAN_CELLS = (
    "import numpy as np\nfrom pathlib import Path\nCONFIG = {'step': 0.5, 'num-server-rounds': 4}",
    """class Mean:
    def __init__(self):
        self.weights = [np.zeros(1)]

    def get_weights(self):
        return self.weights

    def set_weights(self, weights):
        self.weights = [weight.copy() for weight in weights]


def build_model():
    return Mean()""",
    """def load_data(path, config):
    return tuple(np.loadtxt(Path(path) / name, ndmin=1) for name in ("train.txt", "test.txt"))""",
    """def train(model, data, config):
    model.weights[0] += config["step"] * (data.mean() - model.weights[0])
    return {"round": config["round"]}


def evaluate(model, data, config):
    return {"error": abs(float(data.mean() - model.weights[0][0]))}""",
)


def code(source: str, *tags: str) -> dict[str, object]:
    return {
        "cell_type": "code",
        "execution_count": None,
        "metadata": {"tags": list(tags)} if tags else {},
        "outputs": [],
        "source": source,
    }


def markdown(source: str) -> dict[str, object]:
    return {"cell_type": "markdown", "metadata": {}, "source": source}


def notebook(*cells: dict[str, object]) -> bytes:
    document = {"cells": list(cells), "metadata": {}, "nbformat": 4, "nbformat_minor": 4}
    return json.dumps(document).encode()


def federated(*sources: str) -> bytes:
    """A notebook of tagged cells only."""
    return notebook(*(code(source, "federated") for source in sources))


def mean_notebook(*more: str, cells: Sequence[str] = MEAN_CELLS) -> bytes:
    return federated(*cells, *more)


def write_numbers(folder: Path, train: Sequence[float], test: Sequence[float]) -> Path:
    """One site's data for MEAN_CELLS."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.txt").write_text("\n".join(map(str, train)))
    (folder / "test.txt").write_text("\n".join(map(str, test)))
    return folder
