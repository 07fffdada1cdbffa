"""A researcher fetches a starter into their server, tries it with three pretended sites, and publishes it."""

from __future__ import annotations

import asyncio
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path

import federator
import pytest
from federator import authoring
from federator.contract import ANY_LENGTH
from federator.outputs import outputs_of

from hub_service.apps.build import AppBuilder
from tests.fakes.hub import FakeHub
from tests.fakes.web_world import World, served_world
from tests.singleuser.test_real_service import become, forget_who_asks
from tests.unit.test_starter_notebooks import FOLDERS


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setenv("FEDERATOR_DATASETS", "{}")
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    monkeypatch.chdir(tmp_path)
    builder = AppBuilder(frozenset({"numpy", "torch", "xgboost"}))
    async with served_world(tmp_path / "service", FakeHub()) as served:
        monkeypatch.setattr(served.coordinator, "_builder", builder)
        become(served, "ada", monkeypatch)
        authoring._trials.cache_clear()
        yield served
    authoring._trials.cache_clear()
    forget_who_asks()


@pytest.mark.parametrize(
    ("name", "metric", "array", "shape"),
    [("survival", "concordance", "weight", (1, 4)), ("xgboost", "accuracy", "0", (ANY_LENGTH,))],
)
async def test_a_starter_is_fetched_tried_and_published(
    world: World, tmp_path: Path, name: str, metric: str, array: str, shape: tuple[int, ...]
) -> None:
    folders = FOLDERS[name](tmp_path / "data")
    path = await asyncio.to_thread(federator.starter, name)
    trial = await asyncio.to_thread(federator.try_here, path, data=[str(folder) for folder in folders], rounds=2)
    assert len(trial.rounds) == 2
    assert f"all sites ({metric})" in repr(trial)
    project = await asyncio.to_thread(federator.publish, path, "Begun with a starter")
    (version,) = await asyncio.to_thread(lambda: project.refresh().detail.versions)
    review = world.coordinator.app_review(world.principal("ada"), project.id, version.fab_hash)
    (pyproject,) = [file.text for file in review.files if file.path == "pyproject.toml"]
    declared = outputs_of(tomllib.loads(pyproject)["tool"])
    assert [one.shape for one in declared if one.kind == "arrays"] == [shape]
    assert [one.key for one in declared if one.kind == "arrays"] == [array]
