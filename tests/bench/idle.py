"""What a participant's notebook server asks while nothing happens, and how soon it hears that something does."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path

from tests.bench import hub
from tests.bench.rows import Row
from tests.bench.workload import TINY

SITES = 3
PAUSE_S = 2.0
ROUNDS, ROUNDS_AFTER = 8, 2
SETTLE_S, IDLE_S = 10.0, 80.0
PER_S = 20.0
REQUESTS_GOAL, REACTION_GOAL_S = 1.0, 0.2
_PROXIED = re.compile(r"PROXY (?:WEB|WS) (\S+)")
_IDS = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}|\?\S*")


async def measured(folder: Path, with_peers: bool) -> AsyncGenerator[Row]:
    """All rows of this module. There are no peers in them."""
    del folder, with_peers
    workload = replace(TINY, pause_s=PAUSE_S)
    async with hub.running_hub("idle", SITES, proxy_logs_all=True) as running:
        await hub.start_servers(running.people)
        project = await hub.new_project(running, "Idle", workload, running.people)
        await hub.all_ready(project)
        run = await hub.run(project, ROUNDS)
        await asyncio.sleep(SETTLE_S)
        log = running.stack.log("hub")
        before = log.stat().st_size
        if not _asked(log, 0):
            raise OSError(f"the proxy has not logged one request in {log}")
        await asyncio.sleep(IDLE_S)
        asked = _asked(log, before)
        after = await hub.run(project, ROUNDS_AFTER)
    by_round = [[part["train"]["reaction"] for part in one["sites"]] for one in run.rounds]
    woken = [part["train"]["reaction"] for part in after.rounds[0]["sites"]]
    yield Row(
        f"requests of an idle participant through the Hub's proxy in {PER_S:.0f} s",
        "requests",
        [asked.total() / SITES / (IDLE_S / PER_S)],
        REQUESTS_GOAL,
        note=f"{asked.total()} of {SITES} participants in {IDLE_S:.0f} s, by the proxy's log",
        raw={"by_path": dict(asked)},
    )
    yield Row(
        "an idle node's reaction: a round's message made, training begun",
        "s",
        [reaction for one in by_round[1:] for reaction in one],
        REACTION_GOAL_S,
        note=f"{PAUSE_S:g} s of pause before each round; the first message of a run after {IDLE_S:.0f} s: "
        f"{max(woken):.2f} s",
        raw={"by_round": by_round, "woken": woken},
    )


def _asked(log: Path, offset: int) -> Counter[str]:
    """Requests that the proxy has logged since, by path without ids and query."""
    with log.open("rb") as file:
        file.seek(offset)
        text = file.read().decode(errors="replace")
    return Counter(_IDS.sub("*", path) for path in _PROXIED.findall(text))
