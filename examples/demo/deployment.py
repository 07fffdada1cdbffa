"""Writes the demonstration's deployment file: `python -m examples.demo.deployment --folder .demo`.

The Hub reads it by `NOTEBOOK_FEDERATOR_CONFIG`. People, institutions and stewards are those of `examples.demo.people`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from examples.demo.people import ADMINISTRATOR, INSTITUTIONS, STEWARDS, Steward


@dataclass(frozen=True, slots=True)
class Ports:
    public: int = 8000
    hub: int = 8081
    service: int = 8082
    proxy_api: int = 8001
    identity_provider: int = 9400


@dataclass(frozen=True, slots=True)
class DatasetFolder:
    """A dataset that every site of the demonstration has, each with a folder of its own."""

    name: str
    title: str
    description: str
    folders: Mapping[str, Path]  # site slug -> folder


CLIENT_ID = "notebook-federator-demo"


def write(folder: Path, dataset: DatasetFolder, ports: Ports, proxy_command: Sequence[str]) -> Path:
    """Write `deployment.toml` into a folder, which also becomes the Hub's, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "deployment.toml"
    path.write_text(text(dataset, ports, proxy_command), encoding="utf-8")
    return path


def text(dataset: DatasetFolder, ports: Ports, proxy_command: Sequence[str]) -> str:
    """The deployment file. Relative paths start at its folder."""
    contact = f"{ADMINISTRATOR.name} <{ADMINISTRATOR.username}@{ADMINISTRATOR.institution.domain}>"
    lines = [
        "# Written by examples/demo/deployment.py; deploy/deployment.toml explains the keys.",
        "[hub]",
        f'bind_url = "http://127.0.0.1:{ports.public}"',
        'data_dir = "hub"',
        f"admin_contact = {_quoted(contact)}",
        f"hub_port = {ports.hub}",
        f"service_port = {ports.service}",
        f"proxy_api_port = {ports.proxy_api}",
        f"proxy_command = {json.dumps(list(proxy_command))}",
        "",
        "[sso]",
        'preset = "generic"',
        f'client_id = "{CLIENT_ID}"',
        f'authorize_url = "http://127.0.0.1:{ports.identity_provider}/oauth2/authorize"',
        f'token_url = "http://127.0.0.1:{ports.identity_provider}/oauth2/token"',
        f'userdata_url = "http://127.0.0.1:{ports.identity_provider}/userinfo"',
        f"admins = {json.dumps([ADMINISTRATOR.username])}",
        "",
        "[sso.institutions]",
        *(f'"{site.domain}" = "{site.site}"' for site in INSTITUTIONS),
    ]
    for steward in STEWARDS:
        lines += _site(steward, dataset)
    return "\n".join(lines) + "\n"


def _site(steward: Steward, dataset: DatasetFolder) -> list[str]:
    slug = steward.site
    contact = f"{steward.name} <{steward.username}@{steward.institution.domain}>"
    return [
        "",
        f"[sso.stewards.{slug}]",
        f"users = {json.dumps([steward.username])}",
        "",
        f"[sites.{slug}]",
        'kind = "embedded"',
        f"title = {_quoted(steward.site_title)}",
        f"contact = {_quoted(contact)}",
        f'work_dir = "sites/{slug}"',
        "",
        f"[sites.{slug}.datasets.{dataset.name}]",
        f"title = {_quoted(dataset.title)}",
        f"description = {_quoted(dataset.description)}",
        f"path = {_quoted(str(dataset.folders[slug].resolve()))}",
    ]


def _quoted(value: str) -> str:
    """A TOML basic string. JSON's escapes are a part of TOML's."""
    return json.dumps(value, ensure_ascii=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(".demo"))
    parser.add_argument("--dataset", default="biopsies")
    parser.add_argument("--proxy-command", nargs="+", default=["configurable-http-proxy"])
    arguments = parser.parse_args()
    folders = {one.site: arguments.folder / "data" / one.site for one in INSTITUTIONS}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    dataset = DatasetFolder(arguments.dataset, "Biopsies", "The site's own cases.", folders)
    print(write(arguments.folder, dataset, Ports(), arguments.proxy_command))


if __name__ == "__main__":
    main()
