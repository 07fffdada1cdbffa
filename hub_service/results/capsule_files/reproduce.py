"""Runs this capsule on stock Flower, on this machine, and compares the model with the recorded one.

    python reproduce.py SITE=FOLDER [SITE=FOLDER ...]     all sites of the run, each with the folder of its data
    python reproduce.py --compare capsule-result.npz      the model of a run that was started by hand, see README.md

Exit status: 0 where both models are the same bit for bit, 1 where they differ, 2 where there is nothing to compare.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import numpy as np
from safetensors.numpy import load_file

HERE = Path(__file__).resolve().parent
BINARIES = Path(sys.executable).parent
HOST = "127.0.0.1"
SUPERLINK_LOOKS = 600
SITES = tuple(json.loads((HERE / "capsule.json").read_text())["sites"])


def run(folders: dict[str, Path], work: Path) -> Path:
    """The model of a run with one SuperNode for each site. Raises SystemExit where there is none."""
    work.mkdir(exist_ok=True)
    result = work / "capsule-result.npz"
    result.unlink(missing_ok=True)
    with contextlib.ExitStack() as processes:
        port = free_port()
        superlink = ["flower-superlink", "--insecure", "--host", HOST, "--port", str(port)]
        options = ["--disable-runtime-dependency-installation", "--database", str(work / "superlink.db")]
        (work / "superlink.db").unlink(missing_ok=True)
        processes.enter_context(started(work, "superlink", [*superlink, *options]))
        wait_for(port)
        for place, (site, folder) in enumerate(folders.items()):
            node = ["flower-supernode", "--insecure", "--superlink", f"{HOST}:{port}", "--port", str(free_port())]
            config = ["--node-config", f"dataset-path={json.dumps(str(folder.resolve()))} site={json.dumps(site)}"]
            processes.enter_context(started(work, f"site-{place}", [*node, *config]))
        home = work / "flwr"
        home.mkdir(exist_ok=True)
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "capsule"\n\n[superlink.capsule]\naddress = "{HOST}:{port}"\ninsecure = true\n'
        )
        command = [str(BINARIES / "flwr"), "run", str(HERE / "app"), "capsule", "--stream"]
        subprocess.run(command, env=environment(work, "flwr"), check=False)
    if not result.exists():
        say(f"The run ended without a model. The logs are in {work}.", sys.stderr)
        raise SystemExit(2)
    return result


@contextlib.contextmanager
def started(work: Path, name: str, command: list[str]) -> Iterator[None]:
    """A process that ends with the block, with all that it has started."""
    with (work / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [str(BINARIES / command[0]), *command[1:]],
            env=environment(work, f"flwr-{name}"),
            stdout=log,
            stderr=log,
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def environment(work: Path, home: str) -> dict[str, str]:
    return {
        **os.environ,
        "PATH": os.pathsep.join((str(BINARIES), os.environ.get("PATH", ""))),
        "FLWR_HOME": str(work / home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "CAPSULE_RESULT": str(work / "capsule-result.npz"),
    }


def wait_for(port: int) -> None:
    for _ in range(SUPERLINK_LOOKS):
        with contextlib.suppress(OSError), socket.create_connection((HOST, port)):
            return
        time.sleep(0.2)
    raise SystemExit("the SuperLink does not answer")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def compare(result: Path) -> bool:
    """Say how the two models differ; whether they are the same bit for bit."""
    recorded = load_file(HERE / "model.safetensors")
    with np.load(result) as file:
        made = {str(name): file[f"arr_{place}"] for place, name in enumerate(file["names"])}
    if recorded.keys() != made.keys():
        say(f"Other arrays: {', '.join(sorted(recorded.keys() ^ made.keys()))}.")
        return False
    differing = []
    for name, wanted in recorded.items():
        found = made[name]
        if (wanted.dtype, wanted.shape) != (found.dtype, found.shape):
            say(f"{name}: {found.dtype}{list(found.shape)} in place of {wanted.dtype}{list(wanted.shape)}")
            differing.append((float("inf"), name))
        elif wanted.tobytes() != found.tobytes():
            differing.append((float(np.abs(wanted.astype(float) - found.astype(float)).max()), name))
    if not differing:
        say(f"The same model, bit for bit: {len(recorded)} arrays.")
        return True
    largest, name = max(differing)
    say(f"{len(differing)} of {len(recorded)} arrays differ; the largest difference is {largest:.3g}, in {name}.")
    say("Causes: see “When the model differs” in README.md.")
    return False


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="reproduce.py", description="Run this capsule on stock Flower and compare.")
    parser.add_argument("sites", nargs="*", metavar="SITE=FOLDER", help=f"all of: {', '.join(SITES)}")
    parser.add_argument("--compare", type=Path, metavar="RESULT", help="only compare this model")
    parser.add_argument("--work", type=Path, default=HERE / "work", help="where logs and the model go")
    asked = parser.parse_args()
    asked.folders = {}
    for one in asked.sites:
        site, _, folder = one.partition("=")
        asked.folders[site] = Path(folder)
        if not Path(folder).is_dir():
            parser.error(f"{folder!r} is no folder")
    if asked.compare is None and asked.folders.keys() != set(SITES):
        parser.error(f"name the folder of each of: {', '.join(SITES)}")
    return asked


def say(text: str, stream: TextIO = sys.stdout) -> None:
    stream.write(f"{text}\n")


def main() -> int:
    asked = parsed()
    folders = {site: asked.folders[site] for site in SITES} if asked.compare is None else {}
    return 0 if compare(asked.compare or run(folders, asked.work)) else 1


if __name__ == "__main__":
    sys.exit(main())
