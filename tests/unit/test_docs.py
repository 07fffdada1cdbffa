"""What the docs promise: links that lead somewhere, code that is Python, names that exist, a reference that is current.

`tests/system/test_tutorials.py` runs the tutorials themselves.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import federator
import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
CODE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_to_one(page: Path) -> None:
    targets = [link for link in LINK.findall(page.read_text()) if "://" not in link and not link.startswith("#")]
    missing = [link for link in targets if not (page.parent / link.partition("#")[0]).exists()]
    assert missing == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "api.md"], ids=lambda page: page.name)
def test_code_in_the_docs_is_python_and_calls_what_there_is(page: Path) -> None:
    for code in CODE.findall(page.read_text()):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "federator":
                assert node.attr in federator.__all__, f"{page.name}: federator.{node.attr}"


def test_the_reference_is_what_the_docstrings_say(tmp_path: Path) -> None:
    page = tmp_path / "api.md"
    subprocess.run([sys.executable, ROOT / "scripts" / "api_reference.py", page], check=True)
    assert page.read_text() == (ROOT / "docs" / "api.md").read_text(), "run: make docs"
