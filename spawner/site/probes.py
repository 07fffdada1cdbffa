"""What is tried from inside a server, where, and what is expected; on the network as it is, with the program `inside`.

run_probes           in a container made for it, with a server's settings: `check`, and the Hub's look at a site
surroundings         the neighbours that the probes try to reach, for as long as they are needed
probe_container      in a container that runs already, such as a researcher's server
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from typing import Any

import docker
import requests
from docker.errors import APIError, ImageNotFound, NotFound
from docker.models.containers import Container
from docker.models.networks import Network

from spawner.confinement import CONFINED, SERVER_USER
from spawner.labels import PREFIX
from spawner.site.inside import GROUP
from spawner.site.isolation import Endpoint

CHECK_LABEL = PREFIX + "check"
NEIGHBOUR_PORT = 8888
PROBES_TIME_S = 60.0
"""Far more than all probes take: what is dropped is waited for for three seconds, and all are tried at once."""

EXPECTED_REFUSAL = "refused"
EXPECTED_ANSWER = "answers"

RULES_ADVICE = (
    "the rules are not in force for this network, or others stand before them: run `python -m spawner.site up` on the "
    "site's host again; `iptables -S DOCKER-USER` and `iptables -S INPUT` must have its rules first"
)
CONTAINER_ADVICE = "the engine does not keep to the container's settings: look at its daemon.json and its version"
DNS_ADVICE = (
    'the container has a resolver that asks the world: servers are started with "dns": ["127.0.0.1"]; if this one was '
    "too, look at the engine's daemon.json"
)

AS_A_SERVER: Mapping[str, Any] = {
    **CONFINED,
    "user": SERVER_USER,
    "init": True,  # a first process of its own would not see the signals that end it
    "tmpfs": {"/tmp": "rw,nosuid,nodev,mode=1777,size=64m"},  # noqa: S108 - the container's own
    "pids_limit": 256,
    "mem_limit": "256m",
}
"""What a server may do, as `container_site_spawner` starts it, with small limits."""


class ProbeError(Exception):
    """The probes could not be run. The text says what to do."""


@dataclass(frozen=True, slots=True)
class World:
    """What lies beyond the site's network. Nothing at these addresses is harmed: connections are opened and closed.

    Attributes:
        internet, internet6: any public host.
        name: any public name.
        resolvers: DNS servers of the site.
        host_ports: of the site's host. A port without a listener does as well: that it was reached shows.
        hub_ports: of the Hub's host, but for the Hub's own.
    """

    internet: str = "1.1.1.1"
    internet6: str = "2606:4700:4700::1111"
    name: str = "example.com"
    resolvers: Sequence[str] = ()
    host_ports: Sequence[int] = (22, 80, 443, 8080)
    hub_ports: Sequence[int] = (22, 8001, 8081, 8082)


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A container that answers on NEIGHBOUR_PORT.

    Attributes:
        published: where its port is published on the site's host.
    """

    address: str
    link_local: str
    published: Endpoint


@dataclass(frozen=True, slots=True)
class Targets:
    """All that the probes try to reach.

    Attributes:
        hub: the one that must answer.
        host_addresses: of the site's host; the network's gateway is one.
        broadcast: of the network.
        neighbour: another server on the network; None where there is none to try.
        outsider: a container on another network.
    """

    hub: Endpoint
    host_addresses: Sequence[str]
    broadcast: str
    neighbour: Neighbour | None = None
    outsider: Neighbour | None = None
    world: World = field(default_factory=World)


