"""Commands of processes whose environment is scrubbed, so that coverage cannot reach them by itself."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from coverage import Coverage

ROOT = Path(__file__).resolve().parents[2]


def module_command(name: str) -> tuple[str, ...]:
    """`python -m name`; under coverage where this process is."""
    if Coverage.current() is None:
        return (sys.executable, "-m", name)
    data = os.environ.get("COVERAGE_FILE", ROOT / ".coverage")
    settings = (f"--rcfile={ROOT / 'pyproject.toml'}", f"--data-file={data}")
    return (sys.executable, "-m", "coverage", "run", "--parallel-mode", *settings, "-m", name)
