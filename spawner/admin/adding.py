"""Adding a site: its entry is checked with the whole deployment, and only then written to `sites.d/<slug>.toml`.

The command `add` and the Hub's page call `add`; the running Hub does not know the site until it is restarted.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import tomli_w
from pydantic import TypeAdapter, ValidationError

from spawner.admin import certificates
from spawner.admin.certificates import ENGINES_FOLDER, CertificatesRefused, EngineHost, Issued
from spawner.deployment import SITES_FOLDER, Deployment, DeploymentError, load
from spawner.sites import DockerSite
from spawner.tables import Problem, Slug

HEADER = "# Written by `python -m spawner.admin add`; deploy/deployment.toml explains the keys.\n"


class AddingRefused(Exception):
    """The site was not added, and nothing was written. `problems` says all that is to correct."""

    def __init__(self, slug: str, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n  ".join([f"{slug} was not added; nothing was written:", *map(str, self.problems)]))


class NotWritable(AddingRefused):
    """The site is right, and this account may not write its files. `steps.add_command` is for one that may."""


@dataclass(frozen=True, slots=True)
class NewSite:
    """What the administrator says of a site with a Docker engine of its own. Checked by the deployment's models.

    Attributes:
        institutions: values of the institution claim; people with one of them belong to the site.
        stewards: Hub user names.
        datasets: name -> folder of the site's machine, or name of a Docker volume there.
        gpus: ids, as `nvidia-smi -L` lists them.
        hub_url, hub_address: how the site reaches the Hub, where `[hub]` does not say it; empty otherwise.
    """

    slug: str
    title: str
    contact: str
    engine: str
    image: str
    institutions: Sequence[str]
    stewards: Sequence[str]
    datasets: Mapping[str, str]
    gpus: Sequence[str] = ()
    hub_url: str = ""
    hub_address: str = ""

    @property
    def speaks_tls(self) -> bool:
        return urlsplit(self.engine).scheme == "tcp"


@dataclass(frozen=True, slots=True)
class Added:
    """A site that was added. `issued` is None where its certificates were there already, or it needs none."""

    slug: str
    site: DockerSite
    deployment: Deployment
    file: Path
    bundle: Path | None
    issued: Issued | None


def add(config: Path, new: NewSite, *, now: datetime) -> Added:
    """Write a site's file beside the deployment file, with certificates where its engine needs them and has none.

    Raises:
        AddingRefused: the slug is taken, or the deployment would not be right with it.
        NotWritable: a file cannot be written.
    """
    checked_slug(new.slug)
    _refuse_unowned(new)
    _refuse_existing(config, new.slug)
    file = config.with_name(SITES_FOLDER) / f"{new.slug}.toml"
    engines = config.resolve().with_name(ENGINES_FOLDER)
    issued = _issue(engines, new, now)
    try:
        entry = HEADER + tomli_w.dumps(_tables(new))
        deployment = _load_with(config, new.slug, entry)
        _write_new(file, new.slug, entry)
    except AddingRefused:
        if issued is not None:
            certificates.remove(engines, new.slug)
        raise
    site = deployment.sites[new.slug]
    assert isinstance(site, DockerSite)  # noqa: S101 - `_tables` said so
    bundle = certificates.bundle_in(engines, new.slug) if new.speaks_tls else None
    return Added(new.slug, site, deployment, file, bundle, issued)


def checked_slug(slug: str) -> str:
    """The slug, if it may become a part of a path. Raises AddingRefused."""
    try:
        return TypeAdapter(Slug).validate_python(slug)
    except ValidationError:
        text = "is no slug; use lower-case letters, digits and hyphens, at most 32"
        raise AddingRefused(slug, [Problem("site", f"{text} (found {slug!r})")]) from None


def named_dataset(said: str) -> tuple[str, str]:
    """Read NAME=FOLDER. Raises ValueError."""
    name, separator, source = said.partition("=")
    if not separator or not source.strip():
        raise ValueError(f"write NAME=FOLDER, as in biopsies=/srv/biopsies (found {said!r})")
    return name.strip(), source.strip()


def _refuse_unowned(new: NewSite) -> None:
    """A site without people, or one for whose data nobody decides, would be of no use to anybody."""
    missing = [
        Problem(key, text)
        for key, text, values in (
            ("sso.institutions", "is missing; write what the login says of the site's people", new.institutions),
            ("sso.stewards", "is missing; name who decides for the site's data", new.stewards),
        )
        if not values
    ]
    if missing:
        raise AddingRefused(new.slug, missing)


def _refuse_existing(config: Path, slug: str) -> None:
    try:
        sites = load(config).sites
    except DeploymentError:
        return  # a deployment without any site yet is not right; with the new one it is read again
    if slug in sites:
        text = f"is a site of this deployment already: {sites[slug].title}. To change it, edit its entry"
        raise AddingRefused(slug, [Problem("site", text)])


def _issue(engines: Path, new: NewSite, now: datetime) -> Issued | None:
    if not new.speaks_tls or (engines / new.slug).exists():
        return None
    try:
        return certificates.issue(engines, new.slug, EngineHost.of_url(new.engine), now=now)
    except certificates.NotWritable as error:
        raise NotWritable(new.slug, [Problem("", str(error))]) from error
    except (CertificatesRefused, ValueError) as error:
        raise AddingRefused(new.slug, [Problem("engine", str(error))]) from error


def _tables(new: NewSite) -> dict[str, Any]:
    """The site's file: its entry, and what `[sso]` must say of it."""
    site: dict[str, Any] = {
        "kind": "docker",
        "title": new.title,
        "contact": new.contact,
        "engine": new.engine,
        "image": new.image,
    }
    if new.speaks_tls:
        site["tls_dir"] = f"{ENGINES_FOLDER}/{new.slug}"
    site |= {key: value for key, value in (("hub_url", new.hub_url), ("hub_address", new.hub_address)) if value}
    if new.gpus:
        site["gpus"] = list(new.gpus)
    if new.datasets:
        site["datasets"] = {name: _dataset(name, source) for name, source in new.datasets.items()}
    return {
        "sso": {
            "institutions": dict.fromkeys(new.institutions, new.slug),
            "stewards": {new.slug: {"users": list(new.stewards)}},
        },
        "sites": {new.slug: site},
    }


