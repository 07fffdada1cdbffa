"""The engine that the contract suite runs containers on: the one that has just built their image. Nothing is copied."""

from __future__ import annotations

from contextlib import closing

import pytest

from hub_service.aggregators.docker import INSTANCE
from tests.fakes.engines import BuildEngine


@pytest.fixture(scope="package")
def engine(build_engine: BuildEngine) -> str:
    """Address of an engine with the aggregators' image and without containers of earlier test runs."""
    with closing(build_engine.client()) as client:
        client.containers.prune(filters={"label": INSTANCE})
    return build_engine.host
