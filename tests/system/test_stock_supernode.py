"""A stock `flower-supernode` with a registered key joins through the Hub's origin and takes part in a run.

The key is registered by a member for their own participation, or by the data steward of a site without servers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import tomli_w
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from federator.ports import free_port

from examples.demo import deployment
from examples.demo.browser import Browser, StepError
from examples.demo.deployment import DatasetFolder, Ports
from examples.demo.people import COLLEAGUES, RESEARCHERS, STEWARDS, Person
from examples.demo.scenario import Study
from examples.demo.stack import ROOT, Stack, running_stack
from tests.fakes.certificates import loopback_certificates
from tests.fakes.fleet import fleet
from tests.fakes.flower_apps import averaging_app
from tests.system.tls_front import tls_front

pytestmark = pytest.mark.needs_node
PATIENCE_S = 120
REFUSED_WITHIN_S = 20
# In the log of Flower's SuperNode.
IT_WAS_LET_IN, IT_RAN_AN_APP = "SuperNode ID", "flwr-clientapp"


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


async def says(log: Path, text: str) -> None:
    """Wait until a process has written the text to its log."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if text in log.read_text(errors="replace"):
                return
            await asyncio.sleep(0.1)


def is_ready(kind: str, data: Any) -> bool:
    return kind == "project" and data["participants"][0]["client"] == "ready"


def are_ready(*users: str) -> Callable[[str, Any], bool]:
    def holds(kind: str, data: Any) -> bool:
        return kind == "project" and {one["user"] for one in data["participants"] if one["client"] == "ready"} >= {
            *users
        }

    return holds


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


HOSPITAL = RESEARCHERS[0].institution  # has notebook servers
INSTITUTE = RESEARCHERS[1].institution  # has none: a SuperNode stands beside its data


def with_a_supernode_site(dataset: DatasetFolder) -> Callable[[Path, Ports, Sequence[str]], Path]:
    """The demonstration's deployment, where the institute runs a SuperNode. Where its data lie, no file says."""

    def write(folder: Path, ports: Ports, proxy_command: Sequence[str]) -> Path:
        path = deployment.write(folder, dataset, ports, proxy_command)
        tables = tomllib.loads(path.read_text())
        site = tables["sites"][INSTITUTE.site]
        site["kind"] = "supernode"
        del site["work_dir"], site["datasets"][dataset.name]["path"]
        path.write_text(tomli_w.dumps(tables))
        return path

    return write


@pytest.fixture(scope="module")
def mixed_stack(study_and_dataset: tuple[Study, DatasetFolder]) -> Iterator[Stack]:
    """A Hub for the institute with its SuperNode, and for hospitals with notebook servers."""
    folder = ROOT / "test-output" / "supernode-stack"
    with running_stack(folder, with_a_supernode_site(study_and_dataset[1]), port=free_port()) as running:
        yield running


@contextlib.asynccontextmanager
async def logged_in(stack: Stack, *people: Person) -> AsyncIterator[list[Browser]]:
    browsers = [Browser(one.username, one.subject, stack.origin) for one in people]
    try:
        for one in browsers:
            await one.log_in()
        yield browsers
    finally:
        for one in browsers:
            await one.close()


def made_by_ssh_keygen(folder: Path) -> Path:
    """A key pair as the page says to make it: path of the private half."""
    path = folder / "node_key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", path], check=True)
    return path


