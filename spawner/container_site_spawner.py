"""Starts people's servers as containers, at the engine of their own site.

What a server's container may do is written down here, for `images/README.md` to explain to a site's auditor: it runs as
an ordinary user, reads its own site's data and writes none, keeps one volume, and has no way out but the Hub.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from docker.api.client import APIClient
from docker.errors import APIError, NotFound
from docker.types.containers import DeviceRequest, LogConfig
from docker.types.services import Mount
from docker.utils import parse_repository_tag
from dockerspawner import DockerSpawner
from jupyterhub.slugs import safe_slug
from tornado.web import HTTPError
from traitlets import default

from spawner.confinement import CONFINED, SERVER_USER
from spawner.deployment import hub_address, hub_origin
from spawner.engine_refusals import refusal_of
from spawner.engines import REST_S, Engine, EngineUnavailable, engine_of
from spawner.forgotten import Forgotten
from spawner.gpu_leases import GpusTaken, Lease, leases_of
from spawner.injection import environment, server_arguments
from spawner.labels import GPU_LABEL, HUB_LABEL, SERVER_LABEL, SITE_LABEL, USER_LABEL
from spawner.site_spawner import SiteSpawner, StartRefused, connects
from spawner.sites import ContainerSite, DockerSite, SiteDataset

HOME = "/home/jovyan"
DATA = "/data"
PIDS_LIMIT = 4096
START_TIMEOUT_S = 300
"""An image that is not at the site yet is fetched within it."""

LISTEN_TIMEOUT_S = 90.0
LOG_LIMIT = {"max-size": "10m", "max-file": "2"}

GPU_OPTION = "gpu"
GPU_CHOICE = """
<fieldset class="text-start">
  <legend class="h5">GPU</legend>
  <div class="form-check">
    <input class="form-check-input" type="radio" name="gpu" id="gpu-yes" value="yes" checked>
    <label class="form-check-label" for="gpu-yes">With a GPU of the site, yours until you stop your server.</label>
  </div>
  <div class="form-check">
    <input class="form-check-input" type="radio" name="gpu" id="gpu-no" value="no">
    <label class="form-check-label" for="gpu-no">Without one: starts even if all are taken.</label>
  </div>
