"""Starts people's servers as services of a Docker Swarm, on the node that carries their site's label.

For a consortium that runs one Swarm: the Hub speaks to a manager only, and no site's own engine is open to it. A server
may do what a Docker site's may; `docs/swarm.md` says what a manager cannot ask of a node, and who sees to that instead.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

from docker.errors import APIError, NotFound
from docker.types.services import (
    ContainerSpec,
    DNSConfig,
    DriverConfig,
    EndpointSpec,
    Mount,
    Resources,
    RestartPolicy,
    TaskTemplate,
)
from docker.types.services import Placement as NodePlacement
from docker.utils import version_lt
from dockerspawner import SwarmSpawner
from jupyterhub.slugs import safe_slug
from traitlets import default

from spawner.confinement import CONFINED, SERVER_USER
from spawner.container_site_spawner import HOME, LOG_LIMIT, PIDS_LIMIT, ContainerSiteSpawner
from spawner.engines import EngineUnavailable
from spawner.labels import SITE_LABEL, USER_LABEL
from spawner.site_spawner import StartRefused
from spawner.sites import ContainerSite

NODE_LABEL = "site"
"""`docker node update --label-add site=<slug> NODE` makes a node the site's."""

OLDEST_API = "1.41"
"""Docker 20.10. An older manager leaves out what it does not know, without a word: capabilities and the pids limit."""

TASK_CHECK_INTERVAL_S = 0.2
TAKE_PATIENCE_S = 30.0
"""A node takes a task at once, whatever it does with it then. The Swarm takes longer to miss one that is away."""

STOP_PATIENCE_S = 30.0
"""A container is killed when it has not ended after 10 s; one on a node that is away never ends."""

_NOT_TAKEN = frozenset({"new", "pending", "assigned"})
_NOT_RUNNING = _NOT_TAKEN | {"accepted", "preparing", "ready", "starting"}
_ENDED = frozenset({"complete", "shutdown", "failed", "rejected", "orphaned", "remove"})
_NAME_PART_LENGTH = 24  # a service's name has 63 characters at most: prefix, person, and name of their server


class ServiceSpawner(SwarmSpawner):
    """A server as a service with one task that is never started again. What SwarmSpawner knows, told by the task."""

    async def poll(self) -> Any:
        """None while the task runs or is on its way to; else how it ended."""
        if await self.get_object() is None:
            return 0
        for task in await self._tasks(service=self.object_id):
            # A task on a node that went away keeps the state that it was last seen in, and is not wanted any more.
            if task["DesiredState"] != "running" or task["Status"]["State"] in _ENDED:
                return f"{task['Status']['State']}: {_said(task)}"
        return None

    async def start_object(self) -> None:
        """Return when the task runs; called by DockerSpawner's `start`.

        Raises:
            APIError: no node may or will run it, as an engine refuses a container; it says why.
            EngineUnavailable: the node does not answer the Swarm.
        """
        try:
            async with asyncio.timeout(TAKE_PATIENCE_S):
                await self._leaves(_NOT_TAKEN)
        except TimeoutError:
            raise EngineUnavailable(f"its machine did not take the server within {TAKE_PATIENCE_S:.0f} s") from None
        await self._leaves(_NOT_RUNNING)

    async def _leaves(self, states: frozenset[str]) -> None:
        while True:
            if await self._state() not in states:
                return
            await asyncio.sleep(TASK_CHECK_INTERVAL_S)

    async def _state(self) -> str:
        """The task's state on its way to "running"; raises APIError where it will not get there."""
        for task in await self._tasks(service=self.object_id):
            if task["Status"]["State"] in _ENDED or task["Status"].get("Err"):
                raise APIError(_said(task), explanation=_said(task))
            return str(task["Status"]["State"])
        return "new"

    async def get_ip_and_port(self) -> tuple[str, int]:
        """Address of the node that runs the task, and the port there."""
        (task,) = await self._tasks(service=self.object_id)
        node = await self.docker("inspect_node", task["NodeID"])
        return node["Status"]["Addr"], task["Status"]["PortStatus"]["Ports"][0]["PublishedPort"]

    async def remove_object(self) -> None:
        """Remove the service and wait for its task to end: the person's next server has the same files."""
        with contextlib.suppress(NotFound):  # it is gone already
            tasks = await self._tasks(service=self.object_id)
            await self.docker("remove_service", self.object_id)
            for task in tasks:
                if task["Status"]["State"] not in _NOT_TAKEN:
                    await self._task_ends(task["ID"])

    async def _task_ends(self, task_id: str) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_PATIENCE_S):
                while True:
                    if all(task["Status"]["State"] in _ENDED for task in await self._tasks(id=task_id)):
                        return
                    await asyncio.sleep(TASK_CHECK_INTERVAL_S)
        self.log.warning("Service %s is removed; its container has not ended yet", self.object_name)

    async def _tasks(self, **filters: str) -> list[dict[str, Any]]:
        tasks: list[dict[str, Any]] = await self.docker("tasks", filters=filters)
        return tasks


