"""A hospital is added to a Hub as the documentation says: the commands that are printed are run, on a fresh engine.

Then one thing at a time is broken, and the check says which.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tarfile
import threading
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from spawner.admin.certificates import EngineHost, issue
from spawner.admin.checks import Outcome, check_site
from spawner.admin.containers import ABANDONED_AFTER, CheckContainers
from spawner.deployment import load
from spawner.engines import engine_of
from spawner.sites import DockerSite
from spawner.sites_page import Server, servers_at
from tests.fakes.engines import ENGINES, ROOT, BuildEngine, Engine

pytestmark = [pytest.mark.needs_docker, pytest.mark.timeout(600)]  # the first test waits for images

IMAGE = "notebook-federator/singleuser:test"
BARE_IMAGE = "notebook-federator/test-base:debian"
GPU = "GPU-fake0"
PARTS = {
    *("engine", "TLS", "certificates", "clock", "image", "account", "client", "room"),
    *("dataset biopsies", f"GPU {GPU}", "network", "isolation", "server port"),
}
NEED_THE_IMAGE = {"image contents", "datasets", "GPUs", "isolation", "server port"}


@dataclass
class Hospital:
    """A hospital's machine with its engine, and the folder of the Hub that it is added to.

    Attributes:
        deskside: where files lie that one administrator has sent the other.
        data: the dataset's folder on the hospital's machine.
    """

    engine: Engine
    config: Path
    deskside: Path
    data: Path

    @property
    def entry(self) -> Path:
        return self.config.parent / "sites.d" / "st-anna.toml"

    def admin(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command of the Hub's administrator."""
        command = [sys.executable, "-m", "spawner.admin", "--config", str(self.config), *words]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    def check(self) -> dict[str, dict[str, str]]:
        """Check the site; results by part."""
        done = self.admin("check", "--site", "st-anna", "--json")
        results: list[dict[str, str]] = json.loads(done.stdout)["st-anna"]
        failed = any(result["outcome"] == Outcome.FAILED for result in results)
        assert done.returncode == int(failed), done.stderr
        return {result["part"]: result for result in results}

    def install(self, bundle: Path) -> None:
        """Give the engine its certificates, and start it with them."""
        with tarfile.open(bundle) as archive:
            archive.extractall(self.deskside, filter="data")
        unpacked = self.deskside / "federation"
        for ours, engines in (("ca.pem", "ca.pem"), ("server-cert.pem", "cert.pem"), ("server-key.pem", "key.pem")):
            shutil.copy(unpacked / ours, self.engine.run / "server" / engines)
        self.engine.restart()

    def isolate(self) -> None:
        """Run the script that the Hub's administrator sent, as root on the hospital's machine."""
        script = self.deskside / "st-anna-isolation"
        self.engine.on_host("env", f"DOCKER_HOST={self.engine.host}", "sh", str(script))

    @contextlib.contextmanager
    def changed(self, **keys: Any) -> Iterator[None]:
        """Another entry in the deployment, for a while."""
        before = self.entry.read_text(encoding="utf-8")
        tables = tomllib.loads(before)
        tables["sites"]["st-anna"] |= keys
        self.entry.write_text(tomli_w.dumps(tables), encoding="utf-8")
        try:
            yield
        finally:
            self.entry.write_text(before, encoding="utf-8")

    def left_behind(self) -> str:
        """Containers, and networks that are not the site's own."""
        networks = self.engine.docker("network", "ls", "--format={{.Name}}").split()
        containers = self.engine.docker("ps", "--all", "--format={{.Names}}").split()
        return " ".join(containers + sorted(set(networks) - {"bridge", "host", "none", "federation"}))


class _Hub(BaseHTTPRequestHandler):
    """What servers must reach: something that answers at the Hub's origin."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Into no log."""