</fieldset>
"""


class ContainerSiteSpawner(SiteSpawner, DockerSpawner):
    """What Docker and Swarm sites share: the site's engine, its settings, and its failures in words.

    Everything about a server comes from the site's entry in the deployment
    file; of what a person sends with a start, only the choice of a GPU counts.
    """

    ask_again_s = REST_S
    """How long to leave an engine alone that did not answer, in seconds."""

    # Stopped means removed: what a person keeps lies in their volume.
    remove = True

    @default("args")
    def _args_default(self) -> list[str]:
        return server_arguments(runs_as_root=False)

    @default("notebook_dir")
    def _notebook_dir_default(self) -> str:
        return HOME

    @default("prefix")
    def _prefix_default(self) -> str:
        return "federation"

    @default("start_timeout")
    def _start_timeout_default(self) -> int:
        waits = [site.gpu_wait_s for site in self.deployment.sites.values() if isinstance(site, DockerSite)]
        return START_TIMEOUT_S + math.ceil(max(waits, default=0.0))

    @default("options_form")
    def _options_form_default(self) -> Any:
        return lambda spawner: spawner.gpu_choice()

    @default("options_from_form")
    def _options_from_form_default(self) -> Any:
        return lambda form: {GPU_OPTION: form.get(GPU_OPTION, ["yes"])[0] != "no"}

    def gpu_choice(self) -> str:
        """The form before a start; empty where there is nothing to choose, so that the Hub shows none."""
        try:
            site = self.placement().site
        except StartRefused:  # told when the server is started
            return ""
        return GPU_CHOICE if isinstance(site, DockerSite) and site.gpus else ""

    # --- the Hub's calls

    async def start(self) -> Any:
        """Start the person's server at their site; return its address once it listens.

        Raises:
            StartRefused: no site, an option that there is not, no free GPU, or whatever the site's engine refused;
                the page shows which site, what happened and what to do.
        """
        placement = self.placement()
        site = _container(placement.site)
        self.site_slug = placement.slug
        self._told = []
        self._check_options(site)
        self.settle(placement.slug, site)
        self._tell(f"Asking the engine of {site.title} for a server.")
        try:
            await self._engine.connect()
            await self._forgotten().remove()
            await self._check_datasets(site)
            host, port = await super().start()
            self._tell("The container runs; waiting for the notebook server in it.")
            await self.listens(host, port, LISTEN_TIMEOUT_S)
        except EngineUnavailable as unavailable:
            raise self._site_away(site, unavailable) from unavailable
        except GpusTaken as taken:
            raise _no_gpu(site, taken) from taken
        except APIError as error:
            await self._discard()
            raise self._site_refused(site, error) from error
        return host, port

    async def poll(self) -> Any:
        """None while the server runs. Where the engine does not answer, a server that ran is taken to run on.

        A Hub that was started anew asks the server itself next, and ends and forgets one that it does not reach: it is
        answered once the engine or the server is reached. What has ended is removed, and why it ended is logged.
        """
        while True:
            if not self.object_id and self.orm_spawner.server is None:
                return 0
            if self._site is None:  # not in the catalogue any more: nothing of it is ours to look after
                return 0
            try:
                status = await super().poll()
                break
            except EngineUnavailable as unavailable:
                self.log.warning("Site %s: %s; %s is taken to run on", self.site_slug, unavailable, self._log_name)
            if not self._check_pending or await connects(self.server.ip, self.server.port):
                return None
            await asyncio.sleep(self.ask_again_s)
        if status is not None and self.object_id:
            self.log.warning("Site %s: %s ended: %s", self.site_slug, self._log_name, status)
            await self._discard()
        return status

    async def pull_image(self, image: str) -> None:
        """Fetch the image where the site does not have it yet; called by DockerSpawner's `start`.

        DockerSpawner takes a digest apart like a tag, and asks for an image that nobody has.

        Raises:
            APIError: the image is not there, and its registry did not give it.
        """
        if self.pull_policy == "skip":  # a Swarm's node does it
            return
        try:
            await self.docker("inspect_image", image)
        except NotFound:
            self._tell("Fetching the notebook image: the first start with a new one takes minutes.")
            repository, tag = parse_repository_tag(image)
            await self._engine.pull(repository, tag)
            await self.docker("inspect_image", image)  # what goes wrong halfway is no error to docker-py

    async def get_object(self) -> Any:
        """The container or service, as `docker inspect` shows it; None where there is none. Called by DockerSpawner.

        Raises:
            EngineUnavailable: the engine cannot say. DockerSpawner would take the server for gone.
        """
        try:
            found = await self.docker(f"inspect_{self.object_type}", self.object_name)
        except NotFound:
            self.object_id = ""
            return None
        except APIError as error:
            if error.is_server_error():
                raise EngineUnavailable(str(error.explanation)) from error
            raise
        self.object_id = found[self.object_id_key]
        return found

    async def stop(self, now: bool = False) -> None:
        """Stop and remove the server.

        Raises:
            HTTPError: the engine does not answer. The Hub forgets the server all the same; it is removed later.
        """
        site = self._site
        if site is None:
            self.clear_state()
            return
        try:
            await super().stop(now)
        except EngineUnavailable as unavailable:
            self._forgotten().remove_once_answered(self.ask_again_s)
            raise HTTPError(
                503, f"{_away(site, unavailable)} Your server may run on; it is stopped when the engine answers again."
            ) from None

    async def progress(self) -> AsyncIterator[dict[str, Any]]:
        """What `start` is doing, for the Hub's page that waits for it."""
        shown = 0
        while True:
            for message in self._told[shown:]:
                shown += 1
                yield {"progress": min(90, 20 * shown), "message": message}
            await asyncio.sleep(0.5)

    def clear_state(self) -> None:
        super().clear_state()
        self.object_id = ""

    # --- the site's engine, in place of DockerSpawner's one for all

    @property
    def _site(self) -> ContainerSite | None:
        """Where the server runs, or ran when the Hub last knew; else where its person belongs now."""
        if not self.site_slug:
            try:
                self.site_slug = self.placement().slug
            except StartRefused:
                return None
        site = self.deployment.sites.get(self.site_slug)
        return site if isinstance(site, ContainerSite) else None

    @property
    def _engine(self) -> Engine:
        site = self._site
        if site is None:
            raise EngineUnavailable("the site is not part of this Hub any more")
        return engine_of(site)

    @property
    def client(self) -> APIClient:
        return self._engine.client

    def docker(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._engine.call(method, *args, **kwargs)

    # --- what a server gets

    def _check_options(self, site: ContainerSite) -> None:
        """Refuse what nobody may choose, and tell what is not given. Raises StartRefused."""
        unknown = sorted(set(self.user_options) - {GPU_OPTION})
        if unknown:
            raise StartRefused(
                f"A server has no option {', '.join(unknown)}: image, site and data are set by the Hub's "
                f"administrator. Start it without.",
                reason="option",
                status_code=400,
            )
        if self.user_options.get(GPU_OPTION) and not self._has_gpus(site):
            # The Hub keeps what was chosen last, at another site or before, and shows no form to choose anew.
            self._tell(f"{site.title} has no GPUs for notebook servers; yours starts without one.")

    @property
    def _wants_gpu(self) -> bool:
        return self.user_options.get(GPU_OPTION, True) is not False

    @staticmethod
    def _has_gpus(site: ContainerSite) -> bool:
        return isinstance(site, DockerSite) and bool(site.gpus)

    def settle(self, slug: str, site: ContainerSite) -> None:
        """Take the server's settings from its site's entry; called at each start, so a changed entry counts."""
        self.image = site.image
        self.network_name = site.network
        self.cpu_limit = site.cpus
        self.mem_limit = int(site.memory)
        self.hub_connect_url = hub_origin(self.deployment.hub, site)
        self.extra_create_kwargs = {"user": SERVER_USER, "labels": self.server_labels(slug)}

    def server_labels(self, slug: str) -> dict[str, str]:
        """Labels of the server's container."""
        return {
            HUB_LABEL: self.deployment.hub.origin,
            SITE_LABEL: slug,
            USER_LABEL: self.user.name,
            SERVER_LABEL: self.name,
        }

    def _forgotten(self) -> Forgotten:
        return Forgotten(self._engine, self.deployment.hub.origin, self.site_slug, self.object_type, self.user.db)

    @property
    def home_volume(self) -> str:
        """The person's volume at the site's engine. Two names never share one."""
        return f"federation-home-{safe_slug(self.user.name)}"

    def get_env(self) -> dict[str, str]:
        """The server's whole environment; called by DockerSpawner when it makes the container."""
        site = _container(self._site)
        datasets = {name: f"{DATA}/{name}" for name in site.datasets}
        given = {
            **super().get_env(),
            **environment(hub_origin(self.deployment.hub, site), self.site_slug, datasets),
            # Numerical libraries count the machine's cores, not those that the container may use.
            "OMP_NUM_THREADS": str(math.ceil(site.cpus)),
        }
        if not self._gets_gpu(site):
            # An image made for GPUs asks for all of them, and an engine with NVIDIA's runtime as its default obeys.
            given["NVIDIA_VISIBLE_DEVICES"] = "void"
        return given

    def _gets_gpu(self, site: ContainerSite) -> bool:
        return self._wants_gpu and self._has_gpus(site)

    def hub_hosts(self, site: ContainerSite) -> dict[str, str]:
        """Names that a server can resolve: the Hub's, and no other."""
        host = urlsplit(hub_origin(self.deployment.hub, site)).hostname or ""
        address = hub_address(self.deployment.hub, site)
        return {} if address is None or _is_address(host) else {host: address}

    def dataset_mounts(self, site: ContainerSite) -> list[Mount]:
        """The site's data, read-only."""
        return [dataset_mount(name, dataset) for name, dataset in site.datasets.items()]

    async def _check_datasets(self, site: ContainerSite) -> None:
        """Docker makes a volume that is not there; an empty one in place of data would mislead. Raises NotFound."""
        for dataset in site.datasets.values():
            if dataset.volume is not None:
                await self.docker("inspect_volume", dataset.volume)

    # --- telling people

    _told: Sequence[str] = ()

    def _tell(self, message: str) -> None:
        if not self._told or self._told[-1] != message:
            self._told = [*self._told, message]

    def _site_away(self, site: ContainerSite, unavailable: EngineUnavailable) -> StartRefused:
        self.log.error("Site %s: the engine at %s: %s", self.site_slug, site.engine, unavailable)
        return StartRefused(
            f"{_away(site, unavailable)} Your files there are not touched. Try again later; if it stays so, "
            f"ask {site.contact}.",
            reason="site-away",
            status_code=503,
        )

    def _site_refused(self, site: ContainerSite, error: APIError) -> StartRefused:
        self.log.error("Site %s: the engine refused %s: %s", self.site_slug, self._log_name, error.explanation)
        refusal = refusal_of(error)
        return StartRefused(
            f"{site.title} could not start your server: {refusal.text}. Ask {site.contact}.",
            reason=refusal.reason,
            status_code=500,
        )

    async def _discard(self) -> None:
        """Remove what was made of a server that could not be started."""
        try:
            if await self.get_object() is not None:
                await self.remove_object()
        except (EngineUnavailable, APIError) as error:
            self.log.warning("Site %s: what was made of %s stays: %s", self.site_slug, self._log_name, error)
        self.object_id = ""


class DockerSiteSpawner(ContainerSiteSpawner):
    """A server as a container of its site's own engine."""

    def settle(self, slug: str, site: ContainerSite) -> None:
        super().settle(slug, site)
        site = _docker(site)
        self.use_internal_ip = site.server_host is None
        # Bound to the address that the Hub uses, where that is one of the site's machine.
        self.host_ip = site.server_host if site.server_host and _is_address(site.server_host) else "0.0.0.0"  # noqa: S104
        self.volumes = {self.home_volume: HOME}
        self.extra_host_config = {
            "auto_remove": False,  # of a server that crashed, the engine still knows why; `poll` removes it
            **CONFINED,
            "tmpfs": {"/tmp": f"rw,exec,nosuid,nodev,mode=1777,size={site.memory // 4}"},  # noqa: S108
            "pids_limit": PIDS_LIMIT,
            "memswap_limit": int(site.memory),  # no swap: the limit is the limit
            "shm_size": site.memory // 2,  # PyTorch's data loaders hand batches over in it
            "init": True,
            "extra_hosts": self.hub_hosts(site),
            "log_config": LogConfig(type=LogConfig.types.JSON, config=LOG_LIMIT),
        }

    @property
    def mount_binds(self) -> list[Mount]:
        site = self._site
        return self.dataset_mounts(site) if site is not None else []

    async def start(self) -> Any:
        with leases_of(self._engine_at_start()).starting(self.container_name):
            return await super().start()

    def _engine_at_start(self) -> Engine:
        return engine_of(_container(self.placement().site))

    async def create_object(self) -> Any:
        """Make the container, with a GPU where one is wanted; called by DockerSpawner's `start`."""
        site = _docker(self._site)
        if not self._gets_gpu(site):
            return await super().create_object()
        return await leases_of(self._engine).take(site, self._create_with_gpu, lambda held: self._wait(site, held))

    async def _create_with_gpu(self, gpu: str) -> Any:
        request = DeviceRequest(device_ids=[gpu], capabilities=[["gpu"]])
        self.extra_host_config = {**self.extra_host_config, "device_requests": [request]}
        labels = {**self.server_labels(self.site_slug), GPU_LABEL: gpu}
        self.extra_create_kwargs = {**self.extra_create_kwargs, "labels": labels}
        self._tell(f"GPU {gpu} is yours.")
        return await super().create_object()

    def _wait(self, site: DockerSite, held: Sequence[Lease]) -> None:
        self._tell(f"Waiting for a GPU of {site.title}, {site.gpu_wait_s:.0f} s at most. {_holders(held)}")

    async def remove_object(self) -> None:
        """Remove the container, even one that runs: a Hub that crashed while it started a server left it so."""
        try:
            await self.docker("remove_container", self.object_id, v=True, force=True)
        except NotFound:
            self.log.info("Container %s is gone already", self.object_name)

    async def get_ip_and_port(self) -> tuple[str, int]:
        address, port = await super().get_ip_and_port()
        site = _docker(self._site)
        return site.server_host or address, port


def dataset_mount(name: str, dataset: SiteDataset) -> Mount:
    """A dataset in a container, read-only.

    A file system mounted below the dataset's folder is not shown: Docker would leave it writable.
    """
    if dataset.path is None:
        return Mount(f"{DATA}/{name}", dataset.volume, type="volume", read_only=True, no_copy=True)
    mount = Mount(f"{DATA}/{name}", dataset.path, type="bind", read_only=True, propagation="rprivate")
    mount["BindOptions"]["NonRecursive"] = True
    return mount


def _container(site: object) -> ContainerSite:
    """The deployment's sites are all of one kind, and the spawner's class was chosen by it."""
    assert isinstance(site, ContainerSite)  # noqa: S101 - see above
    return site


def _docker(site: object) -> DockerSite:
    assert isinstance(site, DockerSite)  # noqa: S101 - as in `_container`
    return site


def _away(site: ContainerSite, unavailable: EngineUnavailable) -> str:
    return f"The engine of {site.title} does not answer: {unavailable}."


def _no_gpu(site: ContainerSite, taken: GpusTaken) -> StartRefused:
    return StartRefused(
        f"All GPUs of {site.title} are taken. {_holders(taken.leases)} "
        "Start without a GPU, or try again when one is free.",
        reason="gpus-taken",
        status_code=409,
    )


def _holders(leases: Sequence[Lease]) -> str:
    return "; ".join(map(str, leases)) + "."


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
