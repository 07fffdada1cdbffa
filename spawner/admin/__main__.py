"""The commands of the Hub's administrator; run them on the Hub's machine, as the account that owns the deployment.

python -m spawner.admin certificates --site st-anna --engine-address 10.77.2.2
python -m spawner.admin add --site st-anna --title "St. Anna Hospital" ...
python -m spawner.admin check
python -m spawner.admin service backup federation.tar
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import NoReturn

from spawner import access
from spawner.admin import adding, certificates, report, steps
from spawner.admin.adding import AddingRefused, NewSite
from spawner.admin.certificates import ENGINE_PORT, ENGINES_FOLDER, CertificatesRefused, EngineHost
from spawner.admin.checks import Result, check_site
from spawner.deployment import CONFIG_VARIABLE, Deployment, DeploymentError, load

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 1 if it was refused, or if a check failed."""
    said = _parser().parse_args(arguments)
    try:
        status: int = said.command(said)
    except (AddingRefused, CertificatesRefused, DeploymentError) as refused:
        sys.stderr.write(f"{refused}\n")
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.stderr.write("Stopped; nothing is left at the sites.\n")
        return INTERRUPTED
    return status


# --- the commands


def _issue(said: argparse.Namespace) -> int:
    host = EngineHost(tuple(said.engine_address), tuple(said.engine_name), said.engine_port)
    folder = said.folder or _config(said).resolve().with_name(ENGINES_FOLDER)
    issued = certificates.issue(folder, adding.checked_slug(said.site), host, now=datetime.now(UTC), renew=said.renew)
    contact = f"the administrator of {said.site}"
    _say(
        f"Made for {said.site}, valid until {issued.ends:%d %B %Y}:",
        f"  {issued.tls_dir}/  the Hub's; `tls_dir` in the site's entry",
        f"  {issued.bundle}  the site's",
        "",
        steps.as_text(steps.after_issuing(issued.bundle, contact)),
    )
    return 0


def _add(said: argparse.Namespace) -> int:
    new = NewSite(
        slug=said.site,
        title=said.title,
        contact=said.contact,
        engine=said.engine,
        image=said.image,
        institutions=said.institution,
        stewards=said.steward,
        datasets=dict(said.dataset),
        gpus=said.gpu,
        hub_url=said.hub_url,
        hub_address=said.hub_address,
    )
    added = adding.add(_config(said), new, now=datetime.now(UTC))
    next_steps = steps.after_adding(added.slug, added.site, added.deployment.hub, added.bundle)
    _say(f"{added.site.title} is in {added.file}. Next:", "", steps.as_text(next_steps))
    return 0


def _check(said: argparse.Namespace) -> int:
    deployment = load(_config(said))
    slugs = said.site or list(deployment.sites)
    unknown = [slug for slug in slugs if slug not in deployment.sites]
    if unknown:
        known = ", ".join(sorted(deployment.sites))
        sys.stderr.write(f"There is no site {', '.join(unknown)}; the sites are: {known}.\n")
        return 1
    found = asyncio.run(_check_all(deployment, slugs, quiet=said.json))
    if said.json:
        _say(report.as_json(found))
    return int(any(report.has_failed(results) for results in found.values()))


def _service(said: argparse.Namespace) -> int:
    """Run a command of the federation service, which finds its state as the service that the Hub starts does."""
    environment = access.service_environment(load(_config(said)))
    command = [sys.executable, "-m", "hub_service", *(said.words or ["--help"])]
    return subprocess.run(command, env={**os.environ, **environment}, check=False).returncode


def _serve(said: argparse.Namespace) -> NoReturn:
    """Become the federation service, where the deployment has it apart from the Hub."""
    deployment = load(_config(said))
    if deployment.hub.apart is None:
        raise SystemExit("The Hub starts the service itself; write a table [hub.apart] where somebody else is to.")
    environment = {**os.environ, **access.apart_environment(deployment)}
    os.execve(sys.executable, [sys.executable, "-m", "hub_service"], environment)  # noqa: S606 - our own


