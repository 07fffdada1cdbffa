"""A run as members see it: rounds, the result table and the record, built from its aggregator's events."""

from __future__ import annotations

import math
import platform
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from federator.contract import ModelFile, Round, RunDetail, SiteRound

from hub_service.domain.clock import utc_text
from hub_service.domain.projects import AppVersion, Participation, Project
from hub_service.domain.runs import ROUNDS_KEY, SEED_KEY, WIRE_PRECISION_KEY, EventKind, Run, RunEvent, WirePrecision
from hub_service.results.models import best_round
from hub_service.results.scores import FEDERATED, differences, labels, places, scores, weighted
from hub_service.run_history import standing
from hub_service.run_progress import site_of
from hub_service.views import run_summary

# What a reader of the record needs to run it again. A package that is missing here runs at the sites alone.
_RECORDED_PACKAGES = ("notebook-federator", "flwr", "numpy", "torch")


def run_detail(run: Run, version_number: int, events: Iterable[RunEvent]) -> RunDetail:
    events = standing(events)
    table = scores(run, events)
    by_round = rounds(run, events)
    best, best_metric = best_round(by_round)
    return RunDetail(
        summary=run_summary(run),
        project_id=run.project_id,
        fab_hash=run.fab_hash,
        version=version_number,
        sites=tuple(run.sites.values()),
        rounds=by_round,
        scores=table,
        model=ModelFile(run.model_sha256, run.model_size, run.model_round) if run.model_sha256 else None,
        differences=differences(run.id, table),
        labels=labels(table),
        seed=run.seed,
        on_outage=run.on_outage,
        grace_s=run.grace_s,
        models=run.models,
        models_dropped=_models_dropped(run, events),
        best_round=best,
        best_metric=best_metric,
    )


def _models_dropped(run: Run, events: Iterable[RunEvent]) -> tuple[int, ...]:
    """Rounds whose model was written and is not kept, once that is decided."""
    if not run.status.is_final:
        return ()
    kept = {one.round for one in run.models} | {run.model_round}
    return tuple(sorted({one.round for one in events if one.kind is EventKind.MODEL} - kept))


@dataclass(slots=True)
class _SiteWork:
    """What the events say of one site in one round. A later reply of a type takes the place of an earlier one."""

    bytes_in: int = 0
    replies: dict[str, RunEvent] = field(default_factory=dict)  # by "train", "evaluate"

    def as_site_round(self, site: str) -> SiteRound:
        train, evaluate = self.replies.get("train"), self.replies.get("evaluate")
        return SiteRound(
            site=site,
            train=train.metrics if train else {},
            evaluate=evaluate.metrics if evaluate else {},
            train_examples=train.examples if train else 0,
            evaluate_examples=evaluate.examples if evaluate else 0,
            seconds=sum(reply.seconds for reply in self.replies.values()),
            bytes_in=self.bytes_in,
            bytes_out=sum(reply.size for reply in self.replies.values()),
            error="; ".join(reply.text for reply in self.replies.values() if reply.text),
        )


def rounds(run: Run, events: Iterable[RunEvent]) -> tuple[Round, ...]:
    """The federated rounds so far, in order. Sites stand in the order of the run's participations."""
    work: dict[int, dict[str, _SiteWork]] = {}
    for event in events:
        if event.phase != FEDERATED or event.round == 0 or event.kind not in (EventKind.SENT, EventKind.REPLY):
            continue
        site = work.setdefault(event.round, {}).setdefault(site_of(run, event.node_id), _SiteWork())
        if event.kind is EventKind.SENT:
            site.bytes_in += event.size
        else:
            site.replies[event.message_type.partition(".")[0]] = event
    return tuple(
        _round(run, number, [by_site[site].as_site_round(site) for site in sorted(by_site, key=places(run))])
        for number, by_site in sorted(work.items())
    )


