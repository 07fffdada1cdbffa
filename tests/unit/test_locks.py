"""What an image installs is what was locked: every requirement has hashes, and the locks fit the declarations."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ("hub", "aggregator")
OURS = ("notebook-federator", "notebook-federator-client")


def requirements(image: str) -> list[str]:
    """Each requirement of an image's lock, with what belongs to it, in one line."""
    text = (ROOT / "images" / image / "requirements.txt").read_text(encoding="utf-8")
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [line for line in lines if not line.lstrip().startswith("#")]


@pytest.mark.parametrize("image", LOCKS)
def test_each_requirement_is_one_version_with_hashes(image: str) -> None:
    found = requirements(image)
    assert len(found) > 20
    odd = [
        line
        for line in found
        if not re.fullmatch(r"[\w.\[\],-]+==\S+( ; [^#]+?)?(\s+--hash=sha256:[0-9a-f]{64})+\s*", line)
    ]
    assert odd == []


@pytest.mark.parametrize("image", LOCKS)
def test_the_image_installs_nothing_without_its_hash(image: str) -> None:
    dockerfile = (ROOT / "images" / image / "Dockerfile").read_text(encoding="utf-8")
    installs = [line for line in dockerfile.splitlines() if "requirements.txt" in line and "install" in line]
    assert installs
    assert all("--require-hashes" in line for line in installs), installs


@pytest.mark.parametrize("image", LOCKS)
def test_what_is_locked_fits_what_is_declared(image: str) -> None:
    locked = dict(re.match(r"([\w.-]+)(?:\[\S*\])?==(\S+)", line).groups() for line in requirements(image))  # type: ignore[union-attr]
    pins = {canonicalize_name(name): version for name, version in locked.items()}
    for pyproject in ("pyproject.toml", "images/singleuser/pyproject.toml"):
        declared = map(Requirement, tomllib.loads((ROOT / pyproject).read_text())["project"]["dependencies"])
        wrong = [
            str(one)
            for one in declared
            if one.name not in OURS
            and canonicalize_name(one.name) in pins
            and not one.specifier.contains(pins[canonicalize_name(one.name)])
        ]
        assert wrong == []
