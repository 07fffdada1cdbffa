"""Both cullers that hospitals run, with no patience at all: the Hub's for servers, and Jupyter's own for kernels."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from examples.demo.browser import Browser
from examples.demo.people import ADMINISTRATOR, RESEARCHERS
from examples.demo.stack import Stack

KERNELS_IDLE_S = 5
SERVERS_IDLE_S = 75  # a server's extension is heard of once in 50 s
SCOPES = ["list:users", "read:users:activity", "read:servers", "delete:servers"]


def cull_kernels(stack: Stack) -> None:
    """Every researcher's server, from its next start on: idle kernels end, and the Hub hears of activity at once."""
    config = {
        "MappingKernelManager": {"cull_idle_timeout": KERNELS_IDLE_S, "cull_interval": 1, "cull_connected": True},
        "JupyterHubSingleUser": {"hub_activity_interval": 1},
    }
    for one in RESEARCHERS:
        folder = stack.folder / "sites" / one.site / one.username / ".jupyter"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "jupyter_server_config.json").write_text(json.dumps(config))


@contextlib.asynccontextmanager
async def servers_are_culled(stack: Stack) -> AsyncIterator[Path]:
    """jupyterhub-idle-culler at work; gives its log. It begins anew where the Hub is away."""
    administrator = Browser(ADMINISTRATOR.username, ADMINISTRATOR.subject, stack.origin)
    await administrator.log_in()
    answer = await administrator.hub("POST", f"/hub/api/users/{ADMINISTRATOR.username}/tokens", {"scopes": SCOPES})
    assert answer.status_code == 201, answer.text
    await administrator.close()
    log = stack.folder / "culler.log"
    keeping = asyncio.create_task(_keep(stack.origin, answer.json()["token"], log))
    try:
        yield log
    finally:
        keeping.cancel()
        await asyncio.wait({keeping})


async def _keep(origin: str, token: str, log: Path) -> None:
    while True:
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "jupyterhub_idle_culler", f"--url={origin}/hub/api"),
                *(f"--timeout={SERVERS_IDLE_S}", "--cull-every=5"),
                env={**os.environ, "JUPYTERHUB_API_TOKEN": token},
                stdout=output,
                stderr=output,
            )
        try:
            await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        await asyncio.sleep(1)
