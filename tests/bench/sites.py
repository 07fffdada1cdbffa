"""What sites on Docker engines cost their people: a server's start, and one hospital's trouble for another.

All figures of one run come from one Hub on one machine, one after the other, so ratios between them mean something on a
noisy machine, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from pathlib import Path

import httpx

from examples.demo.browser import Browser, StepError
from examples.demo.data import write_wisconsin_sites
from examples.demo.people import COLLEAGUES, RESEARCHERS
from tests.bench.rows import Peer, Row
from tests.fakes.engines import ENGINES, BuildEngine
from tests.system.docker_sites import DockerSites, running_docker_sites, running_engines

SPAWN = "spawn to kernel answer"
STARTS = 5
PAGES = 40
SPAWN_GOAL_S = 10.0
FROZEN_RATIO = 0.5  # no more than twice as slow


@contextlib.contextmanager
def sites(folder: Path) -> Iterator[DockerSites]:
    """A Hub with hospitals on engines of their own."""
    write_wisconsin_sites(folder / "data")
    with BuildEngine(ENGINES / "build") as build:
        build.build_test_images()
        with running_engines(build) as engines:
            datasets = {site: folder / "data" / site for site in engines}
            with running_docker_sites(folder / "stack", datasets, engines, build) as running:
                yield running


async def measured(folder: Path, with_peers: bool) -> AsyncGenerator[Row]:
    """All rows of this module. `folder`: for the sites' files. There are no peers in them."""
    del with_peers
    folder.mkdir(parents=True)
    with sites(folder) as running:
        for row in await _measured(running):
            yield row


async def _measured(running: DockerSites) -> list[Row]:
    amara = await _logged_in(running, 0)
    await _start_to_answer(amara)  # the first reads the image's files from disk: not a warm engine yet
    normal = await _figures(amara)
    clara = Browser(COLLEAGUES[1].username, COLLEAGUES[1].subject, running.stack.origin)
    await clara.log_in()
    engine = running.engines[COLLEAGUES[1].site]
    engine.freeze()
    try:
        frozen = asyncio.create_task(_kept_starting(clara))
        troubled = await _figures(amara)
        frozen.cancel()
        await asyncio.wait({frozen})
    finally:
        engine.thaw()
    for browser in (amara, clara):
        await browser.close()
    frozen_site = ((name, troubled[name], normal[name]) for name in normal)
    return [
        Row(SPAWN, values=normal[SPAWN], goal=SPAWN_GOAL_S),
        *(
            Row(f"{name}, another site frozen", values=now, peers=[Peer("no site frozen", usual, FROZEN_RATIO)])
            for name, now, usual in frozen_site
        ),
    ]


async def _logged_in(running: DockerSites, index: int) -> Browser:
    browser = Browser(RESEARCHERS[index].username, RESEARCHERS[index].subject, running.stack.origin)
    await browser.log_in()
    return browser


async def _figures(browser: Browser) -> dict[str, list[float]]:
    return {
        SPAWN: [await _start_to_answer(browser) for _ in range(STARTS)],
        "API call": await _times(PAGES, lambda: browser.get("api/projects")),
        "Hub page": await _times(PAGES, lambda: _home(browser)),
    }


async def _start_to_answer(browser: Browser) -> float:
    """From the click on "Start my server" to a kernel's first answer, in seconds."""
    begun = time.perf_counter()
    await browser.start_server()
    answer = await browser.run_cell("print(6 * 7)")
    taken = time.perf_counter() - begun
    assert answer == "42\n", answer
    await browser.stop_server()
    return taken


async def _home(browser: Browser) -> None:
    answer = await browser.http.get("/hub/home")
    assert answer.status_code == httpx.codes.OK


async def _kept_starting(browser: Browser) -> None:
    """Somebody at the frozen site tries again and again."""
    while True:
        with contextlib.suppress(StepError):
            await browser.start_server()


async def _times(count: int, act: Callable[[], Awaitable[object]]) -> list[float]:
    taken = []
    for _ in range(count):
        begun = time.perf_counter()
        await act()
        taken.append(time.perf_counter() - begun)
    return taken