def _dataset(name: str, source: str) -> dict[str, str]:
    return {"title": name, "path" if source.startswith("/") else "volume": source}


def _load_with(config: Path, slug: str, entry: str) -> Deployment:
    """The deployment as it would be with this file, which is not in its folder yet.

    The files stand in a folder of their own as links: `load` starts relative paths where the links lead.
    """
    sites = config.with_name(SITES_FOLDER)
    with tempfile.TemporaryDirectory() as folder:
        staged = Path(folder, config.name)
        staged.symlink_to(config.resolve())
        staged_sites = Path(folder, SITES_FOLDER)
        staged_sites.mkdir()
        for other in sites.glob("*.toml"):
            (staged_sites / other.name).symlink_to(other.resolve())
        file = staged_sites / f"{slug}.toml"
        if file.is_symlink():
            raise AddingRefused(slug, [Problem("site", f"there is a file {sites / file.name} already; look into it")])
        file.write_text(entry, encoding="utf-8")
        try:
            return load(staged)
        except DeploymentError as error:
            raise AddingRefused(slug, error.problems) from None


def _write_new(file: Path, slug: str, entry: str) -> None:
    """Put the file in place whole, and only where there is none. Raises AddingRefused."""
    try:
        file.parent.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=file.parent, prefix=".", suffix=".new", encoding="utf-8"
        ) as unfinished:
            unfinished.write(entry)
            unfinished.flush()
            os.fsync(unfinished.fileno())
            os.chmod(unfinished.name, 0o644)
            os.link(unfinished.name, file)
    except FileExistsError as error:
        text = f"{error.filename2 or error.filename} is there already; look into it"
        raise AddingRefused(slug, [Problem("site", text)]) from error
    except OSError as error:
        raise NotWritable(slug, [Problem("", f"{file} cannot be written: {error.strerror}.")]) from error
