"""The kinds of `work` that need torch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch

SEED = 20231206
_CLASSES = 10
_CHANNELS_OF_A_RESNET, _NORM_GROUPS = 3, 32
_EVALUATED_BATCHES = 10
_OF_A_BENCH = ("kind", "width", "device", "batch", "pixels")
_FLOATS_IN_A_MEGABYTE = 250_000

torch.set_num_threads(1)


class Cnn(torch.nn.Module):
    """About 4 * (9 * width**2 + 172 * width) bytes, for images of 8 pixels."""

    def __init__(self, width: int, pixels: int) -> None:
        torch.manual_seed(SEED)
        super().__init__()
        self.first = torch.nn.Conv2d(1, width, 3)
        self.second = torch.nn.Conv2d(width, width, 3)
        self.head = torch.nn.Linear(width * (pixels - 4) ** 2, _CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.second(torch.relu(self.first(images))))
        return self.head(hidden.flatten(1))


class Layers(torch.nn.Module):
    """Vectors of random numbers, `megabytes` (10**6 bytes) in all."""

    def __init__(self, megabytes: int, layers: int) -> None:
        super().__init__()
        source = torch.Generator().manual_seed(SEED)
        length = megabytes * _FLOATS_IN_A_MEGABYTE // layers
        for number in range(layers):
            values = torch.rand(length, generator=source)
            self.register_parameter(f"layer{number}", torch.nn.Parameter(values, requires_grad=False))


def module(config: Mapping[str, Any]) -> torch.nn.Module:
    if config["kind"] == "cnn":
        return Cnn(int(config["width"]), int(config["pixels"]))
    if config["kind"] == "layers":
        return Layers(int(config["megabytes"]), int(config["layers"]))
    return _resnet(str(config["kind"]))


def initial(config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return dict(module(config).state_dict())


def train(config: Mapping[str, Any], state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns when the device has done it all; the model is in main memory then."""
    if config["kind"] == "layers":
        return {name: tensor.add_(1.0) for name, tensor in state.items()}
    bench = _bench(config)
    bench.module.load_state_dict(state)
    optimizer = torch.optim.SGD(bench.module.parameters(), lr=0.01)
    end = time.perf_counter() + float(config["seconds"])
    while True:
        optimizer.zero_grad()
        bench.loss().backward()
        optimizer.step()
        bench.wait()
        if time.perf_counter() >= end:
            return {name: tensor.cpu() for name, tensor in bench.module.state_dict().items()}


@torch.no_grad()
def evaluate(config: Mapping[str, Any], state: dict[str, torch.Tensor]) -> float:
    if config["kind"] == "layers":
        return float(sum(tensor[0] for tensor in state.values()))
    bench = _bench(config)
    bench.module.load_state_dict(state)
    batches = 1 if config["kind"] == "cnn" else _EVALUATED_BATCHES
    return float(sum(bench.loss() for _ in range(batches)) / batches)


class Bench:
    """A model and one batch of random images, both on the device."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.device = torch.device(str(config["device"]))
        self.module = module(config).to(self.device)
        source = torch.Generator().manual_seed(SEED)
        batch, pixels = int(config["batch"]), int(config["pixels"])
        channels = 1 if config["kind"] == "cnn" else _CHANNELS_OF_A_RESNET
        self.images = torch.rand(batch, channels, pixels, pixels, generator=source).to(self.device)
        self.labels = torch.randint(_CLASSES, (batch,), generator=source).to(self.device)

    def loss(self) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self.module(self.images), self.labels)

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _resnet(name: str) -> torch.nn.Module:
    """Without batch normalisation: its counters are whole numbers, and averages of them are none."""
    from torchvision import models  # takes long to import

    torch.manual_seed(SEED)
    return models.get_model(name, weights=None, norm_layer=lambda channels: torch.nn.GroupNorm(_NORM_GROUPS, channels))


def _bench(config: Mapping[str, Any]) -> Bench:
    """The model and the images stay on the device from round to round."""
    return _kept_bench(tuple((name, config[name]) for name in _OF_A_BENCH))


@cache
def _kept_bench(items: tuple[tuple[str, Any], ...]) -> Bench:
    return Bench(dict(items))
