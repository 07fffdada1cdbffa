"""The demo's hospitals: a table cut into three, or three folders of images. Writes files; trains nothing.

`python examples/demo/data.py OUT` writes the three tables and prints the sentence that states how they differ.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
_CUT_SEED = 2023


class DataError(Exception):
    """The data cannot be used. The text is one line for the person at the terminal: what is missing, and where."""


@dataclass(frozen=True)
class TabularSite:
    """How many patients of each kind one hospital trains and tests on."""

    slug: str
    train_malignant: int
    train_benign: int
    test_each: int  # malignant and as many benign

    @property
    def malignant_share(self) -> float:
        return self.train_malignant / (self.train_malignant + self.train_benign)


# Two screening centres and a referral centre: what is skewed is which patients come, not how they are measured.
TABULAR_SITES = (
    TabularSite("st-anna", train_malignant=10, train_benign=70, test_each=35),
    TabularSite("vall-verde", train_malignant=80, train_benign=10, test_each=35),
    TabularSite("northside", train_malignant=10, train_benign=90, test_each=35),
)


def write_wisconsin_sites(out: Path) -> str:
    """Cut the Wisconsin diagnostic breast cancer data into three hospitals below `out`; no patient is in two of them.

    Each hospital gets `train.csv`, `test.csv` (thirty features, then `malignant`, 1 or 0) and a README.md. The cut is
    the same each time.

    Returns:
        The sentence that states the skew, to be shown wherever a gain on these data is shown.
    """
    data = load_breast_cancer()
    is_malignant = data.target == list(data.target_names).index("malignant")
    rng = np.random.default_rng(_CUT_SEED)
    malignant = iter(rng.permutation(np.flatnonzero(is_malignant)))
    benign = iter(rng.permutation(np.flatnonzero(~is_malignant)))
    table = np.column_stack([data.data, is_malignant])
    header = ",".join([*(name.replace(" ", "-") for name in data.feature_names), "malignant"])
    for site in TABULAR_SITES:
        folder = out / site.slug
        folder.mkdir(parents=True, exist_ok=True)
        train = rng.permutation(_take(malignant, site.train_malignant) + _take(benign, site.train_benign))
        test = rng.permutation(_take(malignant, site.test_each) + _take(benign, site.test_each))
        _write_table(folder / "train.csv", table[train], header)
        _write_table(folder / "test.csv", table[test], header)
        (folder / "README.md").write_text(_site_readme(site), encoding="utf-8")
    return describe_skew()


def describe_skew() -> str:
    """The sentence that says how the three hospitals differ."""
    shares = ", ".join(f"{site.malignant_share:.0%} at {site.slug}" for site in TABULAR_SITES)
    tests = TABULAR_SITES[0].test_each
    return (
        f"The three hospitals were cut from one data set so that their training patients differ: {shares} have a "
        f"malignant tumour; each tests on {tests} malignant and {tests} benign patients of its own. "
        "This skew does most of the work in what federating gains here."
    )


def pool_tables(out: Path, sites: Sequence[Path]) -> None:
    """Put the sites' tables into one folder of the same form: what no hospital may do, and a demonstration can."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ("train.csv", "test.csv"):
        header, *_ = (sites[0] / name).read_text(encoding="utf-8").splitlines()
        rows = [row for site in sites for row in (site / name).read_text(encoding="utf-8").splitlines()[1:]]
        (out / name).write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")


def pool_images(out: Path, sites: Sequence[Path]) -> None:
    """As `pool_tables`, for ImageFolder trees; the images are linked, not copied, also to another file system."""
    shutil.rmtree(out, ignore_errors=True)
    for site in sites:
        for image in sorted(path for path in site.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES):
            pooled = out / image.relative_to(site).parent / f"{site.name}-{image.name}"
            pooled.parent.mkdir(parents=True, exist_ok=True)
            pooled.symlink_to(image.resolve())


def _take(rows: Iterator[np.int64], count: int) -> list[int]:
    return [int(next(rows)) for _ in range(count)]


def _write_table(path: Path, rows: NDArray[np.float64], header: str) -> None:
    np.savetxt(path, rows, delimiter=",", header=header, comments="", fmt="%.6g")


def _site_readme(site: TabularSite) -> str:
    return f"""# Fine-needle aspirates of {site.slug}

Wisconsin diagnostic breast cancer data (Wolberg, Street and Mangasarian, 1995; UCI Machine Learning Repository,
CC BY 4.0), as scikit-learn distributes them. One row is one patient; thirty measurements of cell nuclei, then
`malignant` (1 or 0).

- `train.csv`: {site.train_malignant} malignant, {site.train_benign} benign ({site.malignant_share:.0%} malignant)
- `test.csv`: {site.test_each} malignant, {site.test_each} benign

{describe_skew()}
"""


def find_image_sites(folder: Path) -> list[Path]:
    """Return the site folders below `folder`, by name, after checking that each holds an ImageFolder tree.

    A site's folder holds `train/<class>/` and `test/<class>/` with images, the same classes everywhere.

    Raises:
        DataError: a folder or its images are missing, or classes differ; says what is missing where.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder")
    sites = _folders(folder)
    if len(sites) < 2:
        raise DataError(f"{folder} holds {len(sites)} site folders; at least two are needed, one for each hospital")
    classes: dict[str, Path] = {}
    for site in sites:
        for part in ("train", "test"):
            found = _classes(site / part)
            if not classes:
                classes = found
            elif found.keys() != classes.keys():
                missing, extra = sorted(classes.keys() - found.keys()), sorted(found.keys() - classes.keys())
                what = f"has no class folder {missing[0]}" if missing else f"has the class folder {extra[0]} more"
                first = next(iter(classes.values())).parent
                raise DataError(f"{site / part} {what}; {first} sets the classes: {', '.join(sorted(classes))}")
    return sites


def _classes(part: Path) -> dict[str, Path]:
    """The class folders of a train or test folder, each with at least one image."""
    if not part.is_dir():
        raise DataError(f"{part} is missing: each site's folder holds train/<class>/ and test/<class>/")
    classes = {path.name: path for path in _folders(part)}
    if len(classes) < 2:
        raise DataError(f"{part} holds {len(classes)} class folders; at least two are needed")
    for path in classes.values():
        if not any(image.suffix.lower() in IMAGE_SUFFIXES for image in path.iterdir()):
            raise DataError(f"{path} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return classes


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(write_wisconsin_sites(Path(sys.argv[1])))
