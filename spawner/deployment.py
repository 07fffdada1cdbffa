"""The one file in which a deployment differs from another: `[hub]`, `[sso]` and `[sites.<slug>]`.

`deploy/deployment.toml` shows every key. Secrets are in the environment only, as `jupyterhub_config.py` lists them.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator

from spawner.sites import Site
from spawner.sso import Sso
from spawner.tables import ExistingFile, Problem, RelativePath, Slug, Table, Text, dotted, problems_of

CONFIG_VARIABLE = "NOTEBOOK_FEDERATOR_CONFIG"
CLIENT_SECRET_VARIABLE = "NOTEBOOK_FEDERATOR_SSO_CLIENT_SECRET"  # noqa: S105 - the name, not the secret

Port = Annotated[int, Field(ge=1, le=65535)]


class DeploymentError(Exception):
    """The deployment file cannot be used. Its text names the file and everything to correct in it."""

    def __init__(self, path: Path, problems: Iterable[Problem]) -> None:
        self.path = path
        self.problems = tuple(problems)
        super().__init__("\n  ".join([f"{path} cannot be used:", *map(str, self.problems)]))


class Hub(Table):
    """`[hub]`: where the Hub listens, what it keeps and whom people may ask.

    Attributes:
        bind_url: where the proxy listens.
        public_url: what people type, where that is another; also what notebook servers dial.
        data_dir: database, cookie secret and the federation service's files. Made if it is not there.
        proxy_command: how to start configurable-http-proxy.
    """

    bind_url: Text
    public_url: Text | None = None
    data_dir: RelativePath
    admin_contact: Text
    tls_cert: ExistingFile | None = None
    tls_key: ExistingFile | None = None
    hub_port: Port = 8081
    service_port: Port = 8082
    proxy_api_port: Port = 8001
    proxy_command: tuple[Text, ...] = Field(default=("configurable-http-proxy",), min_length=1)

    @field_validator("bind_url", "public_url")
    @classmethod
    def _origin(cls, url: str | None) -> str | None:
        if url is None:
            return None
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
            raise ValueError("is no origin; write scheme, host and port without a path: http://127.0.0.1:8000")
        return url.rstrip("/")

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

    @property
    def origin(self) -> str:
        """Scheme, host and port that people and notebook servers use."""
        return self.public_url or self.bind_url

    @property
    def fleet_address(self) -> str:
        """host:port that a SuperNode dials."""
        parts = urlsplit(self.origin)
        return f"{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}"

    @property
    def speaks_tls(self) -> bool:
        """Whether people and nodes reach the Hub by TLS."""
        return self.origin.startswith("https://")


class Deployment(Table):
    """The whole file."""

    hub: Hub
    sso: Sso
    sites: dict[Slug, Site] = Field(min_length=1)


def from_environment() -> Deployment:
    """The deployment that `NOTEBOOK_FEDERATOR_CONFIG` names. For `jupyterhub_config.py`.

    Raises:
        SystemExit: with a text for the administrator, in place of a stack trace.
    """
    path = os.environ.get(CONFIG_VARIABLE, "")
    if not path:
        raise SystemExit(f"{CONFIG_VARIABLE} is not set; give it the path of the deployment file.")
    if not os.environ.get(CLIENT_SECRET_VARIABLE):
        raise SystemExit(f"{CLIENT_SECRET_VARIABLE} is not set; give it the secret that came with `sso.client_id`.")
    try:
        return load(Path(path))
    except DeploymentError as error:
        raise SystemExit(str(error)) from None


def load(path: Path) -> Deployment:
    """Read and check a deployment file.

    Raises:
        DeploymentError: with everything that is wrong, not the first thing only.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DeploymentError(path, [Problem("", f"it cannot be read: {error.strerror}")]) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DeploymentError(path, [Problem("", f"it is not TOML: {error}")]) from None
    unresolved = list(_unknown_sites(raw))
    try:
        deployment = Deployment.model_validate(raw, context={"folder": path.resolve().parent})
    except ValidationError as error:
        raise DeploymentError(path, problems_of(error) + unresolved) from None
    problems = unresolved + list(_shared_folders(deployment))
    if problems:
        raise DeploymentError(path, problems)
    return deployment


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
        other = first.setdefault(site.work_dir.resolve(), slug)
        if other != slug:
            yield Problem(dotted(("sites", slug, "work_dir")), f"is also {other}'s; give each site a folder of its own")
