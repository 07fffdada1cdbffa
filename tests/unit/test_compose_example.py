"""deploy/compose agrees with itself: variables, services' names, mounted files, the deployment file."""

from __future__ import annotations

import re
import runpy
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from spawner import deployment
from spawner.deployment import Hub

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "compose"
COMPOSE = (FOLDER / "compose.yaml").read_text(encoding="utf-8")
SERVICES: dict[str, Any] = yaml.safe_load(COMPOSE)["services"]
HUB: dict[str, Any] = tomllib.loads((FOLDER / "deployment.toml").read_text(encoding="utf-8"))["hub"]


def test_each_variable_is_explained_and_no_other() -> None:
    used = set(re.findall(r"\$\{(\w+)", COMPOSE))
    explained = set(re.findall(r"^(?:# )?(\w+)=", (FOLDER / ".env.example").read_text(encoding="utf-8"), re.MULTILINE))
    assert used == explained


def test_a_secret_has_no_default() -> None:
    for name in ("DATABASE_PASSWORD", "PROXY_TOKEN", "SERVICE_TOKEN", "SSO_CLIENT_SECRET"):
        assert set(re.findall(rf"\${{{name}(.)", COMPOSE)) == {":"}
        assert f"${{{name}:-" not in COMPOSE


def test_each_secret_reaches_who_reads_it() -> None:
    read = {value for name, value in vars(deployment).items() if name.endswith("_VARIABLE")}
    given = {name for part in ("hub", "service") for name in SERVICES[part]["environment"]}
    assert {name for name in given if name.startswith("NOTEBOOK_")} == read - {deployment.CONFIG_VARIABLE}
    assert deployment.METRICS_TOKEN_VARIABLE in SERVICES["hub"]["environment"], "the Hub makes the role of it"


def test_the_deployment_file_knows_the_services_by_their_names() -> None:
    assert set(HUB["apart"].values()) == {"hub", "proxy", "service"} == SERVICES.keys() - {"database"}
    assert all("@database/" in HUB[key] for key in ("database", "jupyterhub_database"))


def test_ours_are_restricted_and_only_the_proxy_has_a_port() -> None:
    for name in HUB["apart"].values():
        assert SERVICES[name]["read_only"]
        assert SERVICES[name]["cap_drop"] == ["ALL"]
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["proxy"]


def test_no_log_grows_for_ever() -> None:
    assert all(service["logging"]["options"].keys() >= {"max-size", "max-file"} for service in SERVICES.values())


def test_files_that_are_mounted_are_there() -> None:
    mounted = [volume.partition(":")[0] for service in SERVICES.values() for volume in service.get("volumes", ())]
    ours = [path for path in mounted if path.startswith("./")]
    assert ours
    assert all((FOLDER / path).is_file() for path in ours)


@pytest.mark.parametrize(
    ("changes", "url"),
    [
        ({}, "http://127.0.0.1:8081/hub/health"),
        ({"hub_port": 9081}, "http://127.0.0.1:9081/hub/health"),
        ({"apart": None}, "http://127.0.0.1:8000/hub/health"),  # the proxy's
    ],
)
def test_the_hubs_container_asks_for_its_health_where_somebody_listens(changes: dict[str, Any], url: str) -> None:
    hub = Hub.model_validate({**HUB, **changes}, context={"folder": FOLDER})
    assert runpy.run_path(str(ROOT / "images" / "hub" / "healthcheck.py"))["health_url"](hub) == url
