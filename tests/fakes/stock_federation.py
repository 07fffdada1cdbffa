"""Flower as it ships, beside ours: a `flower-superlink` and its `flower-supernode`s, without authentication."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import psutil

from hub_service.aggregators.base import Endpoint
from hub_service.aggregators.processes import answers

HOST = "127.0.0.1"
_STARTS_WITHIN_S, _ENDS_WITHIN_S = 60.0, 10.0


@contextlib.asynccontextmanager
async def stock_federation(folder: Path, sites: Sequence[str]) -> AsyncIterator[Endpoint]:
    """Yield the SuperLink's endpoint. Each site is told its name in the node config, as `site`.

    Each process has its log in the folder, by the name of the site or `superlink.log`. None outlives the block.
    """
    endpoint = Endpoint(HOST, _free_port())
    async with contextlib.AsyncExitStack() as processes:
        superlink = ("flower-superlink", "--insecure", "--host", HOST, "--port", str(endpoint.port))
        options = ("--disable-runtime-dependency-installation", "--database", str(folder / "superlink.db"))
        await processes.enter_async_context(_process(folder, "superlink", *superlink, *options))
        async with asyncio.timeout(_STARTS_WITHIN_S):
            await answers(endpoint)
        for site in sites:
            supernode = ("flower-supernode", "--insecure", "--superlink", endpoint.address)
            config = ("--port", str(_free_port()), "--node-config", f'site="{site}"')
            await processes.enter_async_context(_process(folder, site, *supernode, *config))
        yield endpoint


@contextlib.asynccontextmanager
async def _process(folder: Path, name: str, command: str, *arguments: str) -> AsyncIterator[None]:
    binaries = Path(sys.executable).parent
    with (folder / f"{name}.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            str(binaries / command),
            *arguments,
            env={
                **os.environ,
                "PATH": os.pathsep.join((str(binaries), os.environ["PATH"])),
                "FLWR_HOME": str(folder / f"flwr-{name}"),
                "FLWR_TELEMETRY_ENABLED": "0",
                "FLWR_DISABLE_UPDATE_CHECK": "1",
                "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.05",
            },
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield
    finally:
        await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    """With all that it started: Flower puts its SuperExec and the apps into sessions of their own."""
    family: list[psutil.Process] = []
    with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_ENDS_WITHIN_S):
            await process.wait()
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()
    for one in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
