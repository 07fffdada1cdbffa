"""Each starter notebook: clean, runs on its own, and learns over three hospitals' folders that differ."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
import xgboost
from flwr.app import MessageType
from PIL import Image
from sklearn.datasets import load_digits

from examples.demo.data import TABULAR_SITES, write_wisconsin_sites
from hub_service import starters
from hub_service.apps.build import AppBuilder, BuiltApp
from tests.fakes.in_memory_grid import loaded, metrics, run, task_identity

NAMES = [one.name for one in starters.STARTERS]
SITES = ("north", "south", "harbour")
builder = AppBuilder(frozenset({"numpy", "torch", "torchvision", "sklearn", "xgboost"}))


@pytest.fixture(autouse=True)
def _as_a_task() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads of several test processes fighting for two cores are slower than one
    with task_identity():
        yield
    torch.set_num_threads(threads)


def test_every_notebook_is_offered_and_every_offer_is_there() -> None:
    folder = Path(starters.__file__).parent
    assert sorted(NAMES) == sorted(path.stem for path in folder.glob("*.ipynb"))
    assert all(one.title and one.description.endswith((".", "?")) for one in starters.STARTERS)


@pytest.mark.parametrize("name", NAMES)
def test_a_starter_is_a_clean_notebook(name: str) -> None:
    notebook = nbformat.reads(starters.read(name).decode(), as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert any("federated" not in cell.metadata.get("tags", []) for cell in code), "nothing to try it with"


def run_top_to_bottom(name: str) -> tuple[dict[str, Any], str]:
    """The notebook's names after its last cell, and what it printed."""
    names: dict[str, Any] = {}
    printed = io.StringIO()
    with redirect_stdout(printed):
        for cell in nbformat.reads(starters.read(name).decode(), as_version=4).cells:
            if cell.cell_type == "code":
                exec(cell.source, names)  # noqa: S102 - our own notebook
    return names, printed.getvalue()


