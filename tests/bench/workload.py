"""What is run: one Flower app, built for each size of model. The same bytes go to our service and to stock Flower."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from pathlib import Path

import tomli_w
from flwr.cli.build import build_fab_from_files

APP = Path(__file__).parent / "app"


@dataclass(frozen=True)
class Workload:
    """A model and how it is run; `kind` and what goes with it are those of `app/benchapp/work.py`.

    Attributes:
        device: of torch, where the model is trained.
        batch, pixels: images of a batch, and their width and height.
        seconds: how long a site trains in a round.
        pause_s: seconds that the ServerApp waits before each round.
    """

    title: str
    kind: str
    width: int = 0
    megabytes: int = 0
    layers: int = 1
    device: str = "cpu"
    batch: int = 8
    pixels: int = 8
    seconds: float = 0.0
    rounds: int = 3
    sites: int = 3
    pause_s: float = 0.0

    def with_rounds(self, rounds: int) -> Workload:
        return replace(self, rounds=rounds)

    def config(self) -> dict[str, str | int | float]:
        return {
            "num-server-rounds": self.rounds,
            "kind": self.kind,
            "width": self.width,
            "megabytes": self.megabytes,
            "layers": self.layers,
            "device": self.device,
            "batch": self.batch,
            "pixels": self.pixels,
            "seconds": self.seconds,
            "sites": self.sites,
            "pause-s": self.pause_s,
        }

    def fab(self) -> bytes:
        """The Flower App Bundle."""
        pyproject = tomllib.loads((APP / "pyproject.toml").read_text())
        pyproject["tool"]["flwr"]["app"]["config"] |= self.config()
        files = {f"benchapp/{path.name}": path.read_bytes() for path in sorted((APP / "benchapp").glob("*.py"))}
        return bytes(build_fab_from_files({"pyproject.toml": tomli_w.dumps(pyproject).encode(), **files})[0])


SMALL = Workload("CNN of 25 KB", "cnn", width=18)
MEDIUM = Workload("CNN of 1 MB", "cnn", width=158)
LARGE = Workload("100 MB model", "layers", megabytes=100, layers=10)
HUGE = Workload("1 GB model", "layers", megabytes=1000, layers=20, rounds=2)
RESNET = Workload("ResNet-50", "resnet50", device="cuda", batch=32, pixels=224, seconds=10.0, rounds=5)
TINY = Workload("tiny model", "numpy")
