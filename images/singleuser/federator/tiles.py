"""The launcher tiles "Flower client: <project>": one Jupyter kernelspec for each assignment.

Written by the server extension into the person's own Jupyter data folder, where Jupyter lists a new folder at once.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import unicodedata
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

from federator.contract import Assignment

SPEC_PREFIX = "flower-client-"
PROVISIONER_NAME = "federator-provisioner"  # the entry point in pyproject.toml
LOGOS = ("logo-32x32.png", "logo-64x64.png", "logo-svg.svg")
_OURS = "federator"  # key of our part of a kernelspec's metadata
_NAME_ALLOWED = re.compile(r"[a-z0-9._-]+")


def spec_name(project_id: str) -> str:
    """The kernelspec's name for a project. Jupyter compares names in lower case."""
    return f"{SPEC_PREFIX}{project_id}".lower()


def is_client_spec(name: str | None) -> bool:
    return name is not None and name.lower().startswith(SPEC_PREFIX)


class Tiles:
    """Keeps the client kernelspecs in one `kernels` folder equal to the assignments."""

    def __init__(self, folder: Path) -> None:
        """
        Args:
            folder: where Jupyter looks for the person's kernelspecs: `<data dir>/kernels`. Made when first needed.
        """
        self._folder = folder

    def show(self, assignments: Iterable[Assignment]) -> None:
        """Write what is missing or changed, remove client tiles of projects that are gone; touch no other kernelspec.

        Raises:
            OSError: the folder cannot be written.
        """
        wanted = {spec_name(a.project_id): a for a in assignments if _NAME_ALLOWED.fullmatch(spec_name(a.project_id))}
        for name, assignment in wanted.items():
            self._write(self._folder / name, assignment)
        for stale in self._ours() - set(wanted):
            shutil.rmtree(self._folder / stale)

    def _write(self, folder: Path, assignment: Assignment) -> None:
        text = json.dumps(_kernel_json(assignment), indent=2)
        target = folder / "kernel.json"
        if target.is_file() and target.read_text("utf-8") == text:
            return
        folder.mkdir(parents=True, exist_ok=True)
        for logo in LOGOS:
            (folder / logo).write_bytes(resources.files("federator").joinpath("logos", logo).read_bytes())
        # Jupyter may list the folder at any moment: the file that makes it a kernelspec appears whole, and last.
        whole = folder / "kernel.json.new"
        whole.write_text(text, "utf-8")
        whole.replace(target)

    def _ours(self) -> set[str]:
        return {file.parent.name for file in self._folder.glob(f"{SPEC_PREFIX}*/kernel.json") if _is_ours(file)}


def _kernel_json(assignment: Assignment) -> dict[str, object]:
    return {
        "argv": [sys.executable, "-m", "federator.kernel", "-f", "{connection_file}"],
        "display_name": f"Flower client: {_one_line(assignment.project_name)}",
        "language": "python",
        "interrupt_mode": "signal",
        "metadata": {
            "kernel_provisioner": {"provisioner_name": PROVISIONER_NAME, "config": {}},
            _OURS: {"participation_id": assignment.participation_id, "project_id": assignment.project_id},
        },
    }


def _is_ours(kernel_json: Path) -> bool:
    """Whether we wrote it: a person may keep a kernelspec of their own under a name like ours."""
    try:
        metadata = json.loads(kernel_json.read_text("utf-8")).get("metadata", {})
    except (ValueError, AttributeError):
        return False
    return _OURS in metadata


def _one_line(text: str) -> str:
    """The text without control characters, as a launcher tile can show it."""
    return " ".join("".join(" " if unicodedata.category(c).startswith("C") else c for c in text).split())
