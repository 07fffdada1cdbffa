"""What the Dockerfiles are given agrees with the distributions: versions, ranges and locks."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "images"
OURS = ("notebook-federator", "notebook-federator-client")


def project(path: Path) -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    return table


def dockerfile(image: str) -> str:
    return (IMAGES / image / "Dockerfile").read_text(encoding="utf-8")


def lock(image: str) -> dict[str, str]:
    """Name -> version of what an image's requirements.txt pins."""
    pins = re.findall(r"^(\S+?)(?:\[\S+\])?==(\S+)", (IMAGES / image / "requirements.txt").read_text(), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in pins}


def service_requirements() -> list[Requirement]:
    declared = map(Requirement, project(ROOT / "pyproject.toml")["dependencies"])
    return [requirement for requirement in declared if requirement.name not in OURS]


def test_the_hubs_lock_has_each_requirement_of_the_service_in_its_range() -> None:
    pinned = lock("hub")
    for requirement in service_requirements():
        assert pinned[canonicalize_name(requirement.name)] in requirement.specifier


def test_the_aggregator_has_the_hubs_versions_and_less() -> None:
    hub, aggregator = lock("hub"), lock("aggregator")
    assert aggregator.items() < hub.items()
    assert not aggregator.keys() & {"jupyterhub", "docker", "dockerspawner", "oauthenticator", "tornado", "plotly"}


def test_npm_takes_the_proxy_that_was_tried() -> None:
    wanted = json.loads((IMAGES / "hub" / "package.json").read_text())["dependencies"]
    locked = json.loads((IMAGES / "hub" / "package-lock.json").read_text())["packages"]
    assert locked[""]["dependencies"] == wanted
    assert locked["node_modules/configurable-http-proxy"]["version"] == wanted["configurable-http-proxy"]
    assert all("integrity" in package for path, package in locked.items() if path)


@pytest.mark.parametrize("image", ["singleuser", "aggregator", "hub"])
def test_a_dockerfile_names_its_base_by_digest_and_ends_without_root(image: str) -> None:
    text = dockerfile(image)
    assert re.search(r"^ARG BASE_IMAGE=\S+@sha256:[0-9a-f]{64}$", text, re.MULTILINE)
    assert re.findall(r"^USER (\S+)$", text, re.MULTILINE)[-1] == "1000"
    assert f'image.version="{project(ROOT / "pyproject.toml")["version"]}"' in text
    assert project(ROOT / "pyproject.toml")["version"] == project(IMAGES / "singleuser" / "pyproject.toml")["version"]
