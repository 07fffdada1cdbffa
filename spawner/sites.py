"""The catalogue of sites: what the Hub's administrator declares under `[sites.<slug>]` in the deployment file.

A kind of site is a pydantic model told apart by its `kind`; a new kind is one more model in `Site`.

    SiteTable
    ├── EmbeddedSite        processes of the Hub's own machine; isolates nothing
    ├── SupernodeSite       no notebook servers; Flower's own SuperNode takes part
    └── ContainerSite
        ├── DockerSite      a Docker engine of the site's own
        └── SwarmSite       the node of a Docker Swarm that carries the site's label
"""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import PurePosixPath
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, ByteSize, Field, StringConstraints, field_validator, model_validator

from spawner.tables import ExistingFolder, Origin, RelativePath, Slug, Table, Text

NETWORK = "federation"
"""The Docker network that `python -m spawner.site up` makes at a site."""

TLS_FILES = ("ca.pem", "cert.pem", "key.pem")
"""What an engine's `tls_dir` holds: who may sign the engine's certificate, and the Hub's own certificate and key."""

_OPEN_NETWORKS = frozenset({"bridge", "default", "host", "none", "ingress", "docker_gwbridge"})

VolumeName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_.-]+$")]


def _absolute(path: str) -> str:
    parts = PurePosixPath(path)
    if not parts.is_absolute() or ".." in parts.parts or parts == PurePosixPath("/"):
        raise ValueError("is no folder of the site's machine; write a path from the root: /srv/biopsies")
    return str(parts)


SitePath = Annotated[Text, AfterValidator(_absolute)]
"""A folder of the site's own machine, which the Hub cannot see."""


class DatasetTable(Table):
    """What every dataset declares."""

    title: Text
    description: str = ""


class Dataset(DatasetTable):
    """`[sites.<slug>.datasets.<name>]` of an embedded site: a folder of the Hub's machine."""

    path: ExistingFolder


class SiteDataset(DatasetTable):
    """`[sites.<slug>.datasets.<name>]` of a site with containers: a folder of its machine, or one of its volumes."""

    path: SitePath | None = None
    volume: VolumeName | None = None

    @model_validator(mode="after")
    def _one_source(self) -> SiteDataset:
        if (self.path is None) == (self.volume is None):
            raise ValueError("needs `path`, a folder of the site's machine, or `volume`, one of its Docker volumes")
        return self


class EngineTable(Table):
    """What everybody declares who has a Docker engine. An open one on TCP is refused.

    Attributes:
        engine: where it listens.
        tls_dir: folder with ca.pem, cert.pem and key.pem for an engine on TCP.
    """

    engine: Text
    tls_dir: ExistingFolder | None = None

    @field_validator("engine")
    @classmethod
    def _engine_address(cls, engine: str) -> str:
        parts = urlsplit(engine)
        if (parts.scheme == "unix" and parts.path.startswith("/")) or (
            parts.scheme == "tcp" and parts.hostname and parts.port
        ):
            return parts.scheme + engine[len(parts.scheme) :]  # small letters: everybody else compares it with "tcp"
        raise ValueError("is no engine's address; write tcp://host:2376 or unix:///var/run/docker.sock")

    @model_validator(mode="after")
    def _tls_where_it_is_needed(self) -> EngineTable:
        if (self.tls_dir is None) == self.engine.startswith("tcp:"):
            raise ValueError(
                "`tls_dir` goes with an engine on tcp://, and only with one: whoever reaches an open engine owns the "
                "machine. `python -m spawner.admin certificates` makes the files"
            )
        missing = [name for name in TLS_FILES if self.tls_dir and not (self.tls_dir / name).is_file()]
        if missing:
            raise ValueError(
                f"`tls_dir` lacks {', '.join(missing)}; `python -m spawner.admin certificates` makes all three"
            )
        return self


class SiteTable(Table):
    """What every kind of site declares.

    Attributes:
        contact: whom to ask; the mail address in it gets what waits for the site's data stewards.
        four_eyes: two data stewards must approve, neither of them the participant.
    """

    title: Text
    contact: Text
    four_eyes: bool = False


