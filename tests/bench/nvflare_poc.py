"""NVFlare's proof-of-concept deployment: a server and three clients as processes of this machine, over mutual TLS."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.peers import environment
from tests.bench.timings import SiteRounds
from tests.bench.workload import APP, Workload

VERSION = "2.9.0"
NAME = f"NVFlare {VERSION} POC"
_DRIVER = Path(__file__).parent / "nvflare" / "drive.py"
_PATIENCE_S = 1200


class NVFlareFailed(Exception):
    """NVFlare did not do it. The text is for a person."""


@dataclass(frozen=True)
class NVFlareRun:
    """Seconds from submitting the job to its end, and what the sites noted."""

    seconds: float
    sites: SiteRounds


def run_jobs(folder: Path, workloads: Sequence[Workload]) -> list[NVFlareRun]:
    """Run the workloads one after the other in one deployment.

    Raises:
        NotInstalled: there is no NVFlare here.
        NVFlareFailed: a job did not finish.
    """
    python = environment("nvflare", f"nvflare=={VERSION}")
    jobs = [_job(folder / f"job-{number}", workload) for number, workload in enumerate(workloads)]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    results = folder / "results.json"
    log = folder / "driver.log"
    with log.open("wb") as output:
        driver = subprocess.Popen(
            [str(python), str(_DRIVER), str(folder / "jobs.json"), str(results)],
            cwd=folder,
            env={
                **os.environ,
                "PATH": os.pathsep.join((str(python.parent), os.environ["PATH"])),
                "PYTHONPATH": str(APP),
                "HOME": str(folder),  # where it keeps what it knows of its deployments
                "NVFLARE_POC_WORKSPACE": str(folder / "poc"),
            },
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        driver.wait(_PATIENCE_S)
    except subprocess.TimeoutExpired:
        raise NVFlareFailed(f"the jobs did not end in {_PATIENCE_S} s; see {log}") from None
    finally:
        with contextlib.suppress(ProcessLookupError):  # its server and clients are in the driver's group
            os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    outcomes = json.loads(results.read_text()) if results.exists() else []
    if len(outcomes) < len(jobs) or any(one["status"] != "FINISHED:COMPLETED" for one in outcomes):
        raise NVFlareFailed(f"a job did not finish ({outcomes}); see {log}")
    return [
        NVFlareRun(outcome["seconds"], _sites(Path(job["notes"]))) for outcome, job in zip(outcomes, jobs, strict=True)
    ]


def _job(folder: Path, workload: Workload) -> dict[str, Any]:
    folder.mkdir(parents=True)
    return {"config": workload.config(), "notes": str(folder)}


def _sites(folder: Path) -> SiteRounds:
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("site-*.json")}