async def _check_all(deployment: Deployment, slugs: Sequence[str], *, quiet: bool) -> dict[str, list[Result]]:
    """Check sites side by side; each is told when it is done, whatever the others do."""
    this = asyncio.current_task()
    assert this is not None  # noqa: S101 - a coroutine runs in a task
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)

    async def one(slug: str) -> list[Result]:
        site = deployment.sites[slug]
        checking = check_site(slug, site, deployment.hub, now=lambda: datetime.now(UTC), new_id=_new_id)
        results = [result async for result in checking]
        if not quiet:
            _say(report.table(f"{site.title} ({slug})", results, shutil.get_terminal_size((120, 24)).columns), "")
        return results

    async with asyncio.TaskGroup() as group:
        tasks = {slug: group.create_task(one(slug)) for slug in slugs}
    return {slug: task.result() for slug, task in tasks.items()}


def _new_id() -> str:
    return secrets.token_hex(6)


def _say(*lines: str) -> None:
    sys.stdout.write("\n".join(lines) + "\n")


# --- the command line


def _config(said: argparse.Namespace) -> Path:
    """The deployment file. Raises SystemExit, where nobody named one."""
    path: Path | None = said.config
    if path is None and os.environ.get(CONFIG_VARIABLE):
        path = Path(os.environ[CONFIG_VARIABLE])
    if path is None:
        raise SystemExit(f"Which deployment? Name its file by --config, or in {CONFIG_VARIABLE}.")
    return path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m spawner.admin", description="Looks after a Hub's sites and its federation service."
    )
    parser.add_argument("--config", type=Path, help=f"the deployment file; otherwise the one in {CONFIG_VARIABLE}")
    commands = parser.add_subparsers(required=True, metavar="command")

    issue = commands.add_parser("certificates", help="issue certificates for a site's engine")
    issue.set_defaults(command=_issue)
    issue.add_argument("--site", required=True, help="short name: lower-case letters, digits and hyphens")
    issue.add_argument("--engine-address", action="append", default=[], type=_address, help="where the Hub reaches it")
    issue.add_argument("--engine-name", action="append", default=[], help="DNS name by which the Hub reaches it")
    issue.add_argument("--engine-port", type=int, default=ENGINE_PORT)
    issue.add_argument("--folder", type=Path, help=f"where to put them; otherwise {ENGINES_FOLDER}/ at the deployment")
    issue.add_argument("--renew", action="store_true", help="replace those that are there, by the same authority")

    add = commands.add_parser("add", help="add a site with a Docker engine of its own")
    add.set_defaults(command=_add)
    add.add_argument("--site", required=True, help="short name: lower-case letters, digits and hyphens")
    add.add_argument("--title", required=True, help="the institution's name, as people read it")
    add.add_argument("--contact", required=True, help='who looks after the site: "Name <address>"')
    add.add_argument("--engine", required=True, help="tcp://host:2376, or unix:///var/run/docker.sock")
    add.add_argument("--image", required=True, help="of the notebook servers, best by digest: name@sha256:...")
    add.add_argument(
        "--institution", action="append", required=True, help="value of the institution claim of the site's people"
    )
    add.add_argument("--steward", action="append", required=True, help="Hub user name of a data steward")
    add.add_argument("--dataset", action="append", default=[], type=_dataset, metavar="NAME=FOLDER")
    add.add_argument("--gpu", action="append", default=[], metavar="ID", help="as `nvidia-smi -L` lists it")
    add.add_argument("--hub-url", default="", help="the Hub's origin as the site sees it, where it sees another")
    add.add_argument("--hub-address", default="", help="IPv4 address of the Hub's host, where the URL has a name")

    check = commands.add_parser("check", help="look at every part of the sites, from the Hub's side")
    check.set_defaults(command=_check)
    check.add_argument("--site", action="append", default=[], help="this one; all, where none is named")
    check.add_argument("--json", action="store_true", help="for another program")

    service = commands.add_parser("service", help="look after the federation service's state: backup, restore, ...")
    service.set_defaults(command=_service)
    service.add_argument("words", nargs=argparse.REMAINDER, metavar="command", help="none lists the commands")

    serve = commands.add_parser(
        "serve", help="run the federation service, where [hub.apart] says that the Hub does not"
    )
    serve.set_defaults(command=_serve)
    return parser


def _address(said: str) -> object:
    return ip_address(said)


_address.__name__ = "IP address"  # argparse names the type in its refusal


def _dataset(said: str) -> tuple[str, str]:
    try:
        return adding.named_dataset(said)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


if __name__ == "__main__":
    sys.exit(main())
