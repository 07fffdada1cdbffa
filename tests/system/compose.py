"""deploy/compose on a real engine: proxy with TLS, Hub, service and PostgreSQL in containers, hospitals on engines.

build engine     has the Hub's machine's containers, and runs the aggregators, as that machine's engine does
site engines     as in `docker_sites`; their servers reach the Hub by TLS, and trust its authority by their image
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import ssl
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import tomli_w
from federator.ports import free_port

from examples.demo.deployment import CLIENT_ID
from examples.demo.people import ADMINISTRATOR, INSTITUTIONS, STEWARDS
from examples.demo.stack import ROOT
from tests.fakes.certificates import Certificates, loopback_certificates
from tests.fakes.engines import BuildEngine, Engine
from tests.system.docker_sites import AGGREGATOR_IMAGE, SINGLEUSER_IMAGE, site_command

COMPOSE_FILE = ROOT / "deploy" / "compose" / "compose.yaml"
EXAMPLE = COMPOSE_FILE.with_name("deployment.toml")
SITE_IMAGE = "notebook-federator/singleuser:compose"
SITE_DOCKERFILE = f"""
FROM {SINGLEUSER_IMAGE}
USER root
COPY authority.pem /usr/local/share/ca-certificates/hub.crt
RUN update-ca-certificates
ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
USER 1000
"""
HUB_USER = 1000  # of the image
START_PATIENCE_S = 180.0
MOST_RESTARTS = 3
SITES = "10.77.0.0/16"  # their hosts' addresses, as `tests.fakes.engines` gives them


@dataclass
class ComposeHub:
    """The running Hub's machine.

    Attributes:
        origin: as people type it.
        authority: PEM, what a browser must trust.
        engines: the sites', by slug.
    """

    origin: str
    authority: Path
    machine: BuildEngine
    engines: Mapping[str, Engine]
    project: str
    environment: Mapping[str, str]

    def compose(self, *arguments: str) -> str:
        """Run docker-compose on the machine; return what it printed."""
        command = ("docker-compose", "--project-name", self.project, "--file", str(COMPOSE_FILE), *arguments)
        done = subprocess.run(
            command, env={**os.environ, **self.environment}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def container(self, service: str) -> dict[str, Any]:
        """The service's container, as `docker inspect` shows it."""
        (inspected,) = json.loads(self.machine.docker("inspect", self.compose("ps", "--quiet", service).strip()))
        found: dict[str, Any] = inspected
        return found

    def kill(self, service: str) -> None:
        """Kill a container's first process from outside, as a crash does: what Docker kills it does not start again."""
        self.machine.process(self.container(service)["State"]["Pid"]).kill()

    def health(self, service: str) -> str:
        """What the engine says of the service's health, once it does."""
        deadline = time.monotonic() + START_PATIENCE_S
        while (status := str(self.container(service)["State"]["Health"]["Status"])) == "starting":
            assert time.monotonic() < deadline, self.compose("logs", "--tail", "40", service)
            time.sleep(0.5)
        return status

    def until_it_answers(self, *paths: str) -> None:
        """Wait for the Hub and its service, through the proxy."""
        deadline = time.monotonic() + START_PATIENCE_S
        for path in paths or ("/hub/health", "/services/federation/health"):
            while not self._answers(path):
                assert time.monotonic() < deadline, self.compose("logs", "--tail", "40")
                assert not self._fails(), self.compose("logs", "--tail", "40")
                time.sleep(0.5)

    def _fails(self) -> bool:
        """Whether a container is started again and again."""
        ids = self.compose("ps", "--quiet").split()
        counts = self.machine.docker("inspect", "--format", "{{.RestartCount}}", *ids).split()
        return max(map(int, counts)) > MOST_RESTARTS

    def _answers(self, path: str) -> bool:
        try:
            answer = httpx.get(self.origin + path, verify=ssl.create_default_context(cafile=self.authority), timeout=5)
        except httpx.TransportError:
            return False
        return answer.status_code == httpx.codes.OK and "starting" not in answer.text


@contextlib.contextmanager
def running_compose(
    folder: Path, datasets: Mapping[str, Path], engines: Mapping[str, Engine], machine: BuildEngine
) -> Iterator[ComposeHub]:
    """Start everything and return once the Hub and the service answer.

    Args:
        folder: emptied first; holds configuration and the service's state.
        datasets: by site, the folder of its one dataset, `biopsies`.
    """
    shutil.rmtree(folder, ignore_errors=True)
    config, data = folder / "config", folder / "data"
    for part in ("hub", "federation"):
        (data / part).mkdir(parents=True)
    port, provider_port = free_port(), free_port()
    certificates = _certificates(config, engines)
    for engine in dict.fromkeys(engines.values()):
        site_command(engine, "up", "--hub", f"{engine.hub_address}:{port}")
        _build_site_image(engine, certificates.authority)
    tables = deployment_tables(config, datasets, engines, data=data, port=port, provider_port=provider_port)
    (config / "deployment.toml").write_text(tomli_w.dumps(tables), encoding="utf-8")
    _give_to_the_hub(folder)
    socket = Path(machine.host.removeprefix("unix://"))
    environment = {
        "DOCKER_HOST": machine.host,
        "HUB_IMAGE": "notebook-federator/hub:test",
        "POSTGRESQL_IMAGE": "notebook-federator/test-postgresql:test",
        "CONFIG_DIR": str(config),
        "DATA_DIR": str(data),
        "ENGINE_SOCKET": str(socket),
        "ENGINE_GROUP": str(socket.stat().st_gid),
        "HTTPS_PORT": str(port),
        **{name: secrets.token_hex(32) for name in ("DATABASE_PASSWORD", "PROXY_TOKEN", "SERVICE_TOKEN")},
        "SSO_CLIENT_SECRET": secrets.token_urlsafe(24),
    }
    origin = f"https://127.0.0.1:{port}"
    hub = ComposeHub(origin, certificates.authority, machine, engines, f"nf{machine.number}", environment)
    with _identity_provider(provider_port, folder), _forwarding():
        try:
            hub.compose("down", "--volumes", "--timeout", "5")  # what a test run that was killed has left
            hub.compose("up", "--detach")
            hub.until_it_answers()
            yield hub
        finally:
            (folder / "compose.log").write_text(hub.compose("logs", "--no-color"), encoding="utf-8")
            hub.compose("down", "--volumes", "--timeout", "5")