class EmbeddedSite(SiteTable):
    """A site whose servers are processes of the Hub's own machine and account. It isolates nothing.

    Attributes:
        work_dir: each of the site's users has a home folder below it. Made when the first of them starts a server.
    """

    kind: Literal["embedded"]
    work_dir: RelativePath
    datasets: dict[Slug, Dataset] = Field(default_factory=dict)

    @property
    def isolates(self) -> bool:
        """Whether the site's users are kept from each other, from other sites and from the Hub's files."""
        return False


class SupernodeSite(SiteTable):
    """A site without notebook servers: its data are reached by Flower's own SuperNode, which the site runs itself.

    A dataset is a name here; where the data lie is known to the site's SuperNode only.
    """

    kind: Literal["supernode"]
    datasets: dict[Slug, DatasetTable] = Field(default_factory=dict)

    @property
    def isolates(self) -> bool:
        """The site's machine is its own."""
        return True


class ContainerSite(EngineTable, SiteTable):
    """A site whose servers are containers. What one may do is the same at every such site.

    Attributes:
        engine: of a Swarm, one of its managers.
        image: of the notebook servers; by digest, so that it is the one that the site's auditor has read.
        hub_url: the Hub's origin as the site sees it, where that differs from `hub.public_url`.
        hub_address: IPv4 address of the host in `hub_url`; servers have no DNS.
        cpus, memory: limits of each server.
    """

    image: Text
    network: VolumeName = NETWORK
    hub_url: Origin | None = None
    hub_address: IPv4Address | None = None
    cpus: float = Field(default=4.0, gt=0)
    memory: ByteSize = Field(default=ByteSize(16 * 1024**3), ge=512 * 1024**2)
    datasets: dict[Slug, SiteDataset] = Field(default_factory=dict)

    @property
    def isolates(self) -> bool:
        """Whether the site's users are kept from each other, from other sites and from the Hub's files."""
        return True

    @field_validator("network")
    @classmethod
    def _network_is_isolated(cls, network: str) -> str:
        if network in _OPEN_NETWORKS:
            raise ValueError("is one of Docker's own, which isolate nothing; `python -m spawner.site up` makes one")
        return network

    @field_validator("image")
    @classmethod
    def _image_is_pinned(cls, image: str) -> str:
        name = image.rpartition("/")[2]
        if "@" not in name and ":" not in name:
            raise ValueError("names no version; write name@sha256:... (best) or name:tag")
        return image

    @property
    def engine_host(self) -> str | None:
        """The host part of the engine's address; None for a Unix socket: the engine is on the Hub's machine."""
        return urlsplit(self.engine).hostname if self.engine.startswith("tcp:") else None


class DockerSite(ContainerSite):
    """A site with a Docker engine of its own.

    Attributes:
        server_address: where the Hub's proxy reaches the site's servers; the engine's host, where nothing is said.
        gpus: ids of the GPUs that servers may have, as `nvidia-smi -L` lists them.
        servers_per_gpu: how many servers share one GPU.
        gpu_wait_s: how long a start waits for a GPU before it is refused, in seconds.
    """

    kind: Literal["docker"]
    server_address: IPv4Address | None = None
    gpus: tuple[Text, ...] = ()
    servers_per_gpu: int = Field(default=1, ge=1)
    gpu_wait_s: float = Field(default=0.0, ge=0, le=3600)

    @field_validator("gpus")
    @classmethod
    def _gpus_once(cls, gpus: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(gpus)) != len(gpus):
            raise ValueError("names a GPU twice; name each once, and share it by `servers_per_gpu`")
        return gpus

    @property
    def server_host(self) -> str | None:
        """Where servers' published ports are reached; None where containers are reached by their own address."""
        return str(self.server_address) if self.server_address else self.engine_host


class SwarmSite(ContainerSite):
    """A site that is a node of a Docker Swarm, told by its label `site=<slug>`. Homes are volumes of that machine."""

    kind: Literal["swarm"]

    @model_validator(mode="after")
    def _data_are_in_folders(self) -> SwarmSite:
        volumes = [name for name, dataset in self.datasets.items() if dataset.path is None]
        if volumes:
            raise ValueError(
                f"dataset {', '.join(volumes)}: nobody can see from a Swarm's manager whether a node has a volume; "
                "write the `path` of a folder of that node"
            )
        return self


Site = Annotated[EmbeddedSite | DockerSite | SwarmSite | SupernodeSite, Field(discriminator="kind")]