@pytest.mark.parametrize("name", NAMES)
def test_a_starter_runs_from_top_to_bottom_on_its_own(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    _, printed = run_top_to_bottom(name)
    assert ("concordance" if name == "survival" else "accuracy") in printed


# --- three hospitals


def write_tables(folder: Path) -> list[Path]:
    write_wisconsin_sites(folder)
    return [folder / site.slug for site in TABULAR_SITES]


def write_patients(folder: Path) -> list[Path]:
    """Hospitals with hazards and ages of their own, and the same effects."""
    rng = np.random.default_rng(1)
    for site, baseline, age in zip(SITES, (0.01, 0.02, 0.005), (55, 62, 70), strict=True):
        (folder / site).mkdir(parents=True)
        for part, rows in (("train", 120), ("test", 60)):
            patients = np.column_stack(
                [rng.normal(age, 10, rows), rng.gamma(6, 4, rows), rng.poisson(2, rows), rng.integers(0, 2, rows)]
            )
            effects = np.array([0.3, 0.4, 0.5, -0.7])
            hazard = baseline * np.exp((patients - [60, 25, 0, 0]) / [10, 10, 5, 1] @ effects)
            death, end = rng.exponential(1 / hazard), rng.uniform(12, 120, rows)
            table = np.column_stack([patients, np.minimum(death, end).round(), death <= end])
            np.savetxt(folder / site / f"{part}.csv", table, delimiter=",", header="h", comments="", fmt="%.3f")
    return [folder / site for site in SITES]


def write_patches(folder: Path) -> list[Path]:
    rng = np.random.default_rng(1)
    for shade, site in zip((0, 20, 40), SITES, strict=True):
        for part, count in (("train", 8), ("test", 4)):
            for brightness, name in ((60, "idc"), (140, "normal")):
                for number in range(count):
                    low = brightness + shade - 40
                    pixels = rng.integers(low, low + 80, (32, 32, 3), dtype=np.uint8)
                    save(pixels, folder / site / part / name / f"{number}.png")
    return [folder / site for site in SITES]


def write_digits(folder: Path) -> list[Path]:
    digits = load_digits()
    for digit in range(5, 10):
        for index, pixels in enumerate(digits.images[digits.target == digit][:60]):
            part = "train" if index < 36 else "test"
            image = (pixels * 255 / 16).astype(np.uint8)
            save(image, folder / SITES[index % 3] / part / str(digit) / f"{index}.png")
    return [folder / site for site in SITES]


def save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


FOLDERS: dict[str, Callable[[Path], list[Path]]] = {
    "tabular": write_tables,
    "sklearn": write_tables,
    "xgboost": write_tables,
    "survival": write_patients,
    "histopathology": write_patches,
    "finetuning": write_digits,
}
# starter -> metric, and what all three hospitals reach of it within three rounds
REACHES = {
    "tabular": ("accuracy", 0.75),
    "sklearn": ("accuracy", 0.75),
    "xgboost": ("accuracy", 0.8),
    "survival": ("concordance", 0.6),
    "histopathology": ("accuracy", 0.75),
    "finetuning": ("accuracy", 0.7),
}


QUICKER: dict[str, dict[str, object]] = {"tabular": {"local-epochs": 4}, "histopathology": {"batch-size": 4}}


def build(name: str, change: tuple[str, str] = ("", "")) -> BuiltApp:
    return builder.build(f"{name}.ipynb", starters.read(name).replace(*(text.encode() for text in change)))


def mean(answers: list[dict[str, Any]], metric: str) -> float:
    return float(np.average([one[metric] for one in answers], weights=[one["num-examples"] for one in answers]))


@pytest.mark.parametrize("name", NAMES)
def test_a_starter_learns_over_three_hospitals(name: str, tmp_path: Path) -> None:
    app = build(name)
    folders = FOLDERS[name](tmp_path / "data")
    config = {**app.config, **QUICKER.get(name, {}), "num-server-rounds": 3}
    with loaded(app.fab, tmp_path / "apps") as starter:
        grid = run(starter, folders, config)
    assert len(metrics(grid.replies, MessageType.TRAIN)) == 9
    scores = metrics(grid.replies, MessageType.EVALUATE)
    first, last = scores[:3], scores[-3:]
    assert mean(last, "loss") < mean(first, "loss")
    metric, reached = REACHES[name]
    assert mean(last, metric) > reached
    if metric == "accuracy":
        for score in scores:
            counts = np.array(score["confusion"])
            table = counts.reshape(2 * (round(counts.size**0.5),))
            assert counts.sum() == score["num-examples"]
            assert np.trace(table) / table.sum() == pytest.approx(score["accuracy"])


def test_boosted_trees_of_all_hospitals_make_one_forest(tmp_path: Path) -> None:
    app = build("xgboost")
    with loaded(app.fab, tmp_path / "apps") as starter:
        grid = run(starter, write_tables(tmp_path / "data"), {**app.config, "num-server-rounds": 3})
    assert [one["trees"] for one in metrics(grid.replies, MessageType.EVALUATE)] == [3] * 3 + [6] * 3 + [9] * 3
    forest = xgboost.Booster(model_file=bytearray(grid.sent[-1].content["arrays"].to_numpy_ndarrays()[0]))
    assert len(set(forest.get_dump(with_stats=True))) == 9, "a tree was added twice"


@pytest.mark.parametrize(("network", "weights"), [("small", 24), ("resnet18", 11_178), ("vgg16", 14_724)])
def test_the_networks_for_images_have_group_normalisation(network: str, weights: int, tmp_path: Path) -> None:
    app = build("histopathology", ('\\"network\\": \\"small\\"', f'\\"network\\": \\"{network}\\"'))
    with loaded(app.fab, tmp_path / "apps"):
        model = sys.modules["federated_histopathology.notebook"].build_model()
    kinds = {type(layer) for layer in model.modules()}
    assert torch.nn.GroupNorm in kinds
    assert torch.nn.BatchNorm2d not in kinds
    assert round(sum(one.numel() for one in model.parameters()) / 1000) == weights
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 2)


def test_ties_count_as_breslow_has_them(tmp_path: Path, monkeypatch: Any) -> None:
    """By hand: two die at 1 of three at risk, one of them with twice the hazard; the third is censored at 2."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    cox = run_top_to_bottom("survival")[0]
    risk = torch.tensor([2.0, 1.0, 1.0]).log()
    loss = cox["partial_likelihood"](risk, torch.tensor([1.0, 1.0, 2.0]), torch.tensor([1.0, 1.0, 0.0]))
    assert loss.item() == pytest.approx(-(np.log(2 / 4) + np.log(1 / 4)) / 2)
    index, pairs = cox["concordance"](risk, torch.tensor([1.0, 1.0, 2.0]), torch.tensor([1.0, 1.0, 0.0]))
    assert (index, pairs) == (0.75, 2)


def test_only_what_is_fine_tuned_travels(tmp_path: Path) -> None:
    with loaded(build("finetuning").fab, tmp_path / "apps"):
        model = sys.modules["federated_finetuning.notebook"].build_model()
        other = sys.modules["federated_finetuning.notebook"].build_model()
    assert set(model.state_dict()) == {"0.0.weight", "0.0.bias", "1.weight", "1.bias"}
    assert not any(weight.requires_grad for weight in model.body.parameters())
    assert all(torch.equal(one, two) for one, two in zip(model.body.parameters(), other.body.parameters(), strict=True))


def test_the_pretrained_text_holds_what_the_pretraining_makes(tmp_path: Path, monkeypatch: Any) -> None:
    """Nearly: another processor adds in another order."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    names = run_top_to_bottom("finetuning")[0]
    fresh = names["build_model"]()
    images, labels = names["images"], names["labels"]
    kept = torch.nn.Sequential(fresh.body, fresh.top[0], names["pretrained"][2])
    accuracy = (kept(images).argmax(1) == labels).float().mean().item()
    assert accuracy > 0.9
