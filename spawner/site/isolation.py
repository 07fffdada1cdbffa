"""What isolates a site's servers, as the shell scripts that its administrator reads, runs, or has `up` and `down` run.

The scripts are `up.sh` and `down.sh` beside this module; what is filled in is the settings at their top, nothing else.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from dataclasses import dataclass
from importlib import resources
from ipaddress import AddressValueError, IPv4Address, IPv4Network

from spawner.labels import PREFIX
from spawner.sites import NETWORK

NETWORK_LABEL = PREFIX + "network"
DEFAULT_BRIDGE = "nfed0"

_NETWORK_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*\Z")
_DOCKER_HOST = re.compile(r"(unix:///|tcp://|ssh://)\S+\Z")


class SettingsError(ValueError):
    """Something that the administrator typed cannot be used. Its text says what, and how it is written."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An IPv4 address and a port."""

    address: IPv4Address
    port: int

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """Read ADDRESS:PORT.

        Raises:
            SettingsError: it is something else, such as a name: a firewall rule is about an address.
        """
        host, colon, port = text.rpartition(":")
        try:
            address = IPv4Address(host)
        except AddressValueError:
            raise SettingsError(
                f"{text!r} is not ADDRESS:PORT with an IPv4 address, such as 203.0.113.10:443"
            ) from None
        if not (colon and port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
            raise SettingsError(f"{text!r} has no port from 1 to 65535 after its address")
        return cls(address, int(port))

    def __str__(self) -> str:
        return f"{self.address}:{self.port}"


def bridge_of(network: str) -> str:
    """Name of a network's interface on the site's host. The kernel allows 15 characters.

    Raises:
        SettingsError: Docker would not take the network's name.
    """
    if not _NETWORK_NAME.match(network):
        raise SettingsError(f"{network!r} is no name of a Docker network; use letters, digits, '_', '.' and '-'")
    if network == NETWORK:
        return DEFAULT_BRIDGE
    return f"nfed-{hashlib.sha256(network.encode()).hexdigest()[:8]}"


def up_script(
    hub: Endpoint,
    *,
    hub_source: IPv4Address | None = None,
    network: str = NETWORK,
    subnet: IPv4Network | None = None,
    docker_host: str | None = None,
) -> str:
    """The script that sets the rules and makes the network.

    Args:
        hub: the Hub's proxy as the site reaches it.
        hub_source: where the Hub's proxy connects from; the Hub's address, where nothing is said.
        network: of the servers.
        subnet: the network's addresses; Docker's choice, where nothing is said.
        docker_host: where the engine listens, where that is not the usual socket.

    Raises:
        SettingsError: a name that cannot be used.
    """
    settings = [
        _setting("HUB", hub.address, "the Hub, as this host reaches it"),
        _setting("HUB_PORT", hub.port, "the only port of it that servers reach"),
        _setting("HUB_SOURCE", hub_source or hub.address, "where the Hub's proxy connects from"),
        _setting("SUBNET", subnet or "", "the servers' addresses; empty: Docker chooses"),
        _setting("LABEL", f"{NETWORK_LABEL}={network}", "on the network, to know it by"),
        *_common_settings(network, docker_host),
    ]
    return _fill("up.sh", settings)


def down_script(*, network: str = NETWORK, docker_host: str | None = None) -> str:
    """The script that takes back what `up_script` does. Arguments and errors as there."""
    return _fill("down.sh", _common_settings(network, docker_host))


def _common_settings(network: str, docker_host: str | None) -> list[str]:
    if docker_host is not None and not _DOCKER_HOST.match(docker_host):
        raise SettingsError(f"{docker_host!r} is no engine's address; write unix:///var/run/docker.sock")
    bridge = bridge_of(network)
    settings = [
        _setting("NETWORK", network, "Docker network of the servers"),
        _setting("BRIDGE", bridge, "its interface on this host; every rule is about this interface"),
        _setting("FROM", f"{bridge}-from", "chain for what comes from servers"),
        _setting("TO", f"{bridge}-to", "chain for what goes to servers"),
    ]
    if docker_host is not None:
        settings.append(f"export DOCKER_HOST={shlex.quote(docker_host)}")
    return settings


def _setting(name: str, value: object, meaning: str) -> str:
    return f"{f'{name}={shlex.quote(str(value))}':<40}  # {meaning}"


def _fill(script: str, settings: list[str]) -> str:
    text = resources.files("spawner.site").joinpath(script).read_text(encoding="utf-8")
    return text.replace("@SETTINGS@", "\n".join(settings))
