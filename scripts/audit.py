"""Look up the images' locked packages among the known vulnerabilities: `make audit`. Fails where one is known.

pip-audit asks the package index for its advisories. Where that has none for a version, or is not reached, the package
is named with the reason and the audit goes on: then the hashes in the locks are what holds (tests/unit/test_locks.py).
`--strict` fails in that case too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LOCKS = tuple(ROOT / "images" / image / "requirements.txt" for image in ("hub", "aggregator"))
PATIENCE_S = 300


def audit(lock: Path) -> tuple[list[dict[str, Any]], str]:
    """What pip-audit says of each package, and why it says nothing where it does not."""
    command = [sys.executable, "-m", "pip_audit", "--require-hashes", "--disable-pip", "--progress-spinner", "off"]
    try:
        ended = subprocess.run(
            [*command, "--format", "json", "--requirement", str(lock)],
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )
    except subprocess.TimeoutExpired:
        return [], f"no answer in {PATIENCE_S} s"
    try:
        packages: list[dict[str, Any]] = json.loads(ended.stdout)["dependencies"]
    except json.JSONDecodeError:
        return [], (ended.stderr.strip().splitlines() or ["no reason given"])[-1]
    return packages, ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--strict", action="store_true", help="fail where a package could not be looked up")
    strict = parser.parse_args().strict
    failed = False
    for lock in LOCKS:
        packages, trouble = audit(lock)
        unknown = [one["name"] for one in packages if "skip_reason" in one]
        vulnerable = [one for one in packages if one.get("vulns")]
        name = lock.relative_to(ROOT)
        say(f"{name}: {len(packages) - len(unknown)} packages looked up, {len(vulnerable)} with known vulnerabilities")
        for one in vulnerable:
            say(f"  {one['name']} {one['version']}: {', '.join(found['id'] for found in one['vulns'])}")
        if trouble or unknown:
            names = "all" if len(unknown) == len(packages) else ", ".join(unknown)
            reason = trouble or f"the package index has no advisories for these versions: {names}"
            say(f"  not audited: {reason}")
        failed |= bool(vulnerable) or (strict and bool(trouble or unknown))
    return int(failed)


def say(line: str) -> None:
    sys.stdout.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main())
