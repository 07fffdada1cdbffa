"""The one file in which a deployment differs from another: `[hub]`, `[sso]`, `[aggregators]`, `[notices]`,
`[quotas]` and `[sites.<slug>]`.

`deploy/deployment.toml` shows every key. Secrets are in the environment only, as docs/deployment.md lists them.
A site can stand in a file of its own, `sites.d/<slug>.toml` beside the deployment file, with what `[sso]` says of it:
`python -m spawner.admin add` writes such a file.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import ByteSize, Field, ValidationError, field_validator, model_validator

from spawner.sites import ContainerSite, EmbeddedSite, EngineTable, Site, SupernodeSite
from spawner.sso import Sso
from spawner.tables import (
    ExistingFile,
    Origin,
    Problem,
    RelativePath,
    Slug,
    Table,
    Text,
    dotted,
    problems_of,
)

CONFIG_VARIABLE = "NOTEBOOK_FEDERATOR_CONFIG"
CLIENT_SECRET_VARIABLE = "NOTEBOOK_FEDERATOR_SSO_CLIENT_SECRET"  # noqa: S105 - the name, not the secret
SMTP_PASSWORD_VARIABLE = "NOTEBOOK_FEDERATOR_SMTP_PASSWORD"  # noqa: S105 - the name, not the password
WEBHOOK_KEY_VARIABLE = "NOTEBOOK_FEDERATOR_WEBHOOK_KEY"
SERVICE_TOKEN_VARIABLE = "NOTEBOOK_FEDERATOR_SERVICE_TOKEN"  # noqa: S105 - the name, not the token
S3_KEY_VARIABLE = "NOTEBOOK_FEDERATOR_S3_KEY"
S3_SECRET_VARIABLE = "NOTEBOOK_FEDERATOR_S3_SECRET"  # noqa: S105 - the name, not the secret
METRICS_TOKEN_VARIABLE = "NOTEBOOK_FEDERATOR_METRICS_TOKEN"  # noqa: S105 - the name, not the token
SITES_FOLDER = "sites.d"

Port = Annotated[int, Field(ge=1, le=65535)]
HostName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9]([a-zA-Z0-9.-]*[a-zA-Z0-9])?$")]


class DeploymentError(Exception):
    """The deployment file cannot be used. Its text names the file and everything to correct in it."""

    def __init__(self, path: Path, problems: Iterable[Problem]) -> None:
        self.path = path
        self.problems = tuple(problems)
        super().__init__("\n  ".join([f"{path} cannot be used:", *map(str, self.problems)]))


class Apart(Table):
    """`[hub.apart]`: Hub, proxy and service are started by somebody else, each on its own host, or in a container.

    A Hub that is started anew then takes nothing down with it. The token by which the service and the Hub know each
    other is in NOTEBOOK_FEDERATOR_SERVICE_TOKEN, the one of Hub and proxy in CONFIGPROXY_AUTH_TOKEN.

    Attributes:
        hub, proxy, service: names by which they reach each other, on a network where nobody else is.
    """

    hub: HostName = "hub"
    proxy: HostName = "proxy"
    service: HostName = "service"


class Hub(Table):
    """`[hub]`: where the Hub listens, what it keeps and whom people may ask.

    Attributes:
        bind_url: where the proxy listens.
        public_url: what people type, where that is another; also what notebook servers dial.
        data_dir: database, cookie secret and the federation service's files. Made if it is not there.
        keep_models: bytes of one run's rounds' models that are kept; its last and its best one always are.
        keep_round_models_days: how long after a run's end these are kept. None: for as long as the project.
        artifacts: an S3-compatible bucket for apps and models. None: a folder below `data_dir`. Its credentials are in
            NOTEBOOK_FEDERATOR_S3_KEY and NOTEBOOK_FEDERATOR_S3_SECRET, or on the machine where boto3 looks for them.
        artifacts_endpoint: address of a storage that is not Amazon's.
        artifacts_cache: bytes of the bucket's models that are kept below `data_dir`, too.
        proxy_command: how to start configurable-http-proxy.
        log_format: of the Hub's, the service's and the SuperLinks' logs: for people, or JSON for programs.
        apart: None where the Hub starts its proxy and the service itself, all on one machine.
        database: of the federation service, as SQLAlchemy writes it: PostgreSQL. None: SQLite, a file below `data_dir`.
            The password is in PGPASSWORD or in the file that PGPASSFILE names, never here.
        jupyterhub_database: JupyterHub's own, as SQLAlchemy writes it. None: a file below `data_dir`.
    """

    bind_url: Origin
    public_url: Origin | None = None
    data_dir: RelativePath
    admin_contact: Text
    keep_models: ByteSize = Field(default=ByteSize(1024**3), ge=0)
    keep_round_models_days: Annotated[int, Field(ge=1)] | None = None
    artifacts: Annotated[str, Field(pattern=r"^s3://[a-z0-9][a-z0-9.-]+[a-z0-9](/[A-Za-z0-9_.-]+)*/?$")] | None = None
    artifacts_endpoint: Origin | None = None
    artifacts_cache: ByteSize = Field(default=ByteSize(20 * 1024**3), ge=0)
    tls_cert: ExistingFile | None = None
    tls_key: ExistingFile | None = None
    hub_port: Port = 8081
    service_port: Port = 8082
    proxy_api_port: Port = 8001
    proxy_command: tuple[Text, ...] = Field(default=("configurable-http-proxy",), min_length=1)
    log_format: Literal["text", "json"] = "text"
    apart: Apart | None = None
    database: Text | None = None
    jupyterhub_database: Text | None = None

    @field_validator("database")
    @classmethod
    def _database_is_a_server_without_a_secret(cls, url: str | None) -> str | None:
        if url is None:
            return None
        parts = urlsplit(url)
        if parts.scheme not in ("postgresql", "postgresql+psycopg"):
            raise ValueError(
                "is not PostgreSQL, the one server that is supported; write postgresql://user@host/database, "
                "or nothing for SQLite in `data_dir`"
            )
        if parts.password is not None or "password=" in parts.query:
            raise ValueError("holds a password; write it in PGPASSWORD or in the file that PGPASSFILE names")
        return url

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Hub:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("`tls_cert` and `tls_key` go together; write both or neither")
        if (self.tls_cert is not None) != self.bind_url.startswith("https://"):
            raise ValueError("`bind_url` begins with https:// where there is a `tls_cert`, and only there; correct one")
        return self

    @model_validator(mode="after")
    def _people_have_an_address(self) -> Hub:
        if urlsplit(self.origin).hostname in ("0.0.0.0", "::"):  # noqa: S104 - refused, not bound
            raise ValueError("`bind_url` is every address of the machine; say in `public_url` which one people type")
        return self

    @model_validator(mode="after")
    def _tls_ends_at_the_proxy(self) -> Hub:
        if self.apart is not None and self.tls_cert is not None:
            raise ValueError("the proxy has the certificate where it is `apart`; give it there, and not in `tls_cert`")
        return self

    @property
    def origin(self) -> str:
        """Scheme, host and port that people and notebook servers use."""
        return self.public_url or self.bind_url


class LocalAggregators(Table):
    """`[aggregators]` with `kind = "local"`: processes of the Hub's own machine and account. They isolate nothing."""

    kind: Literal["local"] = "local"


