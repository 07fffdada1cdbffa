"""A stock `flower-supernode` with a registered key joins through the Hub's origin and takes part in a run."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from examples.demo.browser import Browser
from examples.demo.deployment import DatasetFolder
from examples.demo.people import COLLEAGUES, STEWARDS
from examples.demo.scenario import Study
from examples.demo.stack import ROOT, Stack, free_port
from tests.system.tls_front import tls_front

pytestmark = pytest.mark.needs_node
PATIENCE_S = 120


@contextlib.asynccontextmanager
async def flower_supernode(
    address: str, ca: Path, key: Path, dataset: Path, log: Path
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run Flower's own SuperNode, as a site without notebook servers would."""
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            str(Path(sys.executable).with_name("flower-supernode")),
            *("--superlink", address, "--root-certificates", str(ca)),
            *("--auth-supernode-private-key", str(key), "--port", str(free_port())),
            *("--node-config", f'dataset-path="{dataset}"'),
            env={
                **os.environ,
                "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
                "FLWR_HOME": str(log.parent / "flwr"),
                "FLWR_TELEMETRY_ENABLED": "0",
            },
            stdout=output,
            stderr=output,
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


async def watched(researcher: Browser, project_id: str, holds: Callable[[str, Any], bool]) -> Any:
    """Follow the project until the condition on (kind, data) holds; the last data is in the failure."""
    data = None
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE_S):
            async for kind, data in researcher.watch(project_id):
                if holds(kind, data):
                    return data
    pytest.fail(f"waited in vain: {data}")


def is_ready(kind: str, data: Any) -> bool:
    return kind == "project" and data["participants"][0]["client"] == "ready"


def is_over(kind: str, data: Any) -> bool:
    return kind == "run" and data["summary"]["status"] in ("finished", "failed", "stopped")


async def test_stock_supernode_takes_part(
    stack: Stack, study: Study, study_and_dataset: tuple[Study, DatasetFolder], tmp_path: Path
) -> None:
    researcher = Browser(COLLEAGUES[1].username, COLLEAGUES[1].subject, stack.origin)
    steward = Browser(STEWARDS[1].username, STEWARDS[1].subject, stack.origin)
    await researcher.log_in()
    await steward.log_in()
    project = await researcher.post("api/projects", {"name": "A site without notebooks", "description": ""})
    project_path = f"api/projects/{project['id']}"
    version = await researcher.upload(f"{project_path}/apps", study.notebook)
    part = await researcher.post(f"{project_path}/participation", {"dataset": study.dataset})
    decision = {"fab_hash": version["fab_hash"], "site": part["site"], "dataset": study.dataset}
    await steward.post("api/approvals", {"project_id": project["id"], **decision, "state": "approved", "reason": ""})

    key = ec.generate_private_key(ec.SECP384R1())
    key_path = tmp_path / "node.key"
    key_path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
    )
    public_key = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    await researcher.put(f"api/participations/{part['participation_id']}/node", {"public_key": public_key.decode()})

    folder = study_and_dataset[1].folders[COLLEAGUES[1].site]
    log = ROOT / "test-output" / "flower-supernode.log"
    async with (
        tls_front(stack.origin, tmp_path) as (address, ca),
        flower_supernode(address, ca, key_path, folder, log),
    ):
        await watched(researcher, project["id"], is_ready)
        await researcher.post(f"{project_path}/runs", {"rounds": 2, "compare": False})
        detail = await watched(researcher, project["id"], is_over)
    assert detail["summary"]["status"] == "finished", detail["summary"]["message"]
    assert [one["number"] for one in detail["rounds"]] == [1, 2]
    assert all("accuracy" in one["sites"][0]["evaluate"] for one in detail["rounds"])
    await researcher.close()
    await steward.close()


async def test_a_key_nobody_registered_gets_nothing(stack: Stack, tmp_path: Path) -> None:
    """Flower's SuperNode takes the refusal for what it is, and ends."""
    key = ec.generate_private_key(ec.SECP384R1())
    key_path = tmp_path / "node.key"
    key_path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
    )
    log = tmp_path / "supernode.log"
    async with (
        tls_front(stack.origin, tmp_path) as (address, ca),
        flower_supernode(address, ca, key_path, tmp_path, log) as process,
        asyncio.timeout(PATIENCE_S),
    ):
        await process.wait()
    assert "SuperNode ID" not in log.read_text(errors="replace")