async def test_a_site_without_notebook_servers(
    mixed_stack: Stack, study: Study, study_and_dataset: tuple[Study, DatasetFolder], tmp_path: Path
) -> None:
    """Its steward registers the key on a page; a run goes to its end with a hospital; without the key it is refused."""
    key = made_by_ssh_keygen(tmp_path)
    folder = study_and_dataset[1].folders[INSTITUTE.site]
    log = ROOT / "test-output" / "site-supernode.log"
    async with (
        logged_in(mixed_stack, RESEARCHERS[0], RESEARCHERS[1], *STEWARDS[:2]) as (owner, member, guard, steward),
        tls_front(mixed_stack.origin, tmp_path) as (address, ca),
    ):
        await owner.start_server()
        with pytest.raises(StepError, match="no notebook servers"):
            await member.start_server()

        project_id, part = await shared_project(study, owner, member)
        page = f"participations/{part}/node"
        for one in (guard, steward):
            (request,) = [asked for asked in await one.get("api/approvals") if asked["project_id"] == project_id]
            review = f"approvals/{project_id}/{request['fab_hash']}/{request['site']}/{request['dataset']}"
            await one.submit(review, {"state": "approved", "reason": ""})
        assert page in await steward.open("approvals")
        assert "no key yet" in await steward.open(page)
        await nobody_else_registers(part, key, owner, member, guard)

        registered = await steward.submit(page, {"public_key": key.with_suffix(".pub").read_text()})
        assert fingerprint_of(key) in registered.text
        assert fingerprint_of(key) in await owner.open(f"projects/{project_id}")
        async with flower_supernode(address, ca, key, folder, log) as supernode:
            await watched(owner, project_id, are_ready(owner.username, member.username))
            await owner.post(f"api/projects/{project_id}/runs", {"rounds": 2, "compare": False})
            detail = await watched(owner, project_id, is_over)
            assert detail["summary"]["status"] == "finished", detail["summary"]["message"]
            assert [{one["site"] for one in done["sites"]} for done in detail["rounds"]] == 2 * [
                {HOSPITAL.site, INSTITUTE.site}
            ]
            assert all("accuracy" in one["evaluate"] for done in detail["rounds"] for one in done["sites"])

            assert supernode.returncode is None
            for words in (IT_WAS_LET_IN, IT_RAN_AN_APP):
                assert words in log.read_text(errors="replace")
            await steward.submit(f"{page}/remove", {})
            async with asyncio.timeout(REFUSED_WITHIN_S):
                await supernode.wait()
        async with flower_supernode(address, ca, key, folder, tmp_path / "refused.log") as supernode:
            async with asyncio.timeout(PATIENCE_S):
                await supernode.wait()
        assert IT_WAS_LET_IN not in (tmp_path / "refused.log").read_text(errors="replace")
        participant = (await owner.get(f"api/projects/{project_id}"))["participants"][1]
        assert participant["client"] == "offline"
        assert "register a key" in participant["detail"]


async def shared_project(study: Study, owner: Browser, member: Browser) -> tuple[str, str]:
    """A project of the owner's in which both take part: its id, and that of the member's participation."""
    project = await owner.post("api/projects", {"name": "With a SuperNode's site", "description": ""})
    path = f"api/projects/{project['id']}"
    await owner.upload(f"{path}/apps", study.notebook)
    await owner.post(f"{path}/participation", {"dataset": study.dataset})
    await owner.post(f"{path}/invitations", {"user": member.username})
    await member.submit(f"projects/{project['id']}/participation", {"dataset": study.dataset})
    participants = (await owner.get(path))["participants"]
    part = next(one["participation_id"] for one in participants if one["user"] == member.username)
    return project["id"], part


async def nobody_else_registers(part: str, key: Path, owner: Browser, member: Browser, other_steward: Browser) -> None:
    """The participant is told who does; for everybody else it is as if the participation were not there."""
    route = "api/participations/{}/node"
    body = {"public_key": key.with_suffix(".pub").read_text()}
    refused = await member.request("PUT", route.format(part), body)
    assert refused.status_code == httpx.codes.FORBIDDEN
    assert "data steward" in refused.json()["message"]
    assert (await member.request("GET", f"participations/{part}/node")).status_code == httpx.codes.FORBIDDEN
    for one in (owner, other_steward):
        for method, sent in (("PUT", body), ("DELETE", None)):
            theirs = await one.request(method, route.format(part), sent)
            nobodys = await one.request(method, route.format("no-such-participation"), sent)
            assert theirs.status_code == nobodys.status_code == httpx.codes.NOT_FOUND
            assert theirs.json() == nobodys.json()
        assert (await one.request("GET", f"participations/{part}/node")).status_code == httpx.codes.NOT_FOUND


def fingerprint_of(key: Path) -> str:
    printed = subprocess.run(["ssh-keygen", "-l", "-f", key], check=True, capture_output=True, text=True).stdout
    return printed.split()[1]


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
    assert IT_WAS_LET_IN not in log.read_text(errors="replace")


async def test_a_stock_supernode_is_given_no_app_that_its_steward_did_not_approve(tmp_path: Path) -> None:
    """The project's owner may send it anything: the app itself does not pass the gateway, and the node goes on."""
    certificates = loopback_certificates(tmp_path)
    log = tmp_path / "supernode.log"
    async with fleet(tmp_path, tls=certificates.server) as it:
        member = it.admit("site")
        it.grants[member.public_key] = replace(it.grants[member.public_key], fab_hashes=frozenset({"a" * 64}))
        key = tmp_path / "node.key"
        key.write_bytes(
            member.private_key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
            )
        )
        async with flower_supernode(it.address, certificates.authority, key, tmp_path, log) as process:
            await it.start_run(averaging_app(), [member])
            await says(log, "Ignoring message")
            assert process.returncode is None
    assert IT_RAN_AN_APP not in log.read_text(errors="replace")
