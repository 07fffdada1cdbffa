"""Runs jobs in an NVFlare POC of three sites. Called with the Python that has NVFlare, by `tests.bench.nvflare_poc`.

drive.py JOBS RESULTS       JOBS: JSON list of {"config": ..., "notes": folder}; RESULTS: written as each job ends
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.fuel.flare_api.flare_api import NoConnection, Session, new_secure_session
from nvflare.recipe import PocEnv
from nvflare.tool.poc.poc_commands import _start_poc, prepare_poc_provision

SITES = 3
CLIENT = Path(__file__).parent / "client.py"
APP = Path(__file__).parents[1] / "app" / "benchapp"
LOOK_S = 0.1
READY_S = 60.0
JOB_S = 600.0


def main(jobs: Path, results: Path) -> None:
    poc = PocEnv(num_clients=SITES)
    prepare_poc_provision(clients=[], number_of_clients=SITES, workspace=poc.poc_workspace, docker_image=None)
    done: list[dict[str, Any]] = []
    try:
        _start_poc(poc_workspace=poc.poc_workspace, gpu_ids=[], excluded=[poc.username], services_list=[])
        session = _logged_in(poc)
        try:
            for number, job in enumerate(json.loads(jobs.read_text())):
                done.append(_run(session, number, job))
                results.write_text(json.dumps(done))
        finally:
            session.close()
    finally:
        poc.stop(clean_up=False)


def _logged_in(poc: PocEnv) -> Session:
    """A session, once all sites are there."""
    deadline = time.monotonic() + READY_S
    kit = poc._get_admin_startup_kit_path()
    while True:
        with contextlib.suppress(NoConnection):
            session = new_secure_session(username=poc.username, startup_kit_location=kit, timeout=10)
            if len(session.get_system_info().client_info) == SITES:
                return session
            session.close()
        if time.monotonic() > deadline:
            raise TimeoutError(f"{SITES} sites did not come online in {READY_S:.0f} s")
        time.sleep(LOOK_S)


def _run(session: Session, number: int, job: dict[str, Any]) -> dict[str, Any]:
    folder = Path(job["notes"])
    config = folder / "config.json"
    config.write_text(json.dumps(job["config"]))
    recipe = FedAvgRecipe(
        name=f"bench-{number}",
        model=_model(job["config"]),
        min_clients=SITES,
        num_rounds=job["config"]["num-server-rounds"],
        train_script=str(CLIENT),
        train_args=f"{config} {folder}",
        key_metric="loss",
        key_metric_mode="min",
    )
    recipe.export(str(folder / "job"))
    begun = time.perf_counter()
    job_id = session.submit_job(str(folder / "job" / f"bench-{number}"))
    while not (status := session.get_job_status(job_id)).startswith("FINISHED"):
        if time.perf_counter() - begun > JOB_S:
            session.abort_job(job_id)
            status = "too slow"
            break
        time.sleep(LOOK_S)
    return {"seconds": time.perf_counter() - begun, "status": status}


def _model(config: dict[str, Any]) -> dict[str, Any]:
    """As a job's configuration names a model: the server makes it."""
    if config["kind"] == "cnn":
        return {"class_path": "benchapp.torch_work.Cnn", "args": {"width": config["width"], "pixels": config["pixels"]}}
    sizes = {"megabytes": config["megabytes"], "layers": config["layers"]}
    return {"class_path": "benchapp.torch_work.Layers", "args": sizes}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
