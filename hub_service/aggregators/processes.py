"""What all backends share: the two processes' command lines and environment, and a SuperLink's coming up."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx

from hub_service.aggregators.base import Endpoint, ServerAppSpec
from hub_service.domain.errors import Unavailable

SUPERLINK_MODULE = "hub_service.aggregators.superlink_process"
SERVERAPP_MODULE = "hub_service.aggregators.serverapp"
SUPERLINK_LOG = "superlink.log"

LOST = -1
"""Exit status of a process whose end nobody saw."""

_PROBE_S = 0.05
_PROBE_TIMEOUT = httpx.Timeout(5.0)
_LOG_LINES = 5


def superlink_arguments(host: str, port: int, database: str) -> list[str]:
    """For `superlink_process`: Flower's own arguments."""
    return [
        "--insecure",
        "--host",
        host,
        "--port",
        str(port),
        "--isolation",
        "process",
        "--database",
        database,
        "--disable-runtime-dependency-installation",
    ]


def serverapp_arguments(spec: ServerAppSpec, address: str, run_folder: str) -> list[str]:
    """For `serverapp`: the SuperLink's address and the run folder as that process sees them."""
    arguments = [
        "--runtime-api-address",
        address,
        "--run-folder",
        run_folder,
        "--flower-run-id",
        str(spec.flower_run_id),
        "--nodes",
        ",".join(map(str, spec.node_ids)),
        "--wait",
        str(spec.wait_s),
    ]
    return [*arguments, "--compare"] if spec.compare else arguments


def environment(home: str) -> dict[str, str]:
    """What both processes are told. `home` is a folder that they may write to, as they see it."""
    return {
        "HOME": home,
        "FLWR_HOME": f"{home}/flower",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PYTHONUNBUFFERED": "1",
    }


async def answers(endpoint: Endpoint) -> None:
    """Return once the SuperLink answers at the endpoint."""
    while True:
        if await _answers_now(endpoint):
            return
        await asyncio.sleep(_PROBE_S)


async def _answers_now(endpoint: Endpoint) -> bool:
    try:
        async with endpoint.client(timeout=_PROBE_TIMEOUT) as client:
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
