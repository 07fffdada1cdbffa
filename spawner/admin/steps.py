"""Who does what next, with the commands to type. Pure: printed by the commands, shown by the Hub's page."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from urllib.parse import urlsplit

from spawner.admin.adding import NewSite
from spawner.admin.certificates import SITE_FOLDER, EngineHost
from spawner.deployment import Hub, hub_address, hub_origin
from spawner.site.isolation import Endpoint
from spawner.sites import NETWORK, ContainerSite

ADMIN = "python -m spawner.admin"
HUB_ADMIN = "You"

_INSTALLED_SCRIPT = "/usr/local/sbin/notebook-federator-isolation"
_LOCAL_SUBNET = IPv4Network("10.200.0.0/24")
"""For servers that the Hub reaches without a published port: it comes from the subnet's first address."""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that somebody does.

    Attributes:
        who: `HUB_ADMIN`, or the site's contact.
        commands: to type; empty where there is nothing to type.
    """

    who: str
    text: str
    commands: Sequence[str] = ()


def after_adding(slug: str, site: ContainerSite, hub: Hub, bundle: Path | None) -> list[Step]:
    """From a site's entry in the deployment to its first server.

    Args:
        bundle: the certificates for the site's administrator; None where the engine needs none.
    """
    script, contact = isolation_script(slug), site.contact
    return [
        Step(
            HUB_ADMIN,
            "On the Hub's machine, write the script that isolates the site's servers.",
            (isolation_command(slug, site, hub),),
        ),
        *([_sending(f"{script} and {bundle}", contact), _installing(bundle, contact)] if bundle else ()),
        Step(
            contact,
            "As root on the site's machine, read the script, install it and run it. The unit that runs it at each boot "
            "stands in docs/site-isolation.md.",
            (f"install -m 755 {script} {_INSTALLED_SCRIPT}", _INSTALLED_SCRIPT),
        ),
        Step(contact, "Fetch the image of the notebook servers.", (f"docker pull {site.image}",)),
        Step(HUB_ADMIN, "See that all is right.", (check_command(slug),)),
        Step(HUB_ADMIN, "Restart the Hub; it reads the site then. Servers that run, run on."),
    ]


def after_issuing(bundle: Path, contact: str) -> list[Step]:
    """From a bundle of certificates to an engine that uses it."""
    return [_sending(str(bundle), contact), _installing(bundle, contact)]


def _sending(what: str, contact: str) -> Step:
    return Step(
        HUB_ADMIN,
        f"Send {what} to {contact} in a way that nobody else can read: the archive has the key of the site's engine. "
        "Then delete it here.",
    )


def _installing(bundle: Path, contact: str) -> Step:
    return Step(
        contact,
        "As root on the site's machine, install the certificates, as README.txt in the archive says.",
        (
            f"tar -C {Path(SITE_FOLDER).parent} -xf {bundle.name}",
            f"install -D -m 644 {SITE_FOLDER}/docker.service.conf /etc/systemd/system/docker.service.d/federation.conf",
            "systemctl daemon-reload",
            "systemctl restart docker",
        ),
    )


def as_text(steps: Iterable[Step]) -> str:
    """The steps as numbered lines for a terminal."""
    lines = []
    for number, step in enumerate(steps, 1):
        lines.append(f"{number}. {step.who}: {step.text}")
        lines += [f"     {command}" for command in step.commands]
    return "\n".join(lines)


def check_command(slug: str) -> str:
    return f"{ADMIN} check --site {slug}"


def certificates_command(slug: str, site: ContainerSite) -> str:
    """What issues certificates for the address at which the Hub reaches the site's engine."""
    host = EngineHost.of_url(site.engine)
    said = [
        *(f"--engine-address {address}" for address in host.addresses),
        *(f"--engine-name {name}" for name in host.names),
    ]
    return " ".join([f"{ADMIN} certificates --site {slug}", *said])


def add_command(new: NewSite) -> str:
    """What adds this site on the Hub's machine."""
    said = [
        *("--site", new.slug, "--title", new.title, "--contact", new.contact),
        *("--engine", new.engine, "--image", new.image),
        *(word for value in new.institutions for word in ("--institution", value)),
        *(word for name in new.stewards for word in ("--steward", name)),
        *(word for name, source in new.datasets.items() for word in ("--dataset", f"{name}={source}")),
        *(word for gpu in new.gpus for word in ("--gpu", gpu)),
        *(("--hub-url", new.hub_url) if new.hub_url else ()),
        *(("--hub-address", new.hub_address) if new.hub_address else ()),
    ]
    return f"{ADMIN} add {shlex.join(said)}"


def isolation_script(slug: str) -> str:
    """Name of the script that the site's administrator runs."""
    return f"{slug}-isolation"


def isolation_command(slug: str, site: ContainerSite, hub: Hub) -> str:
    """What writes that script on the Hub's machine, so that the site's has to have nothing installed."""
    up = ["python", "-m", "spawner.site", "up", "--hub", str(hub_endpoint(hub, site))]
    if site.network != NETWORK:
        up += ["--network", site.network]
    if site.engine_host is None:
        up += ["--subnet", str(_LOCAL_SUBNET), "--hub-source", str(next(_LOCAL_SUBNET.hosts()))]
    return f"{shlex.join([*up, '--print'])} > {isolation_script(slug)}"


def hub_endpoint(hub: Hub, site: ContainerSite) -> Endpoint:
    """Address and port of the Hub's proxy as the site reaches it: all that its servers reach."""
    parts = urlsplit(hub_origin(hub, site))
    address = hub_address(hub, site)
    assert address is not None  # noqa: S101 - no deployment loads without it
    return Endpoint(IPv4Address(address), parts.port or (443 if parts.scheme == "https" else 80))