def deployment_tables(
    config: Path,
    datasets: Mapping[str, Path],
    engines: Mapping[str, Engine],
    *,
    data: Path,
    port: int,
    provider_port: int,
) -> dict[str, Any]:
    """The deployment file's tables: the example's `[hub]`, with the test's addresses, and the test's sites."""
    hub_address = next(iter(engines.values())).hub_address
    stewards = {one.site: one for one in STEWARDS}
    return {
        "hub": {
            **_example_hub(),
            "public_url": f"https://127.0.0.1:{port}",
            "data_dir": str(data),
        },
        "sso": {
            "preset": "generic",
            "client_id": CLIENT_ID,
            "authorize_url": f"http://127.0.0.1:{provider_port}/oauth2/authorize",
            "token_url": f"http://{hub_address}:{provider_port}/oauth2/token",
            "userdata_url": f"http://{hub_address}:{provider_port}/userinfo",
            "admins": [ADMINISTRATOR.username],
            "institutions": {one.domain: one.site for one in INSTITUTIONS if one.site in engines},
            "stewards": {site: {"users": [stewards[site].username]} for site in engines},
        },
        "aggregators": {"kind": "docker", "image": AGGREGATOR_IMAGE, "memory": "2GiB"},
        "sites": {
            site: {
                "kind": "docker",
                "title": stewards[site].site_title,
                "contact": f"{stewards[site].name} <{stewards[site].username}@{stewards[site].institution.domain}>",
                "engine": engine.url,
                "tls_dir": f"engines/{site}",
                "image": SITE_IMAGE,
                "hub_url": f"https://{engine.hub_address}:{port}",
                "cpus": 1.0,
                "memory": "3GiB",
                "datasets": {"biopsies": {"title": "Fine-needle aspirates", "path": str(datasets[site])}},
            }
            for site, engine in engines.items()
        },
    }


def _example_hub() -> dict[str, Any]:
    hub: dict[str, Any] = tomllib.loads(EXAMPLE.read_text(encoding="utf-8"))["hub"]
    return hub


def _certificates(config: Path, engines: Mapping[str, Engine]) -> Certificates:
    """The proxy's, and copies of what the Hub shows the sites' engines."""
    tls = config / "tls"
    tls.mkdir(parents=True)
    made = loopback_certificates(tls, *(engine.hub_address for engine in engines.values()))
    shutil.copy(made.certificate, tls / "fullchain.pem")
    for site, engine in engines.items():
        shutil.copytree(engine.certificates.authority.parent, config / "engines" / site)
    return made


def _build_site_image(engine: Engine, authority: Path) -> None:
    """The site's own image: it trusts the authority that signed the Hub's certificate."""
    context = engine.run / "image"
    context.mkdir(exist_ok=True)
    shutil.copy(authority, context / "authority.pem")
    (context / "Dockerfile").write_text(SITE_DOCKERFILE, encoding="utf-8")
    engine.docker("build", "--network", "none", "--quiet", "--tag", SITE_IMAGE, str(context))


def _give_to_the_hub(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, HUB_USER, HUB_USER)


@contextlib.contextmanager
def _identity_provider(port: int, folder: Path) -> Iterator[None]:
    """The demonstration's, where containers reach it too."""
    command = [sys.executable, "-m", "examples.demo.identity_provider", "--host", "0.0.0.0", "--port", str(port)]
    with (folder / "identity-provider.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def _forwarding() -> Iterator[None]:
    """Pass on, in this machine's own name, what its containers send to the sites, as a machine with Docker does."""
    switch = Path("/proc/sys/net/ipv4/ip_forward")
    before = switch.read_text()
    rule = ("POSTROUTING", "--source", "172.16.0.0/12", "--destination", SITES, "--jump", "MASQUERADE")
    switch.write_text("1")
    subprocess.run(["iptables", "--table", "nat", "--append", *rule], check=True)
    try:
        yield
    finally:
        subprocess.run(["iptables", "--table", "nat", "--delete", *rule], check=True)
        switch.write_text(before)