class DockerAggregators(EngineTable):
    """`[aggregators]` with `kind = "docker"`: containers without a network, on an engine of the Hub's own machine.

    Attributes:
        engine: the service and the engine share a file system.
        cpus, memory: limits of each of an aggregator's two containers.
        disk: what a run may write.
        hours: how long a run may take.
    """

    kind: Literal["docker"]
    engine: Text = "unix:///var/run/docker.sock"
    image: Text
    cpus: float = Field(default=2.0, gt=0)
    memory: ByteSize = Field(default=ByteSize(8 * 1024**3), ge=512 * 1024**2)
    disk: ByteSize = Field(default=ByteSize(20 * 1024**3), ge=1024**2)
    hours: float = Field(default=72.0, gt=0)


Aggregators = Annotated[LocalAggregators | DockerAggregators, Field(discriminator="kind")]


class Smtp(Table):
    """`[notices.smtp]`: where mail is handed in. The password is in NOTEBOOK_FEDERATOR_SMTP_PASSWORD.

    Attributes:
        security: "none" for a relay on the same machine only.
        sender: as people see it: Federation <federation@hospital.example>.
    """

    host: Text
    port: Port = 587
    security: Literal["none", "starttls", "tls"] = "starttls"
    sender: Text
    user: Text | None = None


