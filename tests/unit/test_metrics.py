"""What the service counts, as Prometheus' own parser reads it; and that the documentation lists all of it."""

from __future__ import annotations

import math
import re

from federator.contract import ClientState, RunStatus
from prometheus_client import CONTENT_TYPE_LATEST
from prometheus_client.parser import text_string_to_metric_families

from hub_service.domain.runs import EventKind, RunEvent
from hub_service.machinery import Disk
from hub_service.metrics import Metrics
from hub_service.service_figures import Figures
from hub_service.web.metrics import CONTENT_TYPE
from tests.conftest import ROOT
from tests.unit.test_run_timings import RUN, reply, sent

FIGURES = Figures(
    runs={RunStatus.RUNNING: 2},
    clients={("north", ClientState.READY): 3},
    traffic={("north", "in"): 10, ("north", "out"): 4},
    aggregators=2,
    orphans=1,
    notices=5,
    undelivered=1,
    disk=Disk(free=7, size=9),
    followers=4,
    tasks={"reconciler": True, "notices": False},
)


def samples(metrics: Metrics, figures: Figures = FIGURES) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(metrics.text(figures).decode())
    return {(one.name, tuple(sorted(one.labels.items()))): one.value for family in families for one in family.samples}


def value(found: dict[tuple[str, tuple[tuple[str, str], ...]], float], name: str, **labels: str) -> float:
    return found[f"federation_{name}", tuple(sorted(labels.items()))]


def test_what_is_looked_up() -> None:
    found = samples(Metrics(["north"]))
    assert value(found, "runs", status="running") == 2
    assert value(found, "runs", status="waiting") == 0
    assert value(found, "clients", site="north", state="ready") == 3
    assert value(found, "bytes_total", site="north", direction="in") == 10
    assert value(found, "bytes_total", site="north", direction="out") == 4
    assert value(found, "aggregators") == 2
    assert value(found, "aggregators_orphaned") == 1
    assert value(found, "notices_waiting") == 5
    assert value(found, "notices_undelivered") == 1
    assert (value(found, "disk_free_bytes"), value(found, "disk_size_bytes")) == (7, 9)
    assert value(found, "followers") == 4
    assert value(found, "background_up", task="reconciler") == 1
    assert value(found, "background_up", task="notices") == 0


def test_what_cannot_be_told_is_left_out() -> None:
    found = samples(Metrics(), Figures(aggregators=None))
    assert not any(name.startswith("federation_aggregators") for name, _ in found)


def test_runs_and_rounds_are_counted_as_they_go() -> None:
    metrics = Metrics(["north"])
    run = RUN
    answer = RunEvent(EventKind.REPLY, at=104, phase="federated", round=1, node_id=7, seconds=1.5)
    events = [sent(1, 103), answer, sent(2, 105), reply(2, 106), RunEvent(EventKind.RESUMED, at=107)]
    metrics.run_moved(run, events)
    metrics.run_ended(run)
    found = samples(metrics)
    assert value(found, "rounds_finished_total") == 1
    assert value(found, "round_seconds_sum") == 1.0
    assert value(found, "run_queue_seconds_sum") == 3.0
    assert value(found, "run_resumptions_total") == 1
    assert value(found, "runs_ended_total", status="running") == 1
    assert value(found, "site_answer_seconds_count", site="other") == 2


def test_a_sites_answers_are_its_own_whatever_its_dataset_is_called() -> None:
    metrics = Metrics(["north"])
    run = RUN.__class__(**{**{name: getattr(RUN, name) for name in RUN.__slots__}, "nodes": {"7": "north/slides"}})
    metrics.run_moved(run, [RunEvent(EventKind.REPLY, at=1, node_id=7, seconds=2.0)])
    assert value(samples(metrics), "site_answer_seconds_sum", site="north") == 2.0


def test_times_that_the_owners_code_has_made_up_do_no_harm() -> None:
    metrics = Metrics(["north"])
    for seconds in (math.nan, math.inf, -5.0, 1e300):
        metrics.run_moved(RUN, [RunEvent(EventKind.REPLY, at=1, seconds=seconds)])
    assert value(samples(metrics), "site_answer_seconds_sum", site="other") == 30 * 86400


def test_requests_statements_tasks_and_clients() -> None:
    metrics = Metrics(["north"])
    metrics.request("api/projects/{project_id}", "GET", 200, 0.25)
    metrics.fleet_request("bulk-pull", 200, 0.5)
    metrics.statement(0.002)
    metrics.loop_lag(0.01)
    metrics.client_lost("north")
    metrics.client_lost("gone")
    metrics.task_restarted("reconciler")
    found = samples(metrics)
    labels = {"route": "api/projects/{project_id}", "method": "GET", "status": "200"}
    assert value(found, "http_request_seconds_sum", **labels) == 0.25
    assert value(found, "fleet_requests_total", operation="bulk-pull", status="200") == 1
    assert value(found, "fleet_request_seconds_sum", operation="bulk-pull") == 0.5
    assert value(found, "database_seconds_count") == 1
    assert value(found, "event_loop_lag_seconds_count") == 1
    assert value(found, "clients_lost_total", site="north") == 1
    assert value(found, "clients_lost_total", site="other") == 1
    assert value(found, "background_restarts_total", task="reconciler") == 1


def test_two_services_of_one_process_count_apart() -> None:
    one, other = Metrics(), Metrics()
    one.loop_lag(1.0)
    assert value(samples(other), "event_loop_lag_seconds_count") == 0


def test_the_content_type_is_the_librarys() -> None:
    assert CONTENT_TYPE == CONTENT_TYPE_LATEST


def test_the_documentation_lists_what_is_exported() -> None:
    """Name, kind and labels of every metric, as the table in docs/operating.md has them."""
    metrics = Metrics(["north"])
    metrics.request("r", "GET", 200, 0.1)
    metrics.fleet_request("bulk-pull", 200, 0.1)
    metrics.task_restarted("reconciler")
    metrics.run_moved(RUN, [reply(1, 1)])
    metrics.run_ended(RUN)
    exported = {}
    for family in text_string_to_metric_families(metrics.text(FIGURES).decode()):
        if family.name.endswith("_created"):
            continue
        labels = sorted({name for one in family.samples for name in one.labels} - {"le"})
        name = f"{family.name}_total" if family.type == "counter" else family.name
        exported[name] = (family.type, labels)
    row = re.compile(r"^\| `(federation_\w+)` \| (\w+) \|([^|]*)\|", re.MULTILINE)
    text = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
    listed = {name: (kind, sorted(re.findall(r"`(\w+)`", labels))) for name, kind, labels in row.findall(text)}
    assert listed == exported
