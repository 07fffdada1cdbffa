"""Sites with Docker engines in the deployment file: what is read, what is refused, and which spawner they get."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from spawner import access
from spawner.container_site_spawner import DockerSiteSpawner
from spawner.deployment import Deployment, DeploymentError, DockerAggregators, hub_address, hub_origin, load
from spawner.kinds import spawner_class
from spawner.placement import PlacementRefused, place
from spawner.site_spawner import EmbeddedSiteSpawner
from spawner.sites import TLS_FILES, DockerSite, SiteDataset, SupernodeSite, SwarmSite
from spawner.swarm_site_spawner import SwarmSiteSpawner

EXAMPLE = Path(__file__).parents[2] / "deploy" / "docker-sites.toml"
GOOD = """
[hub]
bind_url = "http://0.0.0.0:8000"
public_url = "https://hub.example"
data_dir = "state"
admin_contact = "Robin"

[sso]
preset = "cilogon"
client_id = "c"

[sso.institutions]
"urn:mace:hospital-a" = "hospital-a"

[aggregators]
kind = "docker"
image = "aggregator@sha256:12"
memory = "2GiB"

[sites.hospital-a]
kind = "docker"
title = "Hospital A"
contact = "Ada"
engine = "tcp://engine.example:2376"
tls_dir = "tls"
image = "notebook@sha256:12"
hub_address = "192.0.2.1"

[sites.hospital-a.datasets.biopsies]
title = "Biopsies"
path = "/srv/biopsies"
"""
OTHER = """
kind = "embedded"
title = "B"
contact = "Bo"
work_dir = "b"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tls").mkdir()
    for name in TLS_FILES:
        (tmp_path / "tls" / name).touch()
    return tmp_path


def loaded(folder: Path, text: str) -> Deployment:
    path = folder / "deployment.toml"
    path.write_text(text, encoding="utf-8")
    return load(path)


def with_site(**changes: Any) -> str:
    """The good file with other keys in the site's table; None takes a key out."""
    tables = tomllib.loads(GOOD)
    site = {**tables["sites"]["hospital-a"], **changes}
    tables["sites"]["hospital-a"] = {key: value for key, value in site.items() if value is not None}
    return tomli_w.dumps(tables)


def docker_site(deployment: Deployment) -> DockerSite:
    site = deployment.sites["hospital-a"]
    assert isinstance(site, DockerSite)
    return site


def test_a_docker_site_is_read(folder: Path) -> None:
    deployment = loaded(folder, GOOD)
    site = docker_site(deployment)
    assert (site.engine_host, site.server_host, site.isolates) == ("engine.example", "engine.example", True)
    assert (site.network, site.cpus, int(site.memory)) == ("federation", 4.0, 16 * 1024**3)
    assert hub_origin(deployment.hub, site) == "https://hub.example"
    assert hub_address(deployment.hub, site) == "192.0.2.1"


def test_the_example_is_a_deployment(tmp_path: Path) -> None:
    for name in TLS_FILES:
        file = tmp_path / "engines" / "st-anna" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (tmp_path / "tls").mkdir()
    for name in ("fullchain.pem", "key.pem"):
        (tmp_path / "tls" / name).touch()
    shutil.copy(EXAMPLE, tmp_path)
    deployment = load(tmp_path / EXAMPLE.name)
    assert {site.kind for site in deployment.sites.values()} == {"docker", "supernode"}


def test_the_example_shows_every_key() -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    keys = {*DockerSite.model_fields, *DockerAggregators.model_fields, *SiteDataset.model_fields}
    assert {key for key in keys if f"{key} = " not in text and f"st-anna.{key}" not in text} == set()


def test_a_site_may_see_the_hub_elsewhere(folder: Path) -> None:
    deployment = loaded(folder, with_site(hub_url="http://10.0.0.1:8000/", hub_address=None, server_address="10.0.0.2"))
    site = docker_site(deployment)
    assert (hub_origin(deployment.hub, site), hub_address(deployment.hub, site)) == ("http://10.0.0.1:8000", "10.0.0.1")
    assert site.server_host == "10.0.0.2"