class Notices(Table):
    """`[notices]`: how people are told what waits for them and what has ended. Without it, pages tell it only.

    Attributes:
        address: makes a mail address of a Hub user's name; stewards are reached by their site's `contact`.
        ending_days: how long before its end an approval is told of.
        webhook: an address that each notice is posted to, as JSON, signed with NOTEBOOK_FEDERATOR_WEBHOOK_KEY.
    """

    address: Text | None = None
    ending_days: float = Field(default=7.0, gt=0, le=365)
    smtp: Smtp | None = None
    webhook: Text | None = None

    @field_validator("address")
    @classmethod
    def _address_names_the_user(cls, address: str | None) -> str | None:
        if address is not None and (address.count("{user}") != 1 or re.search(r"[{}]", address.replace("{user}", ""))):
            raise ValueError('names no user; write {user} once: "{user}@hospital.example"')
        return address

    @field_validator("webhook")
    @classmethod
    def _webhook_is_an_address(cls, url: str | None) -> str | None:
        if url is not None and (urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname):
            raise ValueError("is no address; write https://host/path")
        return url


Count = Annotated[int, Field(ge=1)]


class Quotas(Table):
    """`[quotas]`: the most that one person, project or site may have. What is not said is generous.

    Attributes:
        projects_per_user: that one person owns.
        members_per_project: who are in it or invited.
        runs, runs_per_user, runs_per_site: in flight; of all, of one owner's projects, with one site.
        project_storage, storage: of apps and kept models; of one project and of all.
        upload: of one notebook or app; never more than 20 MiB.
    """

    projects_per_user: Count | None = None
    members_per_project: Count | None = None
    runs: Count | None = None
    runs_per_user: Count | None = None
    runs_per_site: Count | None = None
    project_storage: Annotated[ByteSize, Field(ge=1024**2)] | None = None
    storage: Annotated[ByteSize, Field(ge=1024**2)] | None = None
    upload: Annotated[ByteSize, Field(ge=1024, le=20 * 1024**2)] | None = None


class Deployment(Table):
    """The whole file."""

    hub: Hub
    sso: Sso
    aggregators: Aggregators = Field(default_factory=LocalAggregators)
    notices: Notices | None = None
    quotas: Quotas = Field(default_factory=Quotas)
    sites: dict[Slug, Site] = Field(min_length=1)


def from_environment() -> Deployment:
    """The deployment that `NOTEBOOK_FEDERATOR_CONFIG` names. For `jupyterhub_config.py`.

    Raises:
        SystemExit: with a text for the administrator, in place of a stack trace.
    """
    path = config_path()
    if not os.environ.get(CLIENT_SECRET_VARIABLE):
        raise SystemExit(f"{CLIENT_SECRET_VARIABLE} is not set; give it the secret that came with `sso.client_id`.")
    try:
        return load(path)
    except DeploymentError as error:
        raise SystemExit(str(error)) from None


def config_path() -> Path:
    """The deployment file that `NOTEBOOK_FEDERATOR_CONFIG` names. Raises SystemExit as `from_environment`."""
    path = os.environ.get(CONFIG_VARIABLE, "")
    if not path:
        raise SystemExit(f"{CONFIG_VARIABLE} is not set; give it the path of the deployment file.")
    return Path(path)


def load(path: Path) -> Deployment:
    """Read and check a deployment file.

    Raises:
        DeploymentError: with everything that is wrong, not the first thing only.
    """
    raw = _tables(path)
    for site_file in sorted(path.with_name(SITES_FOLDER).glob("*.toml")):
        if problems := list(_merge(raw, _tables(site_file))):
            raise DeploymentError(site_file, problems)
    unresolved = list(_unknown_sites(raw))
    try:
        deployment = Deployment.model_validate(raw, context={"folder": path.resolve().parent})
    except ValidationError as error:
        raise DeploymentError(path, problems_of(error) + unresolved) from None
    problems = [*unresolved, *_shared_folders(deployment), *_mixed_kinds(deployment), *_unreachable_hub(deployment)]
    if problems:
        raise DeploymentError(path, problems)
    return deployment


