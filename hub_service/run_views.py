"""A run as members see it: rounds, the result table and the record, built from its aggregator's events."""

from __future__ import annotations

import platform
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from federator.contract import Metrics, ModelFile, Round, RunDetail, Score, SiteRound

from hub_service.domain.clock import utc_text
from hub_service.domain.projects import AppVersion, Participation, Project
from hub_service.domain.runs import WIRE_PRECISION_KEY, EventKind, Run, RunEvent, WirePrecision
from hub_service.run_progress import site_of
from hub_service.views import run_summary

ALL_SITES = ""
FEDERATED = "federated"

# What a reader of the record needs to run it again. A package that is missing here runs at the sites alone.
_RECORDED_PACKAGES = ("notebook-federator", "flwr", "numpy", "torch")


def run_detail(run: Run, version_number: int, events: Iterable[RunEvent]) -> RunDetail:
    events = tuple(events)
    return RunDetail(
        summary=run_summary(run),
        project_id=run.project_id,
        fab_hash=run.fab_hash,
        version=version_number,
        sites=tuple(run.sites.values()),
        rounds=rounds(run, events),
        scores=scores(run, events),
        model=ModelFile(run.model_sha256, run.model_size, run.model_round) if run.model_sha256 else None,
    )


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
        _round(number, [by_site[site].as_site_round(site) for site in sorted(by_site, key=_places(run))])
        for number, by_site in sorted(work.items())
    )


def _places(run: Run) -> Callable[[str], int]:
    """For sorting: sites in the order of the run's participations, then what the run does not know."""
    order = {site: place for place, site in enumerate(run.sites.values())}
    return lambda site: order.get(site, len(order))


def _round(number: int, sites: Sequence[SiteRound]) -> Round:
    return Round(
        number=number,
        sites=tuple(sites),
        train=weighted([(site.train, site.train_examples) for site in sites]),
        evaluate=weighted([(site.evaluate, site.evaluate_examples) for site in sites]),
    )


def scores(run: Run, events: Iterable[RunEvent]) -> tuple[Score, ...]:
    """The result table: each model on each site's test data, then on all of it together."""
    table: dict[str, list[Score]] = {}
    for event in events:
        if event.kind is EventKind.SCORE:
            model = event.model if event.model == FEDERATED else site_of(run, int(event.model))
            cell = Score(model, site_of(run, event.node_id), event.metrics, event.examples)
            table.setdefault(model, []).append(cell)
    place = _places(run)
    for cells in table.values():
        cells.sort(key=lambda cell: place(cell.on_site))
    return tuple(score for cells in table.values() for score in (*cells, _on_all_sites(cells)))


def _on_all_sites(cells: Sequence[Score]) -> Score:
    metrics = weighted([(cell.metrics, cell.examples) for cell in cells])
    return Score(cells[0].model, ALL_SITES, metrics, sum(cell.examples for cell in cells))


def weighted(parts: Sequence[tuple[Metrics, int]]) -> Metrics:
    """Each metric's mean weighted by examples, over the parts that have it; a plain mean where nobody counted."""
    names = dict.fromkeys(name for metrics, _ in parts for name in metrics)
    return {name: _weighted_mean([(metrics[name], n) for metrics, n in parts if name in metrics]) for name in names}


def _weighted_mean(values: Sequence[tuple[float, int]]) -> float:
    total = sum(weight for _, weight in values)
    if total == 0:
        return sum(value for value, _ in values) / len(values)
    return sum(value * weight for value, weight in values) / total


def record(
    project: Project,
    run: Run,
    app: AppVersion,
    participations: Iterable[Participation],
    detail: RunDetail,
) -> dict[str, object]:
    """What belongs beside a model: where it comes from, in JSON's own types."""
    return {
        "project": {"id": project.id, "name": project.name, "owner": project.owner},
        "run": {
            "id": run.id,
            "number": run.number,
            "status": run.status.value,
            "rounds": run.rounds,
            "compared_with_single_sites": run.compare,
            "wire_precision": _wire_precision(app),
            "started_by": run.started_by,
            "started_at": utc_text(run.created_at),
            "finished_at": utc_text(run.finished_at),
            "message": run.message,
        },
        "app": {"version": app.number, "title": app.title, "source": app.source, "fab_sha256": app.fab_hash},
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
        "model": None if detail.model is None else asdict(detail.model),
        "software": _software(),
    }


def _wire_precision(app: AppVersion) -> object:
    """As the ServerApp reads it: from the config in the approved bytes, which no run overrides."""
    table: Mapping[str, Any] = tomllib.loads(next((one.text for one in app.files if one.path == "pyproject.toml"), ""))
    for name in ("tool", "flwr", "app", "config"):
        table = table.get(name, {})
    return table.get(WIRE_PRECISION_KEY, WirePrecision.EXACT)


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