@pytest.fixture(scope="module")
def hospital(build_engine: BuildEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    folder = tmp_path_factory.mktemp("hub")
    with contextlib.ExitStack() as ending:
        engine = ending.enter_context(Engine(ENGINES / "site-setup", gpus=[GPU]))
        engine.load(BARE_IMAGE, build_engine)
        engine.load(IMAGE, build_engine)
        answering = ending.enter_context(ThreadingHTTPServer((engine.hub_address, 0), _Hub))
        thread = threading.Thread(target=answering.serve_forever)
        thread.start()
        ending.callback(thread.join)
        ending.callback(answering.shutdown)
        config = folder / "deployment.toml"
        tables = {
            "hub": {
                "bind_url": f"http://{engine.hub_address}:{answering.server_port}",
                "data_dir": "state",
                "admin_contact": "Robin Hale",
            },
            "sso": {"preset": "cilogon", "client_id": "c"},
            "aggregators": {"kind": "docker", "image": "notebook-federator/aggregator:test"},
        }
        config.write_text(tomli_w.dumps(tables), encoding="utf-8")
        yield Hospital(
            engine, config, tmp_path_factory.mktemp("deskside"), tmp_path_factory.mktemp("site") / "biopsies"
        )


@pytest.fixture(scope="module")
def added(hospital: Hospital) -> Hospital:
    """The hospital, once all printed commands have been run."""
    hospital.data.parent.chmod(0o755)
    hospital.data.mkdir(mode=0o755)
    (hospital.data / "case-1.txt").write_text("benign", encoding="utf-8")
    (hospital.data / "case-1.txt").chmod(0o644)
    for parent in hospital.data.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o055)

    issued = hospital.admin("certificates", "--site", "st-anna", "--engine-address", hospital.engine.address)
    assert issued.returncode == 0, issued.stderr
    hospital.install(hospital.config.parent / "engines" / "st-anna" / "st-anna-engine.tar")
    done = hospital.admin(
        *("add", "--site", "st-anna", "--title", "St. Anna Hospital", "--contact", "Ingrid Solberg"),
        *("--engine", hospital.engine.url, "--image", IMAGE, "--institution", "urn:mace:st-anna"),
        *("--steward", "ingrid", "--dataset", f"biopsies={hospital.data}", "--gpu", GPU),
    )
    assert done.returncode == 0, done.stderr
    assert "PRIVATE" not in issued.stdout + done.stdout

    writes_script = re.search(r"^ +(python -m spawner\.site up .*)$", done.stdout, re.MULTILINE)
    assert writes_script
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    subprocess.run(["/bin/sh", "-c", writes_script[1]], cwd=hospital.deskside, env=environment, check=True)
    hospital.isolate()
    return hospital


def outcomes(results: Mapping[str, Mapping[str, str]], outcome: Outcome) -> set[str]:
    return {part for part, result in results.items() if result["outcome"] == outcome}


def only_failure(results: Mapping[str, Mapping[str, str]]) -> str:
    """The one part that failed, with what was seen and what is next; everything else is as it was."""
    failed = outcomes(results, Outcome.FAILED)
    assert len(failed) == 1, results
    (part,) = failed
    return f"{part}: {results[part]['seen']} -> {results[part]['next_step']}"


def test_after_all_printed_commands_everything_is_right(added: Hospital) -> None:
    results = added.check()
    assert set(results) == PARTS
    # A test machine may have fewer cores than a server may use.
    assert outcomes(results, Outcome.OK) >= PARTS - {"room"}
    assert added.left_behind() == ""


def test_an_image_that_is_not_there(added: Hospital) -> None:
    with added.changed(image="notebook-federator/no-such:1"):
        results = added.check()
    told = only_failure(results)
    assert told.startswith("image: notebook-federator/no-such:1 is not at the engine -> Ask Ingrid Solberg to fetch it")
    assert outcomes(results, Outcome.SKIPPED) == NEED_THE_IMAGE


def test_an_image_without_the_client_package(added: Hospital) -> None:
    with added.changed(image=BARE_IMAGE):
        told = only_failure(added.check())
    assert "client: notebook-federator-client is missing in the image and" in told