def test_an_engine_on_the_hubs_machine_needs_no_certificates(folder: Path) -> None:
    site = docker_site(loaded(folder, with_site(engine="unix:///var/run/docker.sock", tls_dir=None)))
    assert (site.engine_host, site.server_host) == (None, None)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"engine": "engine.example"}, "engine: is no engine's address; write tcp://host:2376"),
        ({"engine": "tcp://engine.example"}, "engine: is no engine's address"),
        ({"engine": "unix://relative"}, "engine: is no engine's address"),
        ({"tls_dir": None}, "`tls_dir` goes with an engine on tcp://"),
        ({"engine": "TCP://engine.example:2375", "tls_dir": None}, "`tls_dir` goes with an engine on tcp://"),
        ({"engine": "unix:///run/docker.sock"}, "`tls_dir` goes with an engine on tcp://, and only with one"),
        ({"tls_dir": "empty"}, "`tls_dir` lacks ca.pem, cert.pem, key.pem"),
        ({"image": "registry.example:5000/notebook"}, "image: names no version"),
        ({"memory": "100MB"}, "memory: "),
        ({"cpus": 0}, "cpus: "),
        ({"gpus": ["g0", "g0"]}, "gpus: names a GPU twice"),
        ({"gpu_wait_s": 7200}, "gpu_wait_s: "),
        ({"hub_address": None}, "hub_address: is missing; servers have no DNS"),
        ({"hub_address": "hub.example"}, "hub_address: "),
        ({"hub_url": "https://hub.example/jupyter"}, "hub_url: is no origin"),
        ({"network": "no network"}, "network: "),
        ({"network": "host"}, "network: is one of Docker's own, which isolate nothing"),
        ({"network": "bridge"}, "network: is one of Docker's own, which isolate nothing"),
        ({"datasets": {"b": {"title": "B"}}}, "datasets.b: needs `path`"),
        ({"datasets": {"b": {"title": "B", "path": "/a", "volume": "v1"}}}, "datasets.b: needs `path`"),
        ({"datasets": {"b": {"title": "B", "path": "srv/b"}}}, "datasets.b.path: is no folder of the site's machine"),
        ({"datasets": {"b": {"title": "B", "path": "/srv/../etc"}}}, "datasets.b.path: is no folder of the site's"),
        ({"datasets": {"b": {"title": "B", "path": "/"}}}, "datasets.b.path: is no folder of the site's machine"),
        ({"datasets": {"b": {"title": "B", "volume": "/etc"}}}, "datasets.b.volume: "),
        ({"work_dir": "w"}, "work_dir: is not a key of this table"),
    ],
)
def test_an_error_names_the_key_and_the_fix(folder: Path, changes: dict[str, Any], expected: str) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(DeploymentError) as refused:
        loaded(folder, with_site(**changes))
    assert f"sites.hospital-a{'' if expected.startswith('`') else '.'}" in str(refused.value)
    assert expected in str(refused.value)


def test_a_swarms_data_are_in_folders(folder: Path) -> None:
    text = with_site(kind="swarm", datasets={"b": {"title": "B", "volume": "v1"}})
    with pytest.raises(DeploymentError, match="dataset b: nobody can see from a Swarm's manager"):
        loaded(folder, text)
    assert isinstance(loaded(folder, with_site(kind="swarm")).sites["hospital-a"], SwarmSite)


def test_embedded_sites_and_engines_do_not_mix(folder: Path) -> None:
    with pytest.raises(DeploymentError) as refused:
        loaded(folder, f"{GOOD}\n[sites.b]{OTHER}")
    assert "sites.b.kind: is embedded, and others are not: hospital-a (docker)" in str(refused.value)


