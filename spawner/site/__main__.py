"""`python -m spawner.site up|check|down`: what a site's administrator runs on the host of the site's Docker engine.

Exit status: 0 done, or all probes as expected; 1 a probe failed; 2 it could not be done, and one line says why.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from ipaddress import AddressValueError, IPv4Address, IPv4Network
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from spawner.site.engine import EngineError, connected
from spawner.site.isolation import Endpoint, SettingsError, down_script, up_script
from spawner.site.probes import ProbeError, World, run_probes
from spawner.site.report import table
from spawner.sites import NETWORK

USUAL_SOCKET = "unix:///var/run/docker.sock"
FAILED_PROBES = 1
NOT_DONE = 2

Value = TypeVar("Value")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except (SettingsError, EngineError, ProbeError) as error:
        sys.stderr.write(f"notebook-federator: {error}\n")
        return NOT_DONE


def up(options: argparse.Namespace) -> int:
    script = up_script(
        options.hub,
        hub_source=options.hub_source,
        network=options.network,
        subnet=options.subnet,
        docker_host=options.docker_host,
    )
    return _show_or_run(script, show=options.print)


def down(options: argparse.Namespace) -> int:
    return _show_or_run(down_script(network=options.network, docker_host=options.docker_host), show=options.print)


def check(options: argparse.Namespace) -> int:
    engine = options.docker_host or USUAL_SOCKET
    local = engine.startswith("unix:")
    host = options.host or _host_of(engine, options.hub)
    world = World(internet=str(options.internet), resolvers=_resolvers() if local else ())
    with connected(engine, options.tls_dir) as client:
        results = run_probes(client, options.image, options.network, options.hub, host=host, world=world)
    sys.stdout.write(f"{table(results)}\n")
    return 0 if all(result.ok for result in results) else FAILED_PROBES


def _show_or_run(script: str, *, show: bool) -> int:
    """The administrator reads and runs the very script that is run here."""
    if show:
        sys.stdout.write(script)
        return 0
    done = subprocess.run(["/bin/sh", "-s"], input=script, text=True, check=False)
    if done.returncode not in (0, NOT_DONE):
        sys.stderr.write("notebook-federator: the line above stopped it; correct that and run this again\n")
    return NOT_DONE if done.returncode else 0


def _host_of(engine: str, hub: Endpoint) -> IPv4Address | None:
    """The site's host, as seen on the way to the Hub or in the engine's address; None where that is a name."""
    if engine.startswith("tcp:"):
        try:
            return IPv4Address(urlsplit(engine).hostname or "")
        except AddressValueError:
            return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        try:
            asked.connect((str(hub.address), hub.port))  # sends nothing
        except OSError:
            return None
        return IPv4Address(asked.getsockname()[0])


def _resolvers() -> list[str]:
    """The IPv4 DNS servers of this host, but for ones on its loopback, which a container has nothing to do with."""
    try:
        lines = Path("/etc/resolv.conf").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    servers = [line.split()[1] for line in lines if line.startswith("nameserver ") and ":" not in line]
    return [server for server in servers if not server.startswith("127.")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m spawner.site",
        description="Keeps a site's notebook servers from reaching anything but the Hub, and proves it. For root, on "
        "the host of the site's Docker engine.",
    )
    commands = parser.add_subparsers(required=True, metavar="up|check|down")

    setting_up = commands.add_parser("up", help="set the firewall rules and make the servers' network")
    setting_up.set_defaults(command=up)
    _add_hub(setting_up)
    setting_up.add_argument(
        "--hub-source",
        type=_argument(IPv4Address),
        metavar="ADDRESS",
        help="where the Hub's proxy connects from; default: the Hub's address",
    )
    setting_up.add_argument(
        "--subnet",
        type=_argument(IPv4Network),
        metavar="NETWORK",
        help="addresses for the servers, such as 10.200.0.0/24; default: Docker chooses",
    )
    _add_print(setting_up)
    _add_engine(setting_up)

    checking = commands.add_parser("check", help="try from inside a container what servers must not be able to do")
    checking.set_defaults(command=check)
    _add_hub(checking)
    checking.add_argument("--image", required=True, help="with python3: the one of the site's servers")
    checking.add_argument(
        "--tls-dir",
        type=Path,
        metavar="FOLDER",
        default=os.environ.get("DOCKER_CERT_PATH"),
        help="with ca.pem, cert.pem and key.pem, for an engine on tcp://; default: $DOCKER_CERT_PATH",
    )
    checking.add_argument(
        "--host",
        type=_argument(IPv4Address),
        metavar="ADDRESS",
        help="an address of the site's host; default: the one in --docker-host, or on the way to the Hub",
    )
    checking.add_argument(
        "--internet",
        type=_argument(IPv4Address),
        metavar="ADDRESS",
        default=World().internet,
        help="any public host to try; default: %(default)s",
    )
    _add_engine(checking)

    taking_down = commands.add_parser("down", help="take back what `up` did")
    taking_down.set_defaults(command=down)
    _add_print(taking_down)
    _add_engine(taking_down)
    return parser


def _add_hub(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--hub",
        type=_argument(Endpoint.parse),
        required=True,
        metavar="ADDRESS:PORT",
        help="the Hub's proxy as this site reaches it, such as 203.0.113.10:443",
    )


def _add_print(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--print", action="store_true", help="print the shell script, to read or to run by hand")


def _add_engine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--network", default=NETWORK, help="name of the Docker network; default: %(default)s")
    parser.add_argument(
        "--docker-host",
        metavar="URL",
        default=os.environ.get("DOCKER_HOST"),
        help=f"where the engine listens; default: $DOCKER_HOST, or {USUAL_SOCKET}",
    )


def _argument(parse: Callable[[str], Value]) -> Callable[[str], Value]:
    """Have argparse show why a value cannot be used."""

    def parsed(text: str) -> Value:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parsed


if __name__ == "__main__":
    sys.exit(main())
