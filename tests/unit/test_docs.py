"""What the docs promise: links that lead somewhere, code that is Python, deployments that the Hub takes, names and
commands that exist, a reference that is current.

`tests/system/test_tutorials.py` runs the tutorials themselves.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import federator
import pytest

from hub_service import machinery, presence, reconciler, run_driver
from hub_service.gateway import gateway, handlers
from spawner import deployment
from spawner.access import PASSWORD_VARIABLES
from spawner.sites import TLS_FILES
from spawner.sso import PRESETS
from tests.conftest import REQUIREMENTS

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(
        ROOT / name
        for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "images/README.md", "deploy/compose/README.md")
    ),
    *sorted((ROOT / "docs").glob("*.md")),
]
CODE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
TOML = re.compile(r"^```toml\n(.*?)^```", re.MULTILINE | re.DOTALL)
MAKE = re.compile(r"(?:^|`)make ([a-z]+)(?=`|$| +[#A-Z])", re.MULTILINE)
MODULE = re.compile(r"\bpython -m ([\w.]*\w)")
LINK = re.compile(r"\]\(([^)\s]+)\)")
IMAGE = re.compile(r"notebook-federator/(?:hub|aggregator|singleuser)\b([:@]\w+(?:\.\w+)*)?")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_to_one(page: Path) -> None:
    targets = [link for link in LINK.findall(page.read_text()) if "://" not in link and not link.startswith("#")]
    missing = [link for link in targets if not (page.parent / link.partition("#")[0]).exists()]
    assert missing == []


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", one.strip().lower()).replace(" ", "-") for one in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_heading_leads_to_one(page: Path) -> None:
    links = [link.partition("#") for link in LINK.findall(page.read_text()) if "://" not in link and "#" in link]
    missing = [
        (file, anchor) for file, _, anchor in links if anchor not in anchors(page.parent / file if file else page)
    ]
    assert missing == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "api.md"], ids=lambda page: page.name)
def test_code_in_the_docs_is_python_and_calls_what_there_is(page: Path) -> None:
    for code in CODE.findall(page.read_text()):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "federator":
                assert node.attr in federator.__all__, f"{page.name}: federator.{node.attr}"


@pytest.mark.parametrize("page", [page for page in PAGES if TOML.search(page.read_text())], ids=lambda page: page.name)
def test_deployments_in_the_docs_are_what_the_hub_takes(page: Path, tmp_path: Path) -> None:
    """A part of one is TOML at least."""
    for text in TOML.findall(page.read_text()):
        tables = tomllib.loads(text)
        if {"hub", "sso", "sites"} <= tables.keys():
            for site in tables["sites"].values():
                if "tls_dir" in site:
                    make_certificates(tmp_path / site["tls_dir"])
            path = tmp_path / "deployment.toml"
            path.write_text(text, encoding="utf-8")
            assert set(deployment.load(path).sites) == set(tables["sites"])


def make_certificates(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in TLS_FILES:
        (folder / name).touch()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_the_docs_exist(page: Path) -> None:
    text = page.read_text()
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(MAKE.findall(text)) <= targets
    missing = [name for name in sorted(set(MODULE.findall(text))) if importlib.util.find_spec(name) is None]
    assert missing == []


def test_images_are_named_by_the_one_tag_or_by_a_digest() -> None:
    """What images/README.md builds is what the deployments start."""
    version: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    examples = [path for path in (ROOT / "deploy").rglob("*") if path.is_file()]
    files = [*PAGES, *examples, *(ROOT / "images").glob("*/Dockerfile")]
    named = {(path.name, tag) for path in files for tag in IMAGE.findall(path.read_text())}
    assert {tag for _, tag in named} == {f":{version.rpartition('.')[0]}", "@sha256"}, sorted(named)


def table_below(heading: str, page: str = "docs/deployment.md") -> list[list[str]]:
    """Rows of the tables below a heading of a page, without the head of the first."""
    text = (ROOT / page).read_text().partition(f"\n## {heading}\n")[2]
    rows = re.findall(r"^\|(.*)\|$", text.partition("\n## ")[0], re.MULTILINE)
    return [[cell.strip() for cell in row.split("|")] for row in rows[2:]]


def test_every_secret_is_in_the_table() -> None:
    ours = {value for name, value in vars(deployment).items() if name.endswith("_VARIABLE")}
    told = set(re.findall(r"`(\w+)`", " ".join(row[0] for row in table_below("Secrets"))))
    assert {*ours, *PASSWORD_VARIABLES, "CONFIGPROXY_AUTH_TOKEN", "JPY_COOKIE_SECRET"} - {
        deployment.CONFIG_VARIABLE
    } == told


def test_presets_are_told_as_they_are() -> None:
    told = [[cell.strip("`") for cell in row[:4]] for row in table_below("Single sign-on")]
    assert told == [
        [name, one.username_claim, one.institution_claim, one.institution_form] for name, one in PRESETS.items()
    ]


def test_what_each_marker_needs_is_told() -> None:
    rows = [row for row in table_below("Tests", "CONTRIBUTING.md") if row[0].startswith("`needs_")]
    assert {row[0].strip("`") for row in rows} == REQUIREMENTS.keys()
    packages = set(re.findall(r"=([\w.-]+)(?=[ ;])", (ROOT / ".ci" / "run").read_text().partition("do\n")[0]))
    told = re.search(r"`apt-get install ([^`]+)`", (ROOT / "CONTRIBUTING.md").read_text())
    assert told is not None
    assert set(told[1].split()) == packages


def test_limits_are_told_as_they_are() -> None:
    told = {name.strip("`"): limit for limit, _, name in table_below("Limits", "docs/operating.md")}
    assert told == {
        "gateway.BODY_LIMIT": f"{gateway.BODY_LIMIT >> 30} GiB",
        "gateway.LONGEST_SILENCE_S": f"{gateway.LONGEST_SILENCE_S:g} s",
        "handlers._LONGEST_BODY_S": f"{handlers._LONGEST_BODY_S / 3600:g} h",
        "gateway.LONGEST_POLL_S": f"{gateway.LONGEST_POLL_S:g} s",
        "reconciler.NODES_WAIT_S": f"{reconciler.NODES_WAIT_S:g} s",
        "presence.LOST_AFTER": f"{presence.LOST_AFTER.total_seconds():g} s",
        "presence.BACK_WITHIN": f"{presence.BACK_WITHIN.total_seconds():g} s",
        "run_driver.PATIENCE_S": f"{run_driver.PATIENCE_S:g} s",
        "run_driver.MOST_LOSSES": f"{run_driver.MOST_LOSSES}",
        "machinery.LEAST_FREE": f"{machinery.LEAST_FREE >> 20} MiB",
        "run_driver._LEAST_ROOM": f"{run_driver._LEAST_ROOM >> 20} MiB",
    }


def test_the_map_names_modules_that_there_are() -> None:
    """A name without a folder stands in the folder of the one before it."""
    rows = re.findall(r"^\| (`[^|]+) \|", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE)
    missing, folder = [], ROOT
    for name in re.findall(r"`([^`]+)`", "\n".join(rows)):
        path = ROOT / "images" / "singleuser" / name if name.startswith("federator/") else ROOT / name
        path = path if "/" in name or path.exists() else folder / name
        folder = path.parent
        if not path.exists():
            missing.append(name)
    assert missing == []


def test_the_reference_is_what_the_docstrings_say(tmp_path: Path) -> None:
    page = tmp_path / "api.md"
    subprocess.run([sys.executable, ROOT / "scripts" / "api_reference.py", page], check=True)
    assert page.read_text() == (ROOT / "docs" / "api.md").read_text(), "run: make docs"
