"""The demo's hospitals: what the table's cut promises, and what is said of image folders that do not fit."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from examples.demo.data import (
    TABULAR_SITES,
    DataError,
    find_image_sites,
    pool_images,
    pool_tables,
    write_wisconsin_sites,
)
from examples.demo.people import INSTITUTIONS


def test_no_patient_is_in_two_places_and_the_stated_counts_hold(tmp_path):
    sentence = write_wisconsin_sites(tmp_path)
    rows = []
    for site in TABULAR_SITES:
        train, test = (
            np.loadtxt(tmp_path / site.slug / f"{part}.csv", delimiter=",", skiprows=1) for part in ("train", "test")
        )
        assert train.shape == (site.train_malignant + site.train_benign, 31)
        assert train[:, -1].sum() == site.train_malignant
        assert len(test) == 2 * site.test_each
        assert test[:, -1].sum() == site.test_each
        assert f"{site.malignant_share:.0%} at {site.slug}" in sentence
        assert sentence in (tmp_path / site.slug / "README.md").read_text()
        rows += [tuple(row) for row in np.vstack([train, test])]
    assert len(set(rows)) == len(rows)


def test_the_cut_is_the_same_each_time(tmp_path):
    write_wisconsin_sites(tmp_path / "first")
    write_wisconsin_sites(tmp_path / "second")
    for path in (tmp_path / "first").rglob("*.csv"):
        assert path.read_bytes() == (tmp_path / "second" / path.relative_to(tmp_path / "first")).read_bytes()


def test_the_hospitals_are_those_of_the_demo():
    assert {site.slug for site in TABULAR_SITES} == {institution.site for institution in INSTITUTIONS}


def test_pooled_tables_hold_every_row_once(tmp_path):
    write_wisconsin_sites(tmp_path)
    sites = [tmp_path / site.slug for site in TABULAR_SITES]
    pool_tables(tmp_path / "pooled", sites)
    for name in ("train.csv", "test.csv"):
        each = [np.loadtxt(site / name, delimiter=",", skiprows=1) for site in sites]
        assert (np.loadtxt(tmp_path / "pooled" / name, delimiter=",", skiprows=1) == np.vstack(each)).all()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two sites with two classes each, and litter that does not count."""
    for site in ("site-b", "site-a"):
        for part in ("train", "test"):
            for name in ("idc", "normal"):
                folder = tmp_path / site / part / name
                folder.mkdir(parents=True)
                (folder / "1.PNG").touch()
    (tmp_path / ".cache").mkdir()
    (tmp_path / "README.md").touch()
    return tmp_path


def test_image_sites_are_found_by_name(images):
    assert find_image_sites(images) == [images / "site-a", images / "site-b"]


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("site-a", "holds 1 site folders"),
        ("site-b/test", "site-b/test is missing"),
        ("site-a/train/idc", "site-a/train holds 1 class folders"),
        ("site-b/test/idc/1.PNG", "site-b/test/idc holds no image"),
    ],
)
def test_what_is_missing_is_named(images, broken, reason):
    path = images / broken
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(DataError, match=reason):
        find_image_sites(images)


def test_other_classes_are_named(images):
    (images / "site-b/train/idc").rename(images / "site-b/train/cancer")
    with pytest.raises(
        DataError, match=r"site-b/train has no class folder idc; .*site-a/train sets the classes: idc, normal"
    ):
        find_image_sites(images)
    shutil.copytree(images / "site-b/train/cancer", images / "site-b/train/idc")
    with pytest.raises(DataError, match="site-b/train has the class folder cancer more"):
        find_image_sites(images)


def test_no_folder_at_all(tmp_path):
    with pytest.raises(DataError, match="is no folder"):
        find_image_sites(tmp_path / "nowhere")


def test_pooled_images_keep_the_site_in_their_names(images):
    pool_images(images.parent / "pooled", find_image_sites(images))
    found = {str(path.relative_to(images.parent / "pooled")) for path in (images.parent / "pooled").rglob("*.PNG")}
    assert found == {
        f"{part}/{name}/{site}-1.PNG"
        for part in ("train", "test")
        for name in ("idc", "normal")
        for site in ("site-a", "site-b")
    }
