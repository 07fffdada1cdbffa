"""The model and the data."""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

FEATURES = 4


class Net(nn.Module):
    """Logistic regression."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.layer(features).squeeze(1)


def load_table(node_config: dict, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Features and labels of this node: from its folder, or made up where it has none."""
    if "dataset-path" in node_config:
        table = np.loadtxt(Path(node_config["dataset-path"]) / f"{part}.csv", delimiter=",", skiprows=1)
        return table[:, :-1].astype(np.float32), table[:, -1].astype(np.float32)
    rng = np.random.default_rng([int(node_config.get("partition-id", 0)), part == "train"])
    labels = rng.integers(0, 2, 60).astype(np.float32)
    return rng.normal(labels[:, None], 1.0, (60, FEATURES)).astype(np.float32), labels


def load_data(node_config: dict, part: str) -> DataLoader:
    features, labels = load_table(node_config, part)
    return DataLoader(TensorDataset(torch.from_numpy(features), torch.from_numpy(labels)), batch_size=16, shuffle=True)


def train(net: Net, loader: DataLoader, epochs: int, learning_rate: float) -> float:
    """Train in place; the mean loss."""
    optimizer = torch.optim.SGD(net.parameters(), lr=learning_rate)
    total = 0.0
    for _ in range(epochs):
        for features, labels in loader:
            optimizer.zero_grad()
            loss = nn.functional.binary_cross_entropy_with_logits(net(features), labels)
            loss.backward()
            optimizer.step()
            total += loss.item() * len(labels)
    return total / (epochs * len(loader.dataset))


def test(net: Net, loader: DataLoader) -> tuple[float, float]:
    """Loss and accuracy."""
    loss, right = 0.0, 0
    with torch.no_grad():
        for features, labels in loader:
            scores = net(features)
            loss += nn.functional.binary_cross_entropy_with_logits(scores, labels, reduction="sum").item()
            right += ((scores > 0) == (labels == 1)).sum().item()
    return loss / len(loader.dataset), right / len(loader.dataset)