def _tables(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DeploymentError(path, [Problem("", f"it cannot be read: {error.strerror}")]) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DeploymentError(path, [Problem("", f"it is not TOML: {error}")]) from None


def _merge(into: dict[str, Any], tables: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[Problem]:
    """Add a site's file to the deployment. Nothing is written over: what two files say is told."""
    for key, value in tables.items():
        known = into.get(key)
        if isinstance(known, dict) and isinstance(value, dict):
            yield from _merge(known, value, (*above, key))
        elif key in into:
            yield Problem(dotted((*above, key)), "another file of this deployment says it already; remove one")
        else:
            into[key] = value


def _unknown_sites(raw: Mapping[str, Any]) -> Iterator[Problem]:
    """Sites that `[sso]` speaks of and nobody declares. Reads the raw file, so that other errors do not hide these."""
    sites = raw.get("sites")
    sso = raw.get("sso")
    if not isinstance(sites, dict) or not isinstance(sso, dict):
        return
    institutions = sso.get("institutions")
    stewards = sso.get("stewards")
    spoken_of = [
        *((("institutions", value), slug) for value, slug in _items(institutions)),
        *((("stewards", slug), slug) for slug, _ in _items(stewards)),
    ]
    for key, slug in spoken_of:
        if slug not in sites:
            text = f"there is no site {slug!r}; declare [sites.{slug}] or use one of: {', '.join(sorted(sites))}"
            yield Problem(dotted(("sso", *key)), text)


def _items(table: object) -> list[tuple[str, Any]]:
    return list(table.items()) if isinstance(table, dict) else []


def _shared_folders(deployment: Deployment) -> Iterator[Problem]:
    """Sites that would put their users' homes into one folder."""
    first: dict[Path, str] = {}
    for slug, site in deployment.sites.items():
        if not isinstance(site, EmbeddedSite):
            continue
        other = first.setdefault(site.work_dir.resolve(), slug)
        if other != slug:
            yield Problem(dotted(("sites", slug, "work_dir")), f"is also {other}'s; give each site a folder of its own")


def _mixed_kinds(deployment: Deployment) -> Iterator[Problem]:
    """What would undo the isolation of a site with an engine: a neighbour, or an aggregator, in the Hub's account."""
    kinds = {slug: site.kind for slug, site in deployment.sites.items() if not isinstance(site, SupernodeSite)}
    for slug, kind in kinds.items():
        others = sorted({f"{other} ({kinds[other]})" for other in kinds if kinds[other] != kind})
        if others:
            text = f"is {kind}, and others are not: {', '.join(others)}; one Hub runs servers in one way"
            yield Problem(dotted(("sites", slug, "kind")), text)
    isolated = [slug for slug, site in deployment.sites.items() if isinstance(site, ContainerSite)]
    if isolated and deployment.aggregators.kind == "local":
        yield Problem(
            "aggregators",
            f"run in the Hub's account, where they can read the keys of {', '.join(isolated)}; "
            'write `kind = "docker"` and an `image`',
        )


def _unreachable_hub(deployment: Deployment) -> Iterator[Problem]:
    """Sites whose servers could not find the Hub: they have no DNS."""
    for slug, site in deployment.sites.items():
        if isinstance(site, ContainerSite) and hub_address(deployment.hub, site) is None:
            host = urlsplit(site.hub_url or deployment.hub.origin).hostname
            yield Problem(
                dotted(("sites", slug, "hub_address")),
                f"is missing; servers have no DNS: write the IPv4 address at which the site reaches {host}",
            )


def hub_origin(hub: Hub, site: ContainerSite) -> str:
    """Scheme, host and port at which a site's servers reach the Hub, which is all that they reach."""
    return site.hub_url or hub.origin


def hub_address(hub: Hub, site: ContainerSite) -> str | None:
    """IPv4 address of the host in `hub_origin`; None where nobody said it."""
    if site.hub_address is not None:
        return str(site.hub_address)
    host = urlsplit(hub_origin(hub, site)).hostname or ""
    try:
        return str(IPv4Address(host))
    except ValueError:
        return None