@dataclass(frozen=True, slots=True)
class Probe:
    """One thing that a server must not be able to do. Each of its attempts is the argument of `inside.attempt`."""

    name: str
    title: str
    attempts: Sequence[Mapping[str, Any]]
    advice: str
    expected: str = EXPECTED_REFUSAL


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What came of a probe. `advice` says what to do where it is not `ok`."""

    name: str
    title: str
    tried: str
    expected: str
    found: str
    ok: bool
    advice: str


def probes_of(targets: Targets) -> list[Probe]:
    """Everything that is tried. Without a neighbour or an outsider, what would be tried on them is left out."""
    world, host, hub = targets.world, targets.host_addresses, str(targets.hub.address)
    probes = [
        Probe(
            "hub",
            "the Hub's origin",
            [{"kind": "http", "address": hub, "port": targets.hub.port}],
            "is this the Hub's address as the site reaches it, and the one that `up --hub` was given? Does the site's "
            "firewall let this host open connections to it?",
            EXPECTED_ANSWER,
        ),
        Probe("internet-tcp", "internet by TCP", _tcp([world.internet], [80, 443]), RULES_ADVICE),
        Probe(
            "internet-udp", "internet by UDP", [{"kind": "udp", "address": world.internet, "port": 443}], RULES_ADVICE
        ),
        Probe("dns-internet-udp", "public DNS by UDP", [_dns(world.internet, world, "udp")], RULES_ADVICE),
        Probe("dns-internet-tcp", "public DNS by TCP", [_dns(world.internet, world, "tcp")], RULES_ADVICE),
        Probe(
            "dns-site",
            "the site's DNS",
            [_dns(server, world, by) for server in (*host, *world.resolvers) for by in ("udp", "tcp")],
            RULES_ADVICE,
        ),
        Probe(
            "dns-own",
            "the container's resolver",
            [{"kind": "resolve", "name": world.name, "transport": by} for by in ("udp", "tcp")],
            DNS_ADVICE,
        ),
        Probe("ping", "ICMP", [{"kind": "ping", "address": one} for one in (world.internet, *host)], RULES_ADVICE),
        Probe("host", "the site's host", _tcp(host, world.host_ports), RULES_ADVICE),
        Probe("engine-api", "the engine's API", _tcp(host, [2375, 2376]), RULES_ADVICE),
        Probe(
            "engine-socket",
            "the engine's socket",
            [
                {"kind": "unix-socket", "path": path}
                for path in ("/var/run/docker.sock", "/run/containerd/containerd.sock", "/run/podman/podman.sock")
            ],
            CONTAINER_ADVICE,
        ),
        Probe(
            "hub-ports",
            "the Hub's other ports",
            _tcp([hub], [port for port in world.hub_ports if port != targets.hub.port]),
            RULES_ADVICE,
        ),
        Probe("metadata", "cloud metadata", _tcp(["169.254.169.254"], [80]), RULES_ADVICE),
        Probe(
            "broadcast",
            "broadcast and multicast",
            [
                {"kind": "spread", "address": address, "port": NEIGHBOUR_PORT}
                for address in (targets.broadcast, "255.255.255.255", GROUP)
            ],
            RULES_ADVICE,
        ),
        Probe("ipv6", "IPv6", [{"kind": "ipv6-address"}, *_tcp([world.internet6], [80, 443])], RULES_ADVICE),
        Probe(
            "root-filesystem",
            "writing to the image",
            [{"kind": "write", "folder": folder} for folder in ("/", "/etc", "/usr/local/bin", "/var/tmp")],  # noqa: S108
            CONTAINER_ADVICE,
        ),
        Probe("raw-socket", "raw sockets", [{"kind": "raw-socket"}], CONTAINER_ADVICE),
        Probe(
            "gateway-spoof",
            "posing as the gateway",
            [{"kind": "claim-address", "address": host[0]}],
            CONTAINER_ADVICE,
        ),
        Probe("privileges", "privileges", [{"kind": "privileges"}], CONTAINER_ADVICE),
    ]
    if targets.neighbour is not None:
        probes += _neighbour_probes(targets.neighbour)
    if targets.outsider is not None:
        outsider = targets.outsider
        attempts = [*_tcp([outsider.address], [NEIGHBOUR_PORT]), _endpoint(outsider.published)]
        probes.append(Probe("other-network", "a container on another network", attempts, RULES_ADVICE))
    return probes


def run_probes(
    client: docker.DockerClient,
    image: str,
    network: str,
    hub: Endpoint,
    *,
    host: IPv4Address | None = None,
    world: World | None = None,
) -> list[ProbeResult]:
    """Try everything from a short-lived container with a server's settings. Takes some seconds; blocks.

    Args:
        client: of the site's engine, local or remote.
        image: with `python3`; the one of the site's servers will do.
        host: an address of the site's host besides the network's gateway.
        world: what lies beyond; public hosts, where nothing is said.

    Raises:
        ProbeError: it could not be tried.
    """
    with (
        surroundings(client, image, network, hub, host=host, world=world) as targets,
        _container(client, image, network, probe_arguments(targets), **AS_A_SERVER) as prober,
        _engine_errors(image, network),
    ):
        status = prober.wait(timeout=PROBES_TIME_S)["StatusCode"]
        return judge(prober.logs(stdout=True, stderr=status != 0).decode(), targets)


@contextlib.contextmanager
def surroundings(
    client: docker.DockerClient,
    image: str,
    network: str,
    hub: Endpoint,
    *,
    host: IPv4Address | None = None,
    world: World | None = None,
) -> Iterator[Targets]:
    """Another server on the network, a container on another, and where they and the rest are. Both end with the block.

    Arguments and errors as for `run_probes`.
    """
    with contextlib.ExitStack() as made:
        with _engine_errors(image, network):
            _remove_abandoned(client)
            gateway, subnet = _addresses(client.networks.get(network))
            other = client.networks.create(f"{network}-check", driver="bridge", labels={CHECK_LABEL: network})
        made.callback(_remove, other, image, network)
        neighbour = made.enter_context(_neighbour(client, image, network, gateway))
        outsider = made.enter_context(_neighbour(client, image, other.id, _addresses(other)[0]))
        yield Targets(
            hub=hub,
            host_addresses=[gateway, *([] if host is None else [str(host)])],
            broadcast=str(subnet.broadcast_address),
            neighbour=neighbour,
            outsider=outsider,
            world=world or World(),
        )


def probe_container(container: Container, targets: Targets, *, hub_answers: bool = True) -> list[ProbeResult]:
    """Try everything from a container that runs already, as its own user.

    Args:
        hub_answers: whether it is one that the Hub must answer; False for one that has no network at all.

    Raises:
        ProbeError: it could not be tried.
    """
    with _engine_errors(container.id, "its network"):
        done = container.exec_run(["python3", *probe_arguments(targets)])
    return judge(done.output.decode(), targets, hub_answers=hub_answers)


def probe_arguments(targets: Targets) -> list[str]:
    """Arguments for `python3` in a container."""
    attempts = [dict(attempt) for probe in probes_of(targets) for attempt in probe.attempts]
    return ["-c", _program(), "try", json.dumps(attempts)]


def judge(output: str, targets: Targets, *, hub_answers: bool = True) -> list[ProbeResult]:
    """Compare what the program printed with what is expected.

    Raises:
        ProbeError: it printed something else.
    """
    try:
        outcomes = iter(json.loads(output))
    except ValueError:
        said = _last_line(output.encode())
        raise ProbeError(f"the probes did not run to their end; the container's python3 said: {said}") from None
    results = []
    for probe in probes_of(targets):
        came_of_it = [next(outcomes) for _ in probe.attempts]
        expected = probe.expected if hub_answers else EXPECTED_REFUSAL
        through = [one["found"] for one in came_of_it if one["through"]]
        ok = bool(through) == (expected == EXPECTED_ANSWER)
        found = through[:1] or list(dict.fromkeys(one["found"] for one in came_of_it))
        results.append(
            ProbeResult(
                name=probe.name,
                title=probe.title,
                tried=_tell(probe.attempts),
                expected=expected,
                found=", ".join(found),
                ok=ok,
                advice="" if ok else probe.advice,
            )
        )
    return results


def _last_line(output: bytes) -> str:
    return "".join(output.decode(errors="replace").strip().splitlines()[-1:]) or "nothing"


def _program() -> str:
    return resources.files("spawner.site").joinpath("inside.py").read_text(encoding="utf-8")


def _neighbour_probes(neighbour: Neighbour) -> list[Probe]:
    return [
        Probe("neighbour", "another server", _tcp([neighbour.address], [NEIGHBOUR_PORT]), RULES_ADVICE),
        Probe("neighbour-udp", "another server by UDP", [_udp(neighbour.address, NEIGHBOUR_PORT)], RULES_ADVICE),
        Probe("neighbour-published", "its published port", [_endpoint(neighbour.published)], RULES_ADVICE),
        Probe(
            "neighbour-ipv6",
            "another server by IPv6",
            _tcp([f"{neighbour.link_local}%eth0"], [NEIGHBOUR_PORT]),
            RULES_ADVICE,
        ),
    ]


def _tcp(addresses: Sequence[str], ports: Sequence[int]) -> list[Mapping[str, Any]]:
    return [{"kind": "tcp", "address": address, "port": port} for address in addresses for port in ports]


def _udp(address: str, port: int) -> Mapping[str, Any]:
    return {"kind": "udp", "address": address, "port": port}


def _dns(server: str, world: World, transport: str) -> Mapping[str, Any]:
    return {"kind": "dns", "address": server, "port": 53, "name": world.name, "transport": transport}


def _endpoint(published: Endpoint) -> Mapping[str, Any]:
    return {"kind": "tcp", "address": str(published.address), "port": published.port}


def _tell(attempts: Sequence[Mapping[str, Any]]) -> str:
    """Attempts in a few characters: `tcp 192.0.2.1:80,443 192.0.2.2:80`."""
    told: dict[str, dict[str, list[str]]] = {}
    for attempt in attempts:
        details = {name: str(value) for name, value in attempt.items() if name != "kind"}
        how = "/".join(details.pop(name) for name in ("port", "transport") if name in details)
        where = next(iter(details.values()), "")
        told.setdefault(attempt["kind"], {}).setdefault(where, []).append(how)
    return ", ".join(
        " ".join([kind, *(f"{where}:{','.join(how)}".rstrip(":") for where, how in places.items())]).rstrip()
        for kind, places in told.items()
    )


def _remove_abandoned(client: docker.DockerClient) -> None:
    """What a check left that was killed. One that goes on has nothing that old."""
    old = {"label": CHECK_LABEL, "until": "10m"}
    client.containers.prune(filters=old)
    client.networks.prune(filters=old)


@contextlib.contextmanager
def _neighbour(client: docker.DockerClient, image: str, network: str, gateway: str) -> Iterator[Neighbour]:
    listening = ["-c", _program(), "listen", str(NEIGHBOUR_PORT)]
    port = f"{NEIGHBOUR_PORT}/tcp"
    with _container(client, image, network, listening, ports={port: (gateway, None)}, **AS_A_SERVER) as container:
        with _engine_errors(image, network):
            waited = container.exec_run(["python3", "-c", _program(), "await", str(NEIGHBOUR_PORT)])
            container.reload()
        if waited.exit_code != 0:
            raise ProbeError(f"the probes' neighbour did not start; its python3 said: {_last_line(waited.output)}")
        settings = container.attrs["NetworkSettings"]
        (attached,) = settings["Networks"].values()
        published = settings["Ports"][port][0]
        yield Neighbour(
            address=attached["IPAddress"],
            link_local=_link_local(attached["MacAddress"]),
            published=Endpoint(IPv4Address(published["HostIp"]), int(published["HostPort"])),
        )


@contextlib.contextmanager
def _container(
    client: docker.DockerClient, image: str, network: str, arguments: Sequence[str], **settings: Any
) -> Iterator[Container]:
    with _engine_errors(image, network):
        container = client.containers.create(
            image,
            list(arguments),
            entrypoint=["python3"],
            network=network,
            labels={CHECK_LABEL: network},
            **settings,
        )
    try:
        with _engine_errors(image, network):
            container.start()
        yield container
    finally:
        _remove(container, image, network, force=True)


def _remove(made: Container | Network, image: str, network: str, **options: bool) -> None:
    with _engine_errors(image, network):
        made.remove(**options)


@contextlib.contextmanager
def _engine_errors(image: str, network: str) -> Iterator[None]:
    try:
        yield
    except ImageNotFound:
        raise ProbeError(f"the engine has no image {image}; load it there, or give another one") from None
    except NotFound as error:
        text = (
            f"there is no network {network}: `python -m spawner.site up` makes it" if "network" in str(error) else error
        )
        raise ProbeError(str(text)) from None
    except APIError as error:
        raise ProbeError(f"the engine refused: {error.explanation or error}") from None
    except requests.exceptions.RequestException as error:
        raise ProbeError(f"the engine does not answer any more: {error}") from None


def _addresses(network: Any) -> tuple[str, IPv4Network]:
    """Gateway and subnet."""
    for pool in network.attrs["IPAM"]["Config"]:
        subnet = pool["Subnet"]
        if ":" not in subnet:
            return pool.get("Gateway") or str(next(IPv4Network(subnet).hosts())), IPv4Network(subnet)
    raise ProbeError(f"the network {network.name} has no IPv4 addresses")


def _link_local(mac: str) -> str:
    """The address that a host gives itself by IPv6, from its interface's hardware address."""
    first, *rest = bytes.fromhex(mac.replace(":", ""))
    host_part = bytes([first ^ 2, *rest[:2], 0xFF, 0xFE, *rest[2:]])
    return str(IPv6Address(b"\xfe\x80" + bytes(6) + host_part))
