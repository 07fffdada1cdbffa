"""What all backends share: the two processes' command lines and environment, and a SuperLink's coming up."""

from __future__ import annotations

import asyncio
import hashlib
import os
from contextlib import suppress
from pathlib import Path

import httpx
from federator import allocator
from federator.logs import FORMAT_VARIABLE, PROJECT_VARIABLE, RUN_VARIABLE

from hub_service.aggregators.base import Endpoint
from hub_service.domain.errors import Unavailable

SUPERLINK_MODULE = "hub_service.aggregators.superlink_process"
SERVERAPP_MODULE = "hub_service.aggregators.serverapp"
SUPERLINK_LOG = "superlink.log"
NODE_IDS = "node-ids.json"

# A start costs seconds of a processor's time: of too many at once, each would take long enough to be given up.
STARTS_AT_ONCE = 4 * (os.cpu_count() or 1)

NICENESS = 10
"""Of both processes: the pages of all projects, and everybody's messages, go before one project's sums."""

LOST = -1
"""Exit status of a process whose end nobody saw."""

_PROBE_S = 0.02
_PROBE_TIMEOUT = httpx.Timeout(5.0)
_LOG_LINES = 5


def lower_priority(niceness: int) -> None:
    """Let the calling process, and its session, come after the others of the machine.

    Linux may share the processors out among sessions first: a process's niceness then counts within its session only,
    and the session's stands beside it (sched(7), "autogroup").
    """
    os.nice(niceness)
    with suppress(OSError):  # no such groups here, or others have just been set
        Path("/proc/self/autogroup").write_text(str(niceness))


def superlink_arguments(host: str, port: int, node_ids: str, run_id: str | None = None) -> list[str]:
    """For `superlink_process`: the file of its nodes' ids, Flower's id of our run, and Flower's own arguments."""
    return [
        "--node-ids",
        node_ids,
        *([] if run_id is None else ["--run-id", str(flower_run_id(run_id))]),
        "--insecure",
        "--host",
        host,
        "--port",
        str(port),
        "--isolation",
        "process",
        "--disable-runtime-dependency-installation",
    ]


def flower_run_id(run_id: str) -> int:
    """Flower's id of our run: the same at each SuperLink that serves it."""
    return int.from_bytes(hashlib.sha256(run_id.encode()).digest()[:8], "big") >> 1 or 1


def serverapp_arguments(run_folder: str) -> list[str]:
    """For `serverapp`: the run folder as that process sees it. What it is to do comes to stand there."""
    return ["--run-folder", run_folder]


def environment(home: str, project_id: str = "", run_id: str | None = None) -> dict[str, str]:
    """What both processes are told.

    Args:
        home: a folder that they may write to, as they see it.
        project_id, run_id: what the lines of their logs are about.
    """
    return {
        PROJECT_VARIABLE: project_id,
        RUN_VARIABLE: run_id or "",
        FORMAT_VARIABLE: os.environ.get(FORMAT_VARIABLE, ""),
        "HOME": home,
        "FLWR_HOME": f"{home}/flower",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PYTHONUNBUFFERED": "1",
        **allocator.settings(os.environ),
    }


async def answers(endpoint: Endpoint) -> None:
    """Return once the SuperLink answers at the endpoint. Its socket's folder is there."""
    async with endpoint.client(timeout=_PROBE_TIMEOUT) as client:
        while not await _answers_now(client):  # noqa: ASYNC110 - another process
            await asyncio.sleep(_PROBE_S)


async def _answers_now(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/health")).is_success
    except httpx.TransportError:
        return False


def not_started(log: Path, reason: str) -> Unavailable:
    """The error for a SuperLink that did not come up, with the end of its log."""
    lines = log.read_text(errors="replace").splitlines()[-_LOG_LINES:] if log.exists() else []
    return Unavailable(
        f"The project's aggregator did not start: {reason}.",
        "Start the run again; if it fails again, show this to the Hub's administrators: " + " | ".join(lines),
        debug=f"log: {log}",
    )


def disk_refuses(error: OSError) -> Unavailable:
    """The error for what has to be written before a process is started, or at once after."""
    return Unavailable(
        "The service cannot write to its disk.",
        "Ask the Hub's administrator whether the disk is full.",
        debug=f"{error.filename}: {error.strerror}",
    )
