"""Servers as services of a Swarm: what the manager is asked for, and what its answers mean, with a manager that is not
there. `tests/system/test_swarm_site.py` asks a real one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from docker.errors import APIError, NotFound
from jupyterhub.spawner import SpawnException

from spawner import swarm_site_spawner
from spawner.deployment import Deployment
from spawner.engines import EngineUnavailable
from spawner.sites import TLS_FILES
from spawner.swarm_site_spawner import OLDEST_API, SwarmSiteSpawner

NODE = {
    "ID": "node-1",
    "Description": {"Hostname": "anna-1"},
    "Spec": {"Labels": {"site": "st-anna"}, "Availability": "active"},
    "Status": {"State": "ready", "Addr": "10.0.0.7"},
}
RUNNING = {
    "State": "running",
    "Message": "started",
    "PortStatus": {"Ports": [{"TargetPort": 8888, "PublishedPort": 32768, "PublishMode": "host"}]},
}


class Manager:
    """Answers as a Swarm's manager does.

    Attributes:
        statuses: what each question after the task gets to hear in turn; the last one stays.
        desired: the state that the Swarm wants the task to have.
        refusal: what every question about the service gets in place of an answer.
    """

    api_version = OLDEST_API

    def __init__(self) -> None:
        self.nodes: list[dict[str, Any]] = [NODE]
        self.statuses: list[dict[str, Any]] = [RUNNING]
        self.desired = "running"
        self.services: dict[str, dict[str, Any]] = {}
        self.refusal: APIError | None = None

    async def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        answer: Callable[..., Any] = getattr(self, f"_{method}")
        return answer(*args, **kwargs)

    def _nodes(self) -> list[dict[str, Any]]:
        return self.nodes

    def _inspect_node(self, name: str) -> dict[str, Any]:
        return next(node for node in self.nodes if node["ID"] == name)

    def _create_service(self, task: dict[str, Any], **more: Any) -> dict[str, str]:
        self.services["service-1"] = {"ID": "service-1", "task": task, **more}
        return {"ID": "service-1"}

    def _inspect_service(self, name: str) -> dict[str, Any]:
        if self.refusal is not None:
            raise self.refusal
        for service in self.services.values():
            if name in (service["ID"], service["name"]):
                return service
        raise not_found()

    def _remove_service(self, name: str) -> None:
        if self.services.pop(name, None) is None:
            raise not_found()

    def _tasks(self, filters: dict[str, str]) -> list[dict[str, Any]]:
        if "service" in filters and filters["service"] not in self.services:
            raise not_found()
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        return [{"ID": "task-1", "NodeID": "node-1", "DesiredState": self.desired, "Status": status}]


def not_found() -> NotFound:
    return NotFound("404", explanation="service not found")


def server_error(text: str) -> APIError:
    response = requests.Response()
    response.status_code = 503
    return APIError(text, response=response, explanation=text)


class Spawner(SwarmSiteSpawner):
    """The spawner with that manager, and without a Hub around it."""

    manager: Manager

    @property
    def client(self) -> Any:
        return self.manager

    def docker(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self.manager.call(method, *args, **kwargs)

    def get_env(self) -> dict[str, str]:
        return {"FEDERATOR_SITE": self.site_slug}


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    for name in TLS_FILES:
        (tmp_path / name).touch()
    tables = {
        "hub": {
            "bind_url": "http://0.0.0.0:8000",
            "public_url": "https://hub.example",
            "data_dir": "state",
            "admin_contact": "Robin",
        },
        "sso": {"preset": "cilogon", "client_id": "c", "institutions": {"urn:mace:a": "st-anna"}},
        "aggregators": {"kind": "docker", "image": "aggregator@sha256:12"},
        "sites": {
            "st-anna": {
                "kind": "swarm",
                "title": "St. Anna Hospital",
                "contact": "Ingrid",
                "engine": "tcp://manager.example:2376",
                "tls_dir": ".",
                "image": "notebook@sha256:12",
                "hub_address": "192.0.2.1",
                "cpus": 1.5,
                "memory": "2GiB",
                "datasets": {"biopsies": {"title": "Biopsies", "path": "/srv/biopsies"}},
            }
        },
    }
    return Deployment.model_validate(tables, context={"folder": tmp_path})


@pytest.fixture
def spawner(deployment: Deployment) -> Spawner:
    return spawner_of("amara", deployment)


def spawner_of(username: str, deployment: Deployment, server: str = "") -> Spawner:
    user = SimpleNamespace(name=username, groups=[SimpleNamespace(name="site-st-anna")])
    orm_spawner = SimpleNamespace(name=server, server=None)
    spawner = Spawner(deployment=deployment, user=user, orm_spawner=orm_spawner)
    spawner.manager = Manager()
    spawner.settle(spawner.placement().slug, deployment.sites["st-anna"])  # type: ignore[arg-type]
    return spawner


async def started(spawner: Spawner) -> Spawner:
    spawner.site_slug = "st-anna"
    spawner.object_id = (await spawner.create_object())["ID"]
    return spawner


# --- what the manager is asked for


async def test_the_service_is_placed_by_the_site_of_the_persons_group(spawner: Spawner) -> None:
    await started(spawner)
    (service,) = spawner.manager.services.values()
    task = service["task"]
    assert task["Placement"]["Constraints"] == ["node.labels.site==st-anna"]
    assert task["RestartPolicy"]["Condition"] == "none"
    assert task["Networks"] == [{"Target": "federation"}]
    (port,) = service["endpoint_spec"]["Ports"]
    assert (port["TargetPort"], port["PublishedPort"], port["PublishMode"]) == (8888, None, "host")
    assert await spawner.get_ip_and_port() == ("10.0.0.7", 32768)


async def test_newer_managers_are_told_to_lock_privileges(spawner: Spawner) -> None:
    """Docker 20.10 passes it over: tests/system/test_swarm_site.py cannot see it."""
    await started(spawner)
    (service,) = spawner.manager.services.values()
    assert service["task"]["ContainerSpec"]["Privileges"] == {"NoNewPrivileges": True}


LONG = "a.very.long.address.of.somebody.at.the.department.of.pathology@st-anna.example"


@pytest.mark.parametrize("server", ["", "a second server with a name that nobody would want to type twice"])
def test_a_services_name_is_short_enough_and_its_persons_own(deployment: Deployment, server: str) -> None:
    names = {spawner_of(person, deployment, server).object_name for person in (LONG, f"b{LONG}", "amara", "Amara")}
    assert len(names) == 4
    assert max(map(len, names)) <= 63


# --- where it cannot be placed


def changed(*, spec: dict[str, Any] | None = None, status: dict[str, Any] | None = None) -> dict[str, Any]:
    return {**NODE, "Spec": {**NODE["Spec"], **(spec or {})}, "Status": {**NODE["Status"], **(status or {})}}  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([], "no machine of the Swarm carries its label; `docker node update --label-add site=st-anna NODE` sets it"),
        ([changed(spec={"Labels": None})], "no machine of the Swarm carries its label"),
        ([changed(spec={"Labels": {"site": "vall-verde"}})], "no machine of the Swarm carries its label"),
        ([NODE, NODE], "more than one machine carries the label site=st-anna (anna-1, anna-1), and your files"),
        ([changed(status={"State": "down"})], "its machine anna-1 is down"),
        ([changed(spec={"Availability": "drain"})], "its machine anna-1 is set to take no servers"),
    ],
)
async def test_what_the_scheduler_would_keep_waiting_is_told(
    spawner: Spawner, nodes: list[dict[str, Any]], expected: str
) -> None:
    spawner.manager.nodes = nodes
    with pytest.raises(SpawnException) as refused:
        await started(spawner)
    assert f"St. Anna Hospital could not start your server: {expected}" in str(refused.value)
    assert str(refused.value).endswith("Ask Robin.")
    assert spawner.manager.services == {}


async def test_a_manager_that_would_leave_out_limits_is_refused(spawner: Spawner) -> None:
    spawner.manager.api_version = "1.40"
    with pytest.raises(SpawnException, match=r"older than Docker 20\.10 and would not isolate it"):
        await started(spawner)


# --- what becomes of its task


async def test_a_start_waits_for_the_task(spawner: Spawner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swarm_site_spawner, "TASK_CHECK_INTERVAL_S", 0)
    await started(spawner)
    on_its_way = [{"State": state, "Message": ""} for state in ("new", "pending", "assigned", "preparing", "starting")]
    spawner.manager.statuses = [*on_its_way, RUNNING]
    await spawner.start_object()
    assert spawner.manager.statuses == [RUNNING]


@pytest.mark.parametrize(
    "status",
    [
        {"State": "pending", "Message": "pending task scheduling", "Err": "no suitable node (insufficient resources)"},
        {"State": "rejected", "Message": "preparing", "Err": "No such image: notebook@sha256:12"},
        {"State": "complete", "Message": "finished"},
    ],
)
async def test_a_task_that_will_not_run_ends_the_start(spawner: Spawner, status: dict[str, Any]) -> None:
    await started(spawner)
    spawner.manager.statuses = [status]
    with pytest.raises(APIError) as refused:
        await spawner.start_object()
    assert refused.value.explanation == status.get("Err", status["Message"])


async def test_a_node_that_does_not_answer_the_swarm_is_away(spawner: Spawner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swarm_site_spawner, "TAKE_PATIENCE_S", 0)
    await started(spawner)
    spawner.manager.statuses = [{"State": "assigned", "Message": "scheduler assigned task to node"}]
    with pytest.raises(EngineUnavailable, match="its machine did not take the server within 0 s"):
        await spawner.start_object()
    await spawner.stop()  # as the Hub does then; a task that no node took has no container to wait for
    assert spawner.manager.services == {}


@pytest.mark.parametrize(
    "state", ["new", "pending", "assigned", "accepted", "preparing", "ready", "starting", "running"]
)
async def test_a_server_on_its_way_is_not_ended(spawner: Spawner, state: str) -> None:
    await started(spawner)
    spawner.manager.statuses = [{"State": state, "Message": ""}]
    assert await spawner.poll() is None
    assert spawner.manager.services


@pytest.mark.parametrize(
    ("desired", "status", "expected"),
    [
        ("shutdown", {"State": "failed", "Err": "task: non-zero exit (137)"}, "failed: task: non-zero exit (137)"),
        ("shutdown", {"State": "complete", "Message": "finished"}, "complete: finished"),
        ("shutdown", RUNNING, "running: started"),  # on a node that went away
        ("running", {"State": "rejected", "Err": "No such image"}, "rejected: No such image"),
    ],
)
async def test_a_server_that_ended_is_seen_and_removed(
    spawner: Spawner, monkeypatch: pytest.MonkeyPatch, desired: str, status: dict[str, Any], expected: str
) -> None:
    monkeypatch.setattr(swarm_site_spawner, "STOP_PATIENCE_S", 0)
    await started(spawner)
    spawner.manager.desired = desired
    spawner.manager.statuses = [status]
    assert await spawner.poll() == expected
    assert spawner.manager.services == {}
    assert await spawner.poll() == 0


async def test_where_the_manager_cannot_say_a_server_runs_on(spawner: Spawner) -> None:
    await started(spawner)
    spawner.manager.refusal = server_error("The swarm does not have a leader.")
    with pytest.raises(EngineUnavailable, match="does not have a leader"):
        await spawner.get_object()
    assert await spawner.poll() is None


async def test_a_hub_that_comes_back_finds_the_service_by_name(spawner: Spawner, deployment: Deployment) -> None:
    await started(spawner)
    after = spawner_of("amara", deployment)
    after.manager = spawner.manager
    after.load_state(spawner.get_state())
    assert await after.poll() is None
    assert after.site_slug == "st-anna"


async def test_a_stop_waits_for_the_task_to_end(spawner: Spawner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swarm_site_spawner, "TASK_CHECK_INTERVAL_S", 0)
    await started(spawner)
    ended = {"State": "shutdown", "Message": "shutdown"}
    spawner.manager.statuses = [RUNNING, RUNNING, RUNNING, ended]
    await spawner.stop()
    assert spawner.manager.statuses == [ended]
    assert (spawner.manager.services, spawner.object_id) == ({}, "")


async def test_a_stop_does_not_wait_for_ever(
    spawner: Spawner, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(swarm_site_spawner, "STOP_PATIENCE_S", 0)
    await started(spawner)
    with caplog.at_level(logging.WARNING):
        await spawner.stop()
    assert "its container has not ended yet" in caplog.text
    assert spawner.manager.services == {}


async def test_a_service_that_is_gone_is_no_fault_of_a_stop(spawner: Spawner) -> None:
    await started(spawner)
    spawner.manager.services.clear()
    await spawner.stop()
    assert spawner.object_id == ""
