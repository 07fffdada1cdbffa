"""A service of its own for every test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fakes.hub import FakeHub
from tests.fakes.web_world import World, served_world


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with served_world(tmp_path, FakeHub()) as world:
        yield world