class SwarmSiteSpawner(ContainerSiteSpawner, ServiceSpawner):
    """A server as a service with one task, placed by its site's node label."""

    @default("cmd")
    def _cmd_default(self) -> list[str]:
        # Said here: the manager, which would be asked for the image's own, may not have the image.
        return ["jupyterhub-singleuser"]

    @default("object_name")
    def _object_name_default(self) -> str:
        names = [self.user.name, self.name] if self.name else [self.user.name]
        return f"{self.prefix}-" + "--".join(safe_slug(name, max_length=_NAME_PART_LENGTH) for name in names)

    async def create_object(self) -> Any:
        """Make the service; called by DockerSpawner's `start`."""
        site = self._site
        assert site is not None  # noqa: S101 - `start` set it
        self._check_version(site)
        self._check_nodes(site, await self.docker("nodes"))
        labels = self.server_labels(self.site_slug)
        container = ContainerSpec(
            site.image,
            args=await self.get_command(),
            env=self.get_env(),
            user=SERVER_USER,
            labels=labels,
            mounts=[*self._own_mounts(site), *self.dataset_mounts(site)],
            read_only=True,
            init=True,
            cap_drop=CONFINED["cap_drop"],
            privileges={"NoNewPrivileges": True},  # from API 1.44; older engines do not know it and pass it over
            dns_config=DNSConfig(CONFINED["dns"], options=CONFINED["dns_opt"]),
            hosts=self.hub_hosts(site),
        )
        resources = Resources(cpu_limit=int(site.cpus * 1e9), mem_limit=int(site.memory))
        resources["Limits"]["Pids"] = PIDS_LIMIT  # docker-py has no parameter for it
        task = TaskTemplate(
            container,
            resources=resources,
            # A server that ended is the Hub's to start again: its token is not valid any more.
            restart_policy=RestartPolicy("none"),
            placement=NodePlacement([f"node.labels.{NODE_LABEL}=={self.site_slug}"]),
            networks=[site.network],
            log_driver=DriverConfig("json-file", LOG_LIMIT),
        )
        # The node's own port: the Swarm's mesh would open it on every node, and needs IPVS.
        ports = EndpointSpec(ports={None: (self.port, "tcp", "host")})
        return await self.docker("create_service", task, name=self.object_name, labels=labels, endpoint_spec=ports)

    def _own_mounts(self, site: ContainerSite) -> list[Mount]:
        labels = {SITE_LABEL: self.site_slug, USER_LABEL: self.user.name}
        return [
            Mount("/tmp", None, type="tmpfs", tmpfs_size=site.memory // 4, tmpfs_mode=0o1777),  # noqa: S108
            # PyTorch's data loaders hand batches over in it; a service has no parameter for its size.
            Mount("/dev/shm", None, type="tmpfs", tmpfs_size=site.memory // 2, tmpfs_mode=0o1777),  # noqa: S108
            Mount(HOME, self.home_volume, type="volume", labels=labels),
        ]

    def _check_version(self, site: ContainerSite) -> None:
        if version_lt(self.client.api_version, OLDEST_API):
            raise self._not_placed(site, "the Swarm's manager is older than Docker 20.10 and would not isolate it")

    def _check_nodes(self, site: ContainerSite, nodes: Sequence[dict[str, Any]]) -> None:
        """Refuse what the Swarm's scheduler would keep waiting, or do wrong. Raises StartRefused."""
        label = f"{NODE_LABEL}={self.site_slug}"
        own = [node for node in nodes if (node["Spec"].get("Labels") or {}).get(NODE_LABEL) == self.site_slug]
        names = ", ".join(node["Description"]["Hostname"] for node in own)
        if not own:
            raise self._not_placed(
                site,
                f"no machine of the Swarm carries its label; `docker node update --label-add {label} NODE` sets it",
            )
        if len(own) > 1:
            raise self._not_placed(
                site,
                f"more than one machine carries the label {label} ({names}), and your files are on one of them; "
                f"`docker node update --label-rm {NODE_LABEL} NODE` takes it away",
            )
        if own[0]["Status"]["State"] != "ready":
            raise self._not_placed(site, f"its machine {names} is {own[0]['Status']['State']}")
        if own[0]["Spec"]["Availability"] != "active":
            raise self._not_placed(
                site,
                f"its machine {names} is set to take no servers; `docker node update --availability active {names}` "
                "ends that",
            )

    def _not_placed(self, site: ContainerSite, why: str) -> StartRefused:
        self.log.error("Site %s: %s is not placed: %s", self.site_slug, self._log_name, why)
        return StartRefused(
            f"{site.title} could not start your server: {why}. Ask {self.deployment.hub.admin_contact}.",
            reason="no-node",
            status_code=503,
        )


def _said(task: dict[str, Any]) -> str:
    status = task["Status"]
    return str(status.get("Err") or status.get("Message") or status["State"])