def test_aggregators_in_the_hubs_account_do_not_go_with_engines(folder: Path) -> None:
    text = GOOD.replace('kind = "docker"\nimage = "aggregator@sha256:12"\nmemory = "2GiB"', 'kind = "local"')
    with pytest.raises(DeploymentError, match="aggregators: run in the Hub's account, where they can read the keys of"):
        loaded(folder, text)


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        ('engine = "tcp://10.0.0.1:2375"', "`tls_dir` goes with an engine on tcp://"),
        ('engine = "TCP://10.0.0.1:2375"', "`tls_dir` goes with an engine on tcp://"),
        ('engine = "tcp://10.0.0.1:2376"\ntls_dir = "empty"', "`tls_dir` lacks ca.pem, cert.pem, key.pem"),
        ('tls_dir = "tls"', "`tls_dir` goes with an engine on tcp://, and only with one"),
        ('engine = "10.0.0.1"', "engine: is no engine's address"),
    ],
)
def test_the_aggregators_engine_is_checked_as_a_sites(folder: Path, engine: str, expected: str) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(DeploymentError) as refused:
        loaded(folder, GOOD.replace("[aggregators]\n", f"[aggregators]\n{engine}\n"))
    assert "aggregators" in str(refused.value)
    assert expected in str(refused.value)


def test_how_an_engines_address_is_written_makes_no_difference(folder: Path) -> None:
    site = docker_site(loaded(folder, with_site(engine="TCP://engine.example:2376")))
    assert (site.engine, site.engine_host) == ("tcp://engine.example:2376", "engine.example")


def test_the_service_is_told_how_to_run_aggregators(folder: Path) -> None:
    environment = access.service(loaded(folder, GOOD))["environment"]
    assert json.loads(environment["FEDERATION_AGGREGATORS"]) == {
        "kind": "docker",
        "engine": "unix:///var/run/docker.sock",
        "tls_dir": None,
        "image": "aggregator@sha256:12",
        "memory_bytes": 2 * 1024**3,
        "cpus": 2.0,
        "disk_bytes": 20 * 1024**3,
        "hours": 72.0,
    }


# --- files of single sites


def test_a_site_may_stand_in_a_file_of_its_own(folder: Path) -> None:
    (folder / "sites.d").mkdir()
    own = '[sso.institutions]\n"urn:b" = "b"\n[sites.b]\nkind = "supernode"\ntitle = "B"\ncontact = "Bo"\n'
    (folder / "sites.d" / "b.toml").write_text(own)
    deployment = loaded(folder, GOOD)
    assert set(deployment.sites) == {"hospital-a", "b"}
    assert deployment.sso.institutions == {"urn:mace:hospital-a": "hospital-a", "urn:b": "b"}


def test_two_files_do_not_say_the_same(folder: Path) -> None:
    (folder / "sites.d").mkdir()
    (folder / "sites.d" / "a.toml").write_text('[sites.hospital-a]\ntitle = "Another"\n')
    with pytest.raises(DeploymentError, match=r"a\.toml cannot be used:\n  sites.hospital-a.title: another file"):
        loaded(folder, GOOD)


def test_a_site_file_that_is_no_toml_is_named(folder: Path) -> None:
    (folder / "sites.d").mkdir()
    (folder / "sites.d" / "b.toml").write_text("[sites")
    with pytest.raises(DeploymentError, match=r"b\.toml cannot be used:\n  it is not TOML"):
        loaded(folder, GOOD)


# --- which spawner


@pytest.mark.parametrize(("kind", "spawner"), [("docker", DockerSiteSpawner), ("swarm", SwarmSiteSpawner)])
def test_the_sites_kind_chooses_the_spawner(folder: Path, kind: str, spawner: type) -> None:
    assert spawner_class(loaded(folder, with_site(kind=kind))) is spawner


def test_without_any_server_every_start_is_refused(folder: Path) -> None:
    tables = tomllib.loads(GOOD)
    tables["sites"] = {"hospital-a": {"kind": "supernode", "title": "A", "contact": "Ada"}}
    deployment = loaded(folder, tomli_w.dumps(tables))
    assert spawner_class(deployment) is EmbeddedSiteSpawner
    site = deployment.sites["hospital-a"]
    assert isinstance(site, SupernodeSite)
    assert site.isolates
    with pytest.raises(PlacementRefused, match=r"A has no notebook servers.*Ada"):
        place(["site-hospital-a"], deployment.sites, "Robin")
