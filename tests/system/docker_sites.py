"""The whole stack with hospitals on Docker engines: a Hub on this machine, an engine a site, one for aggregators.

    build engine     builds the images, and runs the aggregators: the Hub's own engine
    site engines     each in a network namespace of its own, reached by TLS with client certificates

Sites are the demonstration's hospitals, with its people. Northside shares Vall Verde's engine, and says that it has a
GPU, which that engine cannot give.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w
from federator.ports import free_port

from examples.demo.deployment import CLIENT_ID, Ports
from examples.demo.people import ADMINISTRATOR, INSTITUTIONS, STEWARDS
from examples.demo.stack import ROOT, Stack, running_stack
from tests.fakes.engines import ENGINES, BuildEngine, Engine

SINGLEUSER_IMAGE = "notebook-federator/singleuser:test"
AGGREGATOR_IMAGE = "notebook-federator/aggregator:test"
GPUS = ("GPU-fake0", "GPU-fake1")
ENGINE_OF = {"st-anna": "st-anna", "vall-verde": "vall-verde", "northside": "vall-verde"}
KEYS_OF: Mapping[str, Mapping[str, Any]] = {"st-anna": {"gpus": GPUS}, "northside": {"gpus": ["GPU-not-there"]}}


@dataclass
class DockerSites:
    """A running stack and the engines below it.

    Attributes:
        engines: by site; two sites may share one.
        aggregators: the engine on which the service runs aggregators.
        port: of the Hub, on every address of this machine.
    """

    engines: Mapping[str, Engine]
    aggregators: BuildEngine
    port: int
    stack: Stack = field(init=False)

    def hub_origin(self, site: str) -> str:
        """The Hub's origin as that site sees it."""
        return f"http://{self.engines[site].hub_address}:{self.port}"

    def servers(self, site: str, **labels: str) -> list[dict[str, Any]]:
        """Containers of the site's notebook servers, with these labels, as `docker inspect` shows them."""
        wanted = {"site": site, **labels}
        filters = [f"--filter=label=org.notebook-federator.{name}={value}" for name, value in wanted.items()]
        found = self.engines[site].docker("ps", "--all", "--quiet", "--no-trunc", *filters).split()
        inspected: list[dict[str, Any]] = json.loads(self.engines[site].docker("inspect", *found)) if found else []
        return inspected


@contextlib.contextmanager
def running_engines(build: BuildEngine) -> Iterator[dict[str, Engine]]:
    """The sites' engines, by site, with the notebook image on them."""
    with contextlib.ExitStack() as started:
        engines = {}
        for name in dict.fromkeys(ENGINE_OF.values()):
            gpus = GPUS if name == "st-anna" else ()
            engines[name] = started.enter_context(Engine(ENGINES / name, gpus=gpus))
            engines[name].load(SINGLEUSER_IMAGE, build)
        yield {site: engines[name] for site, name in ENGINE_OF.items()}


@contextlib.contextmanager
def running_docker_sites(
    folder: Path, datasets: Mapping[str, Path], engines: Mapping[str, Engine], build: BuildEngine
) -> Iterator[DockerSites]:
    """Isolate the sites' networks and start the Hub with them.

    Args:
        folder: emptied first; holds all state and logs.
        datasets: by site, the folder of its one dataset, `biopsies`.
    """
    sites = DockerSites(engines, build, free_port())
    for engine in dict.fromkeys(engines.values()):
        site_command(engine, "up", "--hub", f"{engine.hub_address}:{sites.port}")

    def write(folder: Path, ports: Ports, proxy_command: Sequence[str]) -> Path:
        path = folder / "deployment.toml"
        tables = deployment_tables(sites, datasets, ports, proxy_command)
        path.write_text(tomli_w.dumps(tables), encoding="utf-8")
        return path

    with running_stack(folder, write, port=sites.port) as stack:
        sites.stack = stack
        yield sites


def site_command(engine: Engine, *arguments: str) -> str:
    """What a site's administrator runs on the site's host."""
    done = subprocess.run(
        [
            *("ip", "netns", "exec", engine.namespace, sys.executable, "-m", "spawner.site", *arguments),
            *("--docker-host", engine.host),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def deployment_tables(
    sites: DockerSites, datasets: Mapping[str, Path], ports: Ports, proxy_command: Sequence[str]
) -> dict[str, Any]:
    """The deployment file's tables."""
    provider = f"http://127.0.0.1:{ports.identity_provider}"
    stewards = {one.site: one for one in STEWARDS}
    return {
        "hub": {
            "bind_url": f"http://0.0.0.0:{ports.public}",
            "public_url": f"http://127.0.0.1:{ports.public}",
            "data_dir": "hub",
            "admin_contact": "Robin Hale <admin@federation.example>",
            "hub_port": ports.hub,
            "service_port": ports.service,
            "proxy_api_port": ports.proxy_api,
            "proxy_command": list(proxy_command),
        },
        "sso": {
            "preset": "generic",
            "client_id": CLIENT_ID,
            "authorize_url": f"{provider}/oauth2/authorize",
            "token_url": f"{provider}/oauth2/token",
            "userdata_url": f"{provider}/userinfo",
            "admins": [ADMINISTRATOR.username],
            "institutions": {one.domain: one.site for one in INSTITUTIONS if one.site in sites.engines},
            "stewards": {site: {"users": [stewards[site].username]} for site in sites.engines},
        },
        "aggregators": {
            "kind": "docker",
            "engine": sites.aggregators.host,
            "image": AGGREGATOR_IMAGE,
            "memory": "2GiB",
        },
        "sites": {
            site: {
                "kind": "docker",
                "title": stewards[site].site_title,
                "contact": f"{stewards[site].name} <{stewards[site].username}@{stewards[site].institution.domain}>",
                "engine": engine.url,
                "tls_dir": str(engine.certificates.authority.parent),
                "image": SINGLEUSER_IMAGE,
                "hub_url": sites.hub_origin(site),
                "cpus": 1.0,
                "memory": "3GiB",
                "datasets": {"biopsies": {"title": "Fine-needle aspirates", "path": str(datasets[site])}},
                **KEYS_OF.get(site, {}),
            }
            for site, engine in sites.engines.items()
        },
    }