def test_a_dataset_whose_folder_is_not_there(added: Hospital) -> None:
    away = added.data.rename(added.data.with_name("away"))
    try:
        told = only_failure(added.check())
    finally:
        away.rename(added.data)
    assert told.startswith(
        f"dataset biopsies: the folder {added.data} of one of its datasets is not there -> Ask Ingrid"
    )


def test_a_dataset_that_servers_may_not_read(added: Hospital) -> None:
    (added.data / "case-1.txt").chmod(0o600)
    try:
        told = only_failure(added.check())
    finally:
        (added.data / "case-1.txt").chmod(0o644)
    assert "user 1000 may not read /data/biopsies/case-1.txt: Permission denied" in told


def test_a_volume_that_is_not_there_is_not_made(added: Hospital) -> None:
    with added.changed(datasets={"biopsies": {"title": "Biopsies", "volume": "no-such-volume"}}):
        told = only_failure(added.check())
    assert "its volume no-such-volume is not there" in told
    assert added.engine.docker("volume", "ls", "--quiet") == ""


def test_a_volume_is_read_as_servers_read_it(added: Hospital) -> None:
    added.engine.docker("volume", "create", "biopsies")
    try:
        with added.changed(datasets={"biopsies": {"title": "Biopsies", "volume": "biopsies"}}):
            result = added.check()["dataset biopsies"]
    finally:
        added.engine.docker("volume", "rm", "biopsies")
    assert (result["outcome"], result["seen"]) == (Outcome.WARNING, "biopsies is empty")


def test_a_gpu_that_the_engine_cannot_give(added: Hospital) -> None:
    hook = added.engine.run / "gpu" / "nvidia-container-runtime-hook"
    away = hook.rename(hook.with_name("away"))
    try:
        added.engine.restart()
        told = only_failure(added.check())
    finally:
        away.rename(hook)
        added.engine.restart()
    assert told.startswith(f"GPU {GPU}: its machine cannot give GPUs to containers")


def test_a_network_that_does_not_isolate(added: Hospital) -> None:
    added.engine.on_host("iptables", "-F", "nfed0-from")
    try:
        told = only_failure(added.check())
    finally:
        added.isolate()
    assert re.match(r"isolation: \d+ of \d+ probes failed: .*the site's host: .*\(must be: refused\)", told)
    assert "run `python -m spawner.site up`" in told


def test_a_network_that_is_not_there(added: Hospital) -> None:
    added.engine.docker("network", "rm", "federation")
    try:
        results = added.check()
    finally:
        added.isolate()
    assert "there is no network federation -> Ask Ingrid Solberg to run the script" in only_failure(results)
    assert outcomes(results, Outcome.SKIPPED) == {"isolation", "server port"}


def test_servers_that_the_hub_does_not_reach(added: Hospital) -> None:
    rule = ("POSTROUTING", "-o", "nfed0", "-p", "tcp", "--dport", "8888", "-j", "DROP")
    added.engine.on_host("iptables", "-t", "mangle", "-I", *rule)
    try:
        told = only_failure(added.check())
    finally:
        added.engine.on_host("iptables", "-t", "mangle", "-D", *rule)
    assert told.startswith(f"server port: the Hub does not reach a server's port, {added.engine.address}:")


def test_certificates_of_another_authority(added: Hospital) -> None:
    elsewhere = added.config.parent / "elsewhere"
    other = issue(elsewhere, "st-anna", EngineHost.of_url(added.engine.url), now=datetime.now(UTC))
    with added.changed(tls_dir=str(other.tls_dir)):
        results = added.check()
    told = only_failure(results)
    assert told.startswith(f"engine: {added.engine.url}: the TLS connection failed: ")
    assert "Hub and engine hold certificates of different authorities" in told
    assert f"certificates --site st-anna --engine-address {added.engine.address} --renew" in told
    assert outcomes(results, Outcome.OK) == {"certificates"}


