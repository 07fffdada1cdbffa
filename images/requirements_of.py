"""Print the requirements in a pyproject.toml, one a line, for pip or `uv pip compile`. No other package is needed.

    python images/requirements_of.py pyproject.toml                  all of the distribution's own
    python images/requirements_of.py pyproject.toml flwr numpy       these of them

The Dockerfiles install them before the code, so that a change of code installs nothing anew. Distributions of this
repository are left out: they are built from source.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

OURS = ("notebook-federator", "notebook-federator-client")


def requirements(pyproject: Path, names: list[str]) -> list[str]:
    """The requirements with these names, or all.

    Raises:
        SystemExit: a name is no requirement there.
    """
    with pyproject.open("rb") as file:
        declared = tomllib.load(file)["project"]["dependencies"]
    by_name = {re.split(r"[^\w.-]", line, maxsplit=1)[0]: line for line in declared}
    unknown = [name for name in names if name not in by_name]
    if unknown:
        raise SystemExit(f"{pyproject} does not require {', '.join(unknown)}.")
    return [line for name, line in by_name.items() if name not in OURS and (not names or name in names)]


if __name__ == "__main__":
    path, *wanted = sys.argv[1:]
    sys.stdout.write("\n".join(requirements(Path(path), wanted)) + "\n")
