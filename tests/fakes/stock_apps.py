"""The stock Flower apps of `examples/flower_apps`, as people hand them in, and the data that they take."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np

APPS = Path(__file__).parents[2] / "examples" / "flower_apps"
NAMES = ("decaying-rate", "own-loop", "mods-and-query")


def zipped(name: str) -> bytes:
    """As a file manager zips the folder: everything below the folder's name."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in sorted((APPS / name).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                archive.write(path, f"{name}/{path.relative_to(APPS / name)}")
    return buffer.getvalue()


def write_table(folder: Path, seed: int) -> Path:
    """A site's table: its features lie elsewhere than the others', the difference between the classes is the same."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    for part, rows in (("train", 80), ("test", 40)):
        labels = np.arange(rows) % 2
        features = 0.5 * seed + np.array([1.0, -1.0, 0.5, 0.0]) * labels[:, None] + rng.normal(size=(rows, 4))
        np.savetxt(folder / f"{part}.csv", np.column_stack([features, labels]), delimiter=",", header="h", comments="")
    return folder