async def test_a_running_hub_takes_new_certificates(added: Hospital) -> None:
    site = load(added.config).sites["st-anna"]
    assert isinstance(site, DockerSite)
    assert site.tls_dir is not None
    bundle = site.tls_dir / "st-anna-engine.tar"
    command = ["certificates", "--site", "st-anna", "--engine-address", added.engine.address]
    engine = engine_of(site)
    assert await engine.call("version")

    renewed = added.admin(*command, "--renew")
    assert renewed.returncode == 0, renewed.stderr
    assert await engine.call("version")  # the engine has its old ones still
    added.install(bundle)
    assert await engine.call("version")

    site.tls_dir.rename(site.tls_dir.with_name("stolen"))
    assert added.admin(*command).returncode == 0
    added.install(bundle)
    assert await engine.call("version")


def test_an_engine_that_obeys_everybody(added: Hospital) -> None:
    """TLS, but nobody asks who the client is: as dockerd with --tls in place of --tlsverify."""
    issued = issue(
        added.config.parent / "careless", "st-anna", EngineHost((ip_address("127.0.0.1"),)), now=datetime.now(UTC)
    )
    with tarfile.open(issued.bundle) as archive:
        archive.extractall(issued.tls_dir, filter="data")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    files = issued.tls_dir / "federation"
    context.load_cert_chain(files / "server-cert.pem", files / "server-key.pem")
    with (
        _careless_door(Path(added.engine.host.removeprefix("unix://")), context) as port,
        added.changed(
            engine=f"tcp://127.0.0.1:{port}", tls_dir=str(issued.tls_dir), server_address=added.engine.address
        ),
    ):
        told = only_failure(added.check())
    assert told.startswith("TLS: the engine obeys a client without a certificate")


async def test_clocks_and_certificates_grow_apart(added: Hospital) -> None:
    deployment = load(added.config)
    later = await _checked_at(deployment, timedelta(days=800))
    assert later["certificates"].outcome is Outcome.WARNING
    assert "25 days left" in later["certificates"].seen or "24 days left" in later["certificates"].seen
    assert "--renew` and send the new bundle to Ingrid Solberg" in later["certificates"].next_step
    assert later["clock"].outcome is Outcome.FAILED
    assert "behind the Hub's" in later["clock"].seen
    assert (await _checked_at(deployment, timedelta(days=900)))["certificates"].outcome is Outcome.FAILED
    assert (await _checked_at(deployment, timedelta()))["clock"].outcome is Outcome.OK


async def _checked_at(deployment: Any, ahead: timedelta) -> dict[str, Any]:
    """The first checks, made by a Hub whose clock is ahead."""
    checking = check_site(
        "st-anna",
        deployment.sites["st-anna"],
        deployment.hub,
        now=lambda: datetime.now(UTC) + ahead,
        new_id=lambda: "clock",
    )
    found = {}
    async for result in checking:
        found[result.part] = result
        if result.part == "clock":
            break
    await checking.aclose()
    return found


