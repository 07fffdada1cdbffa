"""A real run whose service loses its database: real PostgreSQL, nodes, gateway, aggregator and event stream."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from federator.contract import RunStatus

from hub_service.aggregators.events import EVENTS_FILE, read_events
from hub_service.audit import Decision
from hub_service.domain.runs import EventKind
from hub_service.store.sql import SqlStore
from tests.fakes.postgresql import Cluster
from tests.singleuser.test_live_run import BOTH_TRAIN, followed, has_points, live, states, until_ready

log = logging.getLogger(__name__)


@pytest.fixture
def store(cluster: Cluster) -> Iterator[SqlStore]:
    store = SqlStore(cluster.empty_database())
    yield store
    store.close()
    if not cluster.is_up:
        cluster.start()


async def round_is_begun(run_folder: Path, number: int) -> None:
    async with asyncio.timeout(60):
        while True:
            events, _ = read_events(run_folder)
            if any(one.round == number for one in events):
                return
            await asyncio.sleep(0.05)


@pytest.mark.needs_postgresql
@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_the_run_goes_on_and_every_round_is_there(
    tmp_path: Path, store: SqlStore, cluster: Cluster, mode: str, request: pytest.FixtureRequest
) -> None:
    """`--database-seconds` is how long it stays away once rounds went on without it."""
    away_s = request.config.getoption("--database-seconds")
    async with live(tmp_path, store) as it, followed(it) as stream:
        await until_ready(stream)
        run_id = it.start(4)
        await stream.until("run", lambda run: states(run) == BOTH_TRAIN)
        it.let_go(1)
        await stream.until("figure", has_points(1))
        await asyncio.to_thread(cluster.stop, mode)
        for number in (2, 3):
            it.let_go(number)
        [events_file] = (tmp_path / "state").rglob(EVENTS_FILE)
        await round_is_begun(events_file.parent, 4)  # those before went on without the database
        await asyncio.sleep(away_s)  # the fault itself
        await asyncio.to_thread(cluster.start)
        back = time.monotonic()
        await stream.until("figure", has_points(3))
        log.info("seconds from the database's return to its curves in the stream: %.1f", time.monotonic() - back)
        it.let_go(4)
        run = await stream.until("run", lambda run: run["summary"]["status"] == "finished")
        assert [one["number"] for one in run["rounds"]] == [1, 2, 3, 4]
        kept = store.run(run_id)
        assert kept is not None
        assert (kept.status, kept.resumed, kept.model_round) == (RunStatus.FINISHED, 0, 4)
        replies = [
            (one.round, one.message_type, one.node_id) for one in store.events(run_id) if one.kind is EventKind.REPLY
        ]
        assert len(replies) == len(set(replies)) == 4 * 2 * 2  # rounds, train and evaluate, sites
        assert len([one for one in store.audit_lines() if one.action == Decision.RUN_ENDED]) == 1
