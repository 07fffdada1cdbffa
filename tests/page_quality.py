"""Checks of a page: accessibility by axe-core in the browser, validity of its HTML by html-validate.

Both come from npm. They are installed below test-output when they are first needed, with the Node.js of the virtual
environment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from playwright.async_api import Page

TOOLS = Path(__file__).parents[1] / "test-output" / "page-tools"
PACKAGES = {"axe-core": "4.14.1", "html-validate": "11.21.1"}
GRAVE = frozenset({"serious", "critical"})
# The HTML standard; what a person with a screen reader needs is axe's to judge.
VALIDITY = {
    "root": True,
    "extends": ["html-validate:standard"],
    # A choice of style: the standard allows a title of any length, and both ways to write a void element.
    "rules": {"long-title": "off", "void-style": "off"},
}
RUN_AXE = """async (scope) => (await axe.run(scope || document, {resultTypes: ['violations']})).violations.map(
  one => ({id: one.id, impact: one.impact, help: one.help,
           nodes: one.nodes.map(node => node.target.join(' ') + ' ' + node.html.slice(0, 160)
                                        + ' // ' + (node.any[0] || node.all[0] || node.none[0] || {}).message)}))"""


@dataclass(frozen=True, slots=True)
class Violation:
    """One rule of axe-core that a page breaks."""

    rule: str
    impact: str
    text: str
    nodes: tuple[str, ...]

    @property
    def grave(self) -> bool:
        return self.impact in GRAVE

    def __str__(self) -> str:
        return "\n    ".join((f"{self.impact} {self.rule}: {self.text}", *self.nodes))


class PageTools:
    """axe-core and html-validate, installed."""

    def __init__(self, modules: Path) -> None:
        self._axe = (modules / "axe-core" / "axe.min.js").read_text("utf-8")
        self._html_validate = modules / "html-validate" / "bin" / "html-validate.mjs"

    async def violations(self, page: Page, scope: str = "") -> list[Violation]:
        """What axe-core finds on the page, as it is shown now.

        Args:
            scope: a CSS selector, for a page of which only a part is ours.
        """
        await page.evaluate(self._axe)
        found = await page.evaluate(RUN_AXE, scope)
        return [Violation(one["id"], one["impact"], one["help"], tuple(one["nodes"])) for one in found]

    def invalid(self, pages: Mapping[str, str], folder: Path) -> list[str]:
        """Where pages break the HTML standard.

        Args:
            pages: a file name for each page -> its HTML.
            folder: an empty folder, for the pages.
        """
        (folder / ".htmlvalidate.json").write_text(json.dumps(VALIDITY), "utf-8")
        for name, html in pages.items():
            (folder / f"{name}.html").write_text(html, "utf-8")
        files = sorted(str(path) for path in folder.glob("*.html"))
        command = [_node(), str(self._html_validate), "--formatter", "json", *files]
        answer = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if answer.returncode not in (0, 1):
            raise RuntimeError(answer.stderr)
        return [
            f"{Path(report['filePath']).stem}:{one['line']}: {one['ruleId']}: {one['message']}"
            for report in json.loads(answer.stdout)
            for one in report["messages"]
        ]


def page_tools() -> PageTools:
    """The tools, after npm has installed them where they are missing or of another version."""
    modules = TOOLS / "node_modules"
    if any(_installed(modules / name) != version for name, version in PACKAGES.items()):
        TOOLS.mkdir(parents=True, exist_ok=True)
        npm = str(Path(sys.executable).with_name("npm"))
        wanted = [f"{name}@{version}" for name, version in PACKAGES.items()]
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        command = [npm, "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(TOOLS), *wanted]
        subprocess.run(command, env=environment, check=True)
    return PageTools(modules)


def _installed(package: Path) -> str | None:
    manifest = package / "package.json"
    if not manifest.is_file():
        return None
    version: str = json.loads(manifest.read_text("utf-8"))["version"]
    return version


def _node() -> str:
    return str(Path(sys.executable).with_name("node"))
