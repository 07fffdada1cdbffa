"""Logs a run to MLflow, which is the researcher's own to install: nothing else here needs it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from federator import service_client as api

if TYPE_CHECKING:
    from federator.results import RunResults

_LONGEST = 500  # characters of a parameter that every MLflow takes


def log_run(run: RunResults, tracking_uri: str | None) -> str:
    """Called by `RunResults.log_to_mlflow`. Raises Refused where mlflow is not installed."""
    try:
        mlflow: Any = import_module("mlflow")
    except ImportError as error:
        raise api.Refused("mlflow is not installed in this server.", "pip install mlflow-skinny") from error
    record = run.record()
    client = mlflow.MlflowClient(tracking_uri=tracking_uri)
    experiment = client.get_experiment_by_name(record["project"]["name"])
    experiment_id = experiment.experiment_id if experiment else client.create_experiment(record["project"]["name"])
    logged = client.create_run(experiment_id, run_name=f"run {record['run']['number']}")
    run_id: str = logged.info.run_id
    for name, value in _parameters(record).items():
        client.log_param(run_id, name, str(value)[:_LONGEST])
    for name, value, step in _metrics(record):
        client.log_metric(run_id, _safe(name), value, step=step)
    with tempfile.TemporaryDirectory() as folder:
        run.card(Path(folder) / "CARD.md")
        run.signed(Path(folder) / "signed.json")
        if record["model"]:
            run.model(Path(folder) / "model.safetensors")
        client.log_artifacts(run_id, folder)
    client.set_terminated(run_id, "FINISHED" if record["run"]["status"] == "finished" else "FAILED")
    return run_id


def _parameters(record: Mapping[str, Any]) -> dict[str, Any]:
    sites = ", ".join(one["site"] for one in record["participants"])
    return {
        "fab_sha256": record["app"]["fab_sha256"],
        "app_version": record["app"]["version"],
        "rounds": record["run"]["rounds"],
        "sites": sites,
        **{f"config.{name}": value for name, value in record["run"]["config"].items()},
    }


def _metrics(record: Mapping[str, Any]) -> list[tuple[str, float, int]]:
    """Each round's metrics of all sites together and of each, then the scores at the end."""
    found = []
    for one in record["rounds"]:
        parts = {"all": one, **{site["site"]: site for site in one["sites"]}}
        for where, part in parts.items():
            for kind in ("train", "evaluate"):
                found += [(f"{kind}/{where}/{name}", value, one["number"]) for name, value in part[kind].items()]
    for score in record["scores"]:
        where = f"score/{score['model']}/on {score['on_site'] or 'all'}"
        found += [(f"{where}/{name}", value, record["run"]["rounds"]) for name, value in score["metrics"].items()]
    return found


def _safe(name: str) -> str:
    """MLflow takes letters, digits, and a few signs in names."""
    return "".join(one if one.isascii() and (one.isalnum() or one in "_-. /") else "_" for one in name)
