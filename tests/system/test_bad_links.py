"""Sites behind bad networks: cut off in a run, and with loss, latency and little bandwidth. Real nodes and packets.

`--cut-seconds` is how long the link is cut: twenty, or the six minutes of `make chaos`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from federator.contract import ClientState, OutagePolicy
from tornado.netutil import bind_sockets

from hub_service.domain.runs import EventKind
from tests.fakes.fleet import fleet
from tests.fakes.flower_apps import SERVER
from tests.fakes.links import Link, Quality
from tests.fakes.node_process import Site
from tests.singleuser.test_outages import Scene, answers, round_ended

pytestmark = pytest.mark.needs_namespaces

POOR = Quality(latency_s=0.15, loss=0.05, bits_s=1e6)


@asynccontextmanager
async def scene(folder: Path, link: Link, server: str = SERVER) -> AsyncIterator[Scene]:
    """Three sites, the last of which has the link."""
    async with fleet(folder) as it:
        sockets = bind_sockets(0, link.address)
        it.server.add_sockets(sockets)
        at = Scene(it, server)
        address = f"{link.address}:{sockets[0].getsockname()[1]}"
        at.lost = at.sites[-1] = Site(it, "c", 3.0, within=link.within, address=address)
        try:
            yield at
        finally:
            await asyncio.gather(*(site.end() for site in at.sites))


async def test_a_site_that_was_cut_off_is_waited_for(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """No connection is reset: it finishes its training in the dark, and its answer comes once the link is back."""
    with Link() as link:
        async with scene(tmp_path, link) as at:
            at.hold(2)
            await at.start(OutagePolicy.WAIT)
            await at.trains(2)
            link.cut()
            at.release(2)
            await asyncio.sleep(request.config.getoption("--cut-seconds"))  # the fault itself
            link.mend()
            events = await at.it.events(lambda event: event.kind is EventKind.FINISHED, within=180.0)
            for site in at.sites:
                assert answers(events, site) == {1: "", 2: "", 3: ""}


async def test_a_site_that_was_cut_off_is_left_out_and_comes_back(tmp_path: Path) -> None:
    with Link() as link:
        async with scene(tmp_path, link) as at:
            at.hold(2)
            at.hold(3, "a")
            await at.start(OutagePolicy.CONTINUE, rounds=4, grace_s=5.0)
            await at.trains(2)
            link.cut()
            at.release(2)
            await at.event(round_ended(2))
            link.mend()
            await at.trains(3, "a")
            await at.lost.says(ClientState.READY)
            at.release(3, "a")
            events = await at.it.events(lambda event: event.kind is EventKind.FINISHED, within=180.0)
            mine = answers(events, at.lost)
            assert mine[1] == mine[4] == ""
            assert mine[2].startswith("left out")
            assert answers(events, at.sites[0]) == {1: "", 2: "", 3: "", 4: ""}


async def test_a_poor_link_is_slow_and_loses_nothing(tmp_path: Path) -> None:
    """5 % of the packets lost, 300 ms there and back, 1 Mbit/s. TCP makes about 0.2 Mbit/s of it."""
    server = SERVER.replace("np.zeros((2, 3)", "np.zeros((150, 250)")
    with Link(POOR) as link:
        async with scene(tmp_path, link, server) as at:
            await at.start(OutagePolicy.CONTINUE, rounds=2)
            events = await at.it.events(lambda event: event.kind is EventKind.FINISHED, within=300.0)
            for site in at.sites:
                assert answers(events, site) == {1: "", 2: ""}
            assert not any(event.kind is EventKind.OUTAGE for event in events)
            assert link.lost > 0.02 * link.passed
