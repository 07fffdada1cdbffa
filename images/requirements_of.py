"""Print the requirements in a pyproject.toml, one a line, for pip or `uv pip compile`. No other package is needed.

    python images/requirements_of.py pyproject.toml                  all of the distribution's own
    python images/requirements_of.py pyproject.toml flwr numpy       these of them
    python images/requirements_of.py pyproject.toml --extra s3       and an extra's

The Dockerfiles install them before the code, so that a change of code installs nothing anew. Distributions of this
repository are left out: they are built from source.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from pathlib import Path

OURS = ("notebook-federator", "notebook-federator-client")


def requirements(pyproject: Path, names: list[str], extras: list[str]) -> list[str]:
    """The requirements with these names, or all; with those of the extras.

    Raises:
        SystemExit: a name is no requirement there, or no extra.
    """
    with pyproject.open("rb") as file:
        project = tomllib.load(file)["project"]
    optional = project.get("optional-dependencies", {})
    if lacking := set(extras) - optional.keys():
        raise SystemExit(f"{pyproject} has no extra {', '.join(sorted(lacking))}.")
    declared = [*project["dependencies"], *(line for extra in extras for line in optional[extra])]
    by_name = {re.split(r"[^\w.-]", line, maxsplit=1)[0]: line for line in declared}
    unknown = [name for name in names if name not in by_name]
    if unknown:
        raise SystemExit(f"{pyproject} does not require {', '.join(unknown)}.")
    return [line for name, line in by_name.items() if name not in OURS and (not names or name in names)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pyproject", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--extra", action="append", default=[])
    said = parser.parse_args()
    sys.stdout.write("\n".join(requirements(said.pyproject, said.names, said.extra)) + "\n")