def _round(run: Run, number: int, sites: Sequence[SiteRound]) -> Round:
    asked = {site.site for site in sites}
    return Round(
        number=number,
        sites=tuple(sites),
        train=weighted([(site.train, site.train_examples) for site in sites]),
        evaluate=weighted([(site.evaluate, site.evaluate_examples) for site in sites]),
        absent=tuple(site for site in run.sites.values() if site not in asked),
    )


def record(
    project: Project,
    run: Run,
    app: AppVersion,
    participations: Iterable[Participation],
    detail: RunDetail,
    aggregator_image: str = "",
) -> dict[str, object]:
    """What belongs beside a model: where it comes from, in JSON's own types."""
    config = {key: _in_json(value) for key, value in run_config(run, app).items()}
    return {
        "project": {"id": project.id, "name": project.name, "owner": project.owner},
        "run": {
            "id": run.id,
            "number": run.number,
            "status": run.status.value,
            "rounds": run.rounds,
            "compared_with_single_sites": run.compare,
            "wire_precision": config.get(WIRE_PRECISION_KEY, WirePrecision.EXACT),
            "seed": config.get(SEED_KEY),
            "config": config,
            "on_outage": run.on_outage.value,
            "grace_s": run.grace_s,
            "started_by": run.started_by,
            "started_at": utc_text(run.created_at),
            "finished_at": utc_text(run.finished_at),
            "message": run.message,
        },
        "app": {
            "version": app.number,
            "title": app.title,
            "source": app.source,
            "fab_sha256": app.fab_hash,
            "outputs": _table(app, "federator", "outputs"),
        },
        "participants": [
            {
                "site": one.site,
                "dataset": one.dataset,
                "user": one.user,
                **_samples(detail, run.sites[one.id]),
            }
            for one in participations
        ],
        "rounds": [{**asdict(one), "sites": [asdict(site) for site in one.sites]} for one in detail.rounds],
        "scores": [asdict(one) for one in detail.scores],
        "differences": [asdict(one) for one in detail.differences],
        "labels": [asdict(one) for one in detail.labels],
        "model": None if detail.model is None else asdict(detail.model),
        "models": [asdict(one) for one in detail.models],
        "models_dropped": list(detail.models_dropped),
        "best": {"round": detail.best_round, "metric": detail.best_metric},
        "images": {"aggregator": aggregator_image},
        "software": _software(),
    }


def _in_json(value: object) -> object:
    """JSON has no infinity: apps of earlier versions may have one in their configuration."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def run_config(run: Run, app: AppVersion) -> dict[str, Any]:
    """The run's configuration as Flower fuses it: what the approved bytes say, and what a run may set in its place."""
    config = _flat(_table(app, "flwr", "app", "config"))
    wanted = {ROUNDS_KEY: run.rounds} | ({} if run.seed is None else {SEED_KEY: run.seed})
    return config | {key: value for key, value in wanted.items() if key in config}


def _flat(table: Mapping[str, Any], within: str = "") -> dict[str, Any]:
    """Nested names joined with dots, as Flower does."""
    found: dict[str, Any] = {}
    for name, value in table.items():
        found |= _flat(value, f"{within}{name}.") if isinstance(value, dict) else {f"{within}{name}": value}
    return found


def _table(app: AppVersion, *names: str) -> dict[str, Any]:
    """A table below [tool] of the pyproject.toml in the approved bytes; empty where there is none."""
    text = next((one.text for one in app.files if one.path == "pyproject.toml"), "")
    table: dict[str, Any] = tomllib.loads(text).get("tool", {})
    for name in names:
        table = table.get(name, {})
    return table


def _samples(detail: RunDetail, site: str) -> Mapping[str, int]:
    """The most examples that a site reported in any round: it may have missed some rounds."""
    site_rounds = [one for federated in detail.rounds for one in federated.sites if one.site == site]
    return {
        "train_examples": max((one.train_examples for one in site_rounds), default=0),
        "test_examples": max((one.evaluate_examples for one in site_rounds), default=0),
    }


def _software() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _RECORDED_PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