def test_a_site_that_hangs_delays_no_other(added: Hospital) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hanging = tomllib.loads(added.entry.read_text(encoding="utf-8"))
        hanging["sites"]["vall-verde"] = {
            **hanging["sites"].pop("st-anna"),
            "title": "Vall Verde",
            "engine": f"tcp://127.0.0.1:{silent.getsockname()[1]}",
        }
        hanging["sso"] = {"institutions": {"urn:mace:vall-verde": "vall-verde"}}
        second = added.entry.with_name("vall-verde.toml")
        second.write_text(tomli_w.dumps(hanging), encoding="utf-8")
        try:
            done = added.admin("check", "--site", "vall-verde", "--site", "st-anna")
        finally:
            second.unlink()
    assert done.returncode == 1
    assert done.stdout.startswith(
        "St. Anna Hospital (st-anna)\n  ok       engine"
    )  # told first, since it was done first
    st_anna, vall_verde = done.stdout.split("\n\n")[:2]
    assert "FAILED" not in st_anna
    assert re.search(r"FAILED +engine .*it did not answer within", vall_verde)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_check_that_is_stopped_leaves_nothing(added: Hospital, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "spawner.admin", "--config", str(added.config), "check", "--site", "st-anna"]
    events = ["/usr/bin/docker", "-H", added.engine.host, "events", "--filter=event=start", "--format={{.ID}}"]
    with subprocess.Popen(events, stdout=subprocess.PIPE, text=True) as started:
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as checking:
            assert started.stdout is not None
            for _ in range(4):  # the fourth runs while the probes are tried, or just before
                assert started.stdout.readline()
            checking.send_signal(number)
            _, told = checking.communicate()
        started.terminate()
    assert checking.returncode == 130
    assert told == "Stopped; nothing is left at the sites.\n"
    assert added.left_behind() == ""


async def test_what_a_killed_check_left_is_removed_by_the_next(added: Hospital) -> None:
    site = load(added.config).sites["st-anna"]
    assert isinstance(site, DockerSite)
    containers = CheckContainers(engine_of(site), "st-anna", site, lambda: "killed")
    left = contextlib.AsyncExitStack()
    await left.enter_async_context(containers.container(["sleep", "60"]))
    added.engine.docker("network", "create", "--label=org.notebook-federator.check=federation", "federation-check")
    server = added.engine.docker("create", "--label=org.notebook-federator.site=st-anna", IMAGE).strip()
    try:
        await containers.remove_abandoned(datetime.now(UTC))
        assert added.left_behind().count("-check") == 2  # another check may be using them
        await containers.remove_abandoned(datetime.now(UTC) + ABANDONED_AFTER)
        assert added.engine.docker("ps", "--all", "--quiet", "--no-trunc").split() == [server]
        assert "check" not in added.left_behind()
    finally:
        added.engine.docker("rm", server)
        await left.aclose()


def test_an_engine_that_is_down(added: Hospital) -> None:
    added.engine.halt()
    try:
        results = added.check()
    finally:
        added.engine.boot()
        added.isolate()
    told = only_failure(results)
    assert told.startswith(f"engine: {added.engine.url}: it cannot be reached: ")
    assert "-> Ask Ingrid Solberg: does the engine run (systemctl status docker)" in told
    assert outcomes(results, Outcome.SKIPPED) >= {"TLS", "clock", "image", "network"}


async def test_the_page_sees_the_servers_that_run(added: Hospital) -> None:
    site = load(added.config).sites["st-anna"]
    assert isinstance(site, DockerSite)
    label = "--label=org.notebook-federator"
    for person, server in (("jonas", ""), ("amara", "second"), ("amara", "")):
        labels = [f"{label}.site=st-anna", f"{label}.user={person}", f"{label}.server={server}"]
        added.engine.docker("run", "--detach", "--network=none", "--init", *labels, IMAGE, "sleep", "600")
    added.engine.docker("run", "--detach", "--network=none", "--init", f"{label}.site=other", IMAGE, "sleep", "600")
    try:
        assert await servers_at("st-anna", site) == [
            Server("amara", ""),
            Server("amara", "second"),
            Server("jonas", ""),
        ]
    finally:
        added.engine.docker("rm", "--force", *added.engine.docker("ps", "--quiet").split())


@contextlib.contextmanager
def _careless_door(inside: Path, context: ssl.SSLContext) -> Iterator[int]:
    """Forwards whoever comes by TLS to an engine's socket. Yields its port."""
    loop = asyncio.new_event_loop()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            engine_reader, engine_writer = await asyncio.open_unix_connection(inside)
            await asyncio.gather(_pump(reader, engine_writer), _pump(engine_reader, writer))

    server = loop.run_until_complete(asyncio.start_server(forward, "127.0.0.1", 0, ssl=context))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()
