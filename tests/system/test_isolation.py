"""No way out: two hospitals' hosts, each with its own engine, and everything that a server there might try to reach.

Every target is real and listens: on the tests' host the Hub, another port of it, an "internet" host with a DNS server;
on the site's host a DNS server, ports, cloud metadata. The same probes run twice: from a container that nothing
protects, where they get through, and from one on the servers' network, where none does and no target hears of them.
"""

from __future__ import annotations

import contextlib
import json
import re
import select
import shutil
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources
from ipaddress import IPv4Address
from pathlib import Path

import docker
import pytest
from docker.models.containers import Container

from spawner.site.isolation import DEFAULT_BRIDGE, Endpoint
from spawner.site.probes import (
    AS_A_SERVER,
    EXPECTED_REFUSAL,
    NEIGHBOUR_PORT,
    ProbeResult,
    Targets,
    World,
    judge,
    probe_arguments,
    probe_container,
    run_probes,
    surroundings,
)
from spawner.sites import NETWORK
from tests.fakes.engines import ENGINES, ROOT, BuildEngine, Engine, EngineError, bind

pytestmark = pytest.mark.needs_docker

IMAGE = "notebook-federator/test-base:debian"
METADATA = "169.254.169.254"
WAITING = "import signal; signal.pause()"
INTERNET6 = "2001:db8:77::1"
TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
HTTP_ANSWER = b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n"


class Listener:
    """Listens on sockets until stopped, and remembers who came."""

    def __init__(self, answer: Callable[[bytes], bytes], *sockets: socket.socket) -> None:
        self.heard: list[bytes] = []
        self._answer = answer
        self._sockets = sockets
        self._stop, self._stopped = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.close()
        self._thread.join()
        for one in (*self._sockets, self._stopped):
            one.close()

    def _serve(self) -> None:
        while True:
            ready, _, _ = select.select([*self._sockets, self._stopped], [], [])
            if self._stopped in ready:
                return
            for one in ready:
                with contextlib.suppress(OSError):
                    self._serve_one(one)

    def _serve_one(self, one: socket.socket) -> None:
        if one.type == UDP:
            data, sender = one.recvfrom(4096)
            self.heard.append(data)
            one.sendto(self._answer(data), sender)
            return
        connection, sender = one.accept()
        self.heard.append(b"")
        with connection:
            connection.settimeout(1)
            data = connection.recv(4096)
            self.heard[-1] = data
            # DNS by TCP has its length in front.
            framed = len(data) > 2 and struct.unpack("!H", data[:2])[0] == len(data) - 2
            answer = self._answer(data[2:] if framed else data)
            connection.sendall(struct.pack("!H", len(answer)) + answer if framed else answer)


def dns_answer(query: bytes) -> bytes:
    """Every name is at 192.0.2.53."""
    header = query[:2] + struct.pack("!HHHHH", 0x8180, 1, 1, 0, 0)
    return header + query[12:] + struct.pack("!HHHIH", 0xC00C, 1, 1, 60, 4) + socket.inet_aton("192.0.2.53")


@dataclass
class Hospital:
    """A site's host with its engine, and the listeners around it."""

    engine: Engine
    client: docker.DockerClient
    unprotected: str  # name of a network without any rules
    hub: Endpoint
    world: World
    listeners: dict[str, Listener] = field(default_factory=dict)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`python -m spawner.site`, as the site's administrator runs it on the host."""
        return subprocess.run(
            [
                *("ip", "netns", "exec", self.engine.namespace, sys.executable, "-m", "spawner.site"),
                *(*arguments, "--docker-host", self.engine.host),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )

    def up(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.command("up", "--hub", str(self.hub), *arguments)

    def rules(self) -> str:
        """All that `up` may change of the firewall."""
        tables = [("iptables", table) for table in ("filter", "nat", "mangle", "raw")]
        return "".join(
            self.engine.on_host(command, "-t", table, "-S") for command, table in [*tables, ("ip6tables", "raw")]
        )

    def probe(self) -> list[ProbeResult]:
        """From a container as a server has it, on the servers' network."""
        return run_probes(
            self.client, IMAGE, NETWORK, self.hub, host=IPv4Address(self.engine.address), world=self.world
        )

    def heard(self) -> set[str]:
        """Listeners to which something came."""
        return {name for name, one in self.listeners.items() if one.heard}


@contextlib.contextmanager
def hospital(name: str, build: BuildEngine, *, own_resolver: bool) -> Iterator[Hospital]:
    """A site's host. With `own_resolver`, its resolver is on its loopback; otherwise, on the internet."""
    with contextlib.ExitStack() as made:
        engine = Engine(
            ENGINES / f"isolation-{name}",
            options=["--ipv6", "--fixed-cidr-v6=fd00:77::/64"],  # of the default network
        )
        engine.nameserver = "127.0.0.1" if own_resolver else engine.internet_address
        made.enter_context(engine)
        engine.load(IMAGE, build)
        client = made.enter_context(contextlib.closing(engine.tls_client()))
        listeners, hub_port, other_hub_port = listen_around(engine, made)
        world = World(
            internet=engine.internet_address,
            internet6=INTERNET6,
            resolvers=[engine.internet_address],
            host_ports=[22],
            hub_ports=[other_hub_port],
        )
        yield Hospital(
            engine=engine,
            client=client,
            unprotected=make_open_network(client) if own_resolver else "bridge",
            hub=Endpoint(IPv4Address(engine.hub_address), hub_port),
            world=world,
            listeners=listeners,
        )


def listen_around(engine: Engine, made: contextlib.ExitStack) -> tuple[dict[str, Listener], int, int]:
    """All listeners, and the ports of the Hub and of something else on its host."""
    engine.on_host("ip", "address", "add", f"{METADATA}/32", "dev", "lo")
    engine.on_host("ip", "address", "add", f"{INTERNET6}/128", "dev", "lo", "nodad")
    internet = engine.internet_address
    hub, beside_the_hub = bind(TCP, engine.hub_address, 0), bind(TCP, engine.hub_address, 0)
    listeners: dict[str, Listener] = {}

    def listen(name: str, answer: Callable[[bytes], bytes], *sockets: socket.socket) -> None:
        listeners[name] = Listener(answer, *sockets)
        made.callback(listeners[name].close)

    listen("hub", lambda _: HTTP_ANSWER, hub)
    listen("beside the hub", echo, beside_the_hub)
    listen("internet", echo, bind(TCP, internet, 80), bind(TCP, internet, 443))
    listen("internet UDP", echo, bind(UDP, internet, 443))
    listen("internet DNS", dns_answer, bind(UDP, internet, 53), bind(TCP, internet, 53))
    listen("host", echo, engine.bind(TCP, "0.0.0.0", 22))
    listen("host's API", echo, engine.bind(TCP, "0.0.0.0", 2375))
    listen("host's DNS", dns_answer, engine.bind(UDP, "0.0.0.0", 53), engine.bind(TCP, "0.0.0.0", 53))
    listen("metadata", echo, engine.bind(TCP, METADATA, 80))
    listen("internet IPv6", echo, engine.bind(TCP, INTERNET6, 80))
    return listeners, hub.getsockname()[1], beside_the_hub.getsockname()[1]


def echo(data: bytes) -> bytes:
    return data


def make_open_network(client: docker.DockerClient) -> str:
    """A network as Docker makes it when it is told nothing but to have IPv6."""
    pools = docker.types.IPAMConfig(pool_configs=[docker.types.IPAMPool(subnet="fd00:78::/64")])
    return str(client.networks.create("open", enable_ipv6=True, ipam=pools).name)


HOSPITALS = {"st-anna": False, "vall-verde": True}


@pytest.fixture(scope="module")
def hospitals(build_engine: BuildEngine) -> Iterator[dict[str, Hospital]]:
    with contextlib.ExitStack() as made:
        yield {
            name: made.enter_context(hospital(name, build_engine, own_resolver=own)) for name, own in HOSPITALS.items()
        }


in_each = pytest.mark.parametrize("site", HOSPITALS, indirect=True)
"""Run a test in each hospital; others run in the first."""


@pytest.fixture
def site(request: pytest.FixtureRequest, hospitals: dict[str, Hospital]) -> Iterator[Hospital]:
    """A hospital with nothing set up and nothing heard yet; nothing stays set up."""
    chosen = hospitals[getattr(request, "param", "st-anna")]
    # What Docker itself keeps apart, this administrator has opened. Docker wants the second rule, and puts it back.
    chosen.engine.on_host("iptables", "-F", "DOCKER-USER")
    for verdict in ("ACCEPT", "RETURN"):
        chosen.engine.on_host("iptables", "-A", "DOCKER-USER", "-j", verdict)
    for one in chosen.listeners.values():
        one.heard.clear()
    yield chosen
    for container in chosen.client.containers.list(all=True):
        container.remove(force=True)
    assert chosen.command("down").returncode == 0


@contextlib.contextmanager
def container(site: Hospital, *command: str, **options: object) -> Iterator[Container]:
    made = site.client.containers.run(IMAGE, list(command), entrypoint=["python3"], detach=True, **options)
    try:
        yield made
    finally:
        made.remove(force=True)


def surroundings_of(site: Hospital, network: str) -> contextlib.AbstractContextManager[Targets]:
    return surroundings(site.client, IMAGE, network, site.hub, host=IPv4Address(site.engine.address), world=site.world)


def wrong(results: Sequence[ProbeResult]) -> dict[str, str]:
    return {one.name: one.found for one in results if not one.ok}


@in_each
def test_where_nothing_protects_every_probe_gets_through(site: Hospital) -> None:
    socket_mount = {site.engine.host.removeprefix("unix://"): {"bind": "/var/run/docker.sock"}}
    with (
        surroundings_of(site, site.unprotected) as targets,
        container(site, "-c", WAITING, network=site.unprotected, volumes=socket_mount) as inside,
    ):
        results = probe_container(inside, targets)
    assert len(results) >= 20
    assert wrong(results).keys() == {one.name for one in results if one.expected == EXPECTED_REFUSAL}
    assert site.heard() == site.listeners.keys()


@in_each
def test_on_the_servers_network_the_hub_answers_and_nothing_else(site: Hospital) -> None:
    assert site.up().returncode == 0
    results = site.probe()
    assert len(results) >= 20
    assert wrong(results) == {}
    assert site.heard() == {"hub"}


@in_each
def test_a_container_without_a_network_reaches_not_even_the_hub(site: Hospital) -> None:
    assert site.up().returncode == 0
    settings = {name: value for name, value in AS_A_SERVER.items() if name != "dns"}
    with (
        surroundings_of(site, NETWORK) as targets,
        container(site, "-c", WAITING, network_mode="none", **settings) as inside,
    ):
        assert wrong(probe_container(inside, targets, hub_answers=False)) == {}
        assert wrong(probe_container(inside, targets)).keys() == {"hub"}
    assert site.heard() == set()


def test_the_check_command_tells_by_its_table_and_status(site: Hospital) -> None:
    assert site.up().returncode == 0
    internet = ("--internet", site.engine.internet_address)
    check = ("check", "--hub", str(site.hub), "--image", IMAGE, *internet)
    good = site.command(*check)
    assert good.returncode == 0, good.stdout + good.stderr
    assert good.stdout.count("\nok ") >= 20
    assert "FAILED" not in good.stdout

    bad = site.command(*check, "--network", site.unprotected)
    assert bad.returncode == 1, bad.stdout + bad.stderr
    assert re.search(r"FAILED +internet by TCP +refused +connected", bad.stdout)
    assert "run `python -m spawner.site up` on the site's host again" in bad.stdout

    remote = subprocess.run(
        [
            *(sys.executable, "-m", "spawner.site", *check, "--docker-host", site.engine.url),
            *("--tls-dir", str(site.engine.certificates.authority.parent)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert remote.returncode == 0, remote.stdout + remote.stderr


def test_nothing_is_left_after_a_check(site: Hospital) -> None:
    assert site.up().returncode == 0
    before = networks(site)
    site.probe()
    assert site.client.containers.list(all=True) == []
    assert networks(site) == before


def networks(site: Hospital) -> set[str]:
    return {one.name for one in site.client.networks.list()}


def test_a_second_up_changes_nothing_and_down_takes_all_back(site: Hospital) -> None:
    before, networks_before = site.rules(), networks(site)
    assert site.up().returncode == 0
    first = site.rules()
    assert first != before
    again = site.up()
    assert again.returncode == 0, again.stderr
    assert site.rules() == first
    assert networks(site) == networks_before | {NETWORK}
    for _ in range(2):
        done = site.command("down")
        assert done.returncode == 0, done.stderr
        assert site.rules() == before
        assert networks(site) == networks_before


def test_an_up_for_another_hub_takes_the_place_of_the_first(site: Hospital) -> None:
    first = site.up()
    assert first.returncode == 0
    rules = site.rules()
    elsewhere = site.command("up", "--hub", f"{site.engine.internet_address}:80")
    assert elsewhere.returncode == 0
    assert wrong(site.probe()).keys() == {"hub", "internet-tcp"}
    assert site.up().returncode == 0
    assert site.rules() == rules


def test_two_networks_stand_side_by_side(site: Hospital) -> None:
    assert site.up().returncode == 0
    other = site.up("--network", "trials", "--subnet", "10.201.0.0/24")
    assert other.returncode == 0, other.stderr
    assert "10.201.0.0/24" in other.stdout
    assert wrong(site.probe()) == {}
    assert site.command("down", "--network", "trials").returncode == 0
    assert wrong(site.probe()) == {}


def test_it_holds_after_a_restart_of_docker(site: Hospital) -> None:
    assert site.up().returncode == 0
    site.engine.restart()
    assert wrong(site.probe()) == {}


def test_after_a_reboot_the_rules_must_be_set_before_docker_starts(site: Hospital, tmp_path: Path) -> None:
    """What the unit file of docs/site-isolation.md does: the printed script, with `rules`, before docker.service."""
    assert site.up().returncode == 0
    script = tmp_path / "isolation"
    script.write_text(site.up("--print").stdout, encoding="utf-8")
    site.engine.halt()
    site.engine.boot()
    assert {"internet-tcp", "host", "neighbour-published"} <= wrong(site.probe()).keys()
    site.engine.halt()
    site.engine.on_host("sh", str(script), "rules")
    site.engine.boot()
    assert wrong(site.probe()) == {}


@pytest.mark.parametrize(
    ("undone", "found"),
    [
        (("iptables", "-I", "DOCKER-USER", "-j", "ACCEPT"), "internet-tcp"),
        (("iptables", "-D", "INPUT", "-i", DEFAULT_BRIDGE, "-j", f"{DEFAULT_BRIDGE}-from"), "host"),
        (("sh", "-c", "echo 0 > /proc/sys/net/bridge/bridge-nf-call-iptables"), "neighbour"),
    ],
)
def test_a_check_finds_what_somebody_has_undone_and_up_mends_it(
    site: Hospital, undone: tuple[str, ...], found: str
) -> None:
    assert site.up().returncode == 0
    site.engine.on_host(*undone)
    assert found in wrong(site.probe())
    assert site.up().returncode == 0
    assert wrong(site.probe()) == {}


def test_a_container_that_has_ipv6_all_the_same_gets_nowhere_by_it(site: Hospital) -> None:
    assert site.up().returncode == 0
    site.engine.on_host("ip", "-6", "address", "add", "fe80::1/64", "dev", DEFAULT_BRIDGE, "nodad")
    attempts = json.dumps([{"kind": "ipv6-address"}, {"kind": "tcp", "address": "fe80::1%eth0", "port": 22}])
    asking = ["python3", *probe_arguments_of(attempts)]
    settled = "import time\nwhile ' 80     eth0' not in open('/proc/net/if_inet6').read(): time.sleep(0.02)"
    ipv6 = {"net.ipv6.conf.all.disable_ipv6": "0"}
    with container(site, "-c", WAITING, network=NETWORK, sysctls=ipv6, **AS_A_SERVER) as inside:
        assert inside.exec_run(["python3", "-c", settled]).exit_code == 0
        address, host = json.loads(inside.exec_run(asking).output)
        assert address["through"]
        assert not host["through"]
        site.engine.on_host("ip6tables", "-t", "raw", "-D", "PREROUTING", "-i", DEFAULT_BRIDGE, "-j", "DROP")
        _, host = json.loads(inside.exec_run(asking).output)
        assert host == {"through": True, "found": "reached; nothing listens there"}


def probe_arguments_of(attempts: str) -> list[str]:
    program = resources.files("spawner.site").joinpath("inside.py").read_text(encoding="utf-8")
    return ["-c", program, "try", attempts]


SERVER = f"import http.server; http.server.test(http.server.SimpleHTTPRequestHandler, port={NEIGHBOUR_PORT})"


@in_each
def test_only_the_hubs_proxy_reaches_a_servers_published_port(site: Hospital) -> None:
    assert site.up().returncode == 0
    port = f"{NEIGHBOUR_PORT}/tcp"
    with container(
        site, "-c", SERVER, network=NETWORK, ports={port: (site.engine.address, None)}, **AS_A_SERVER
    ) as server:
        server.reload()
        address = server.attrs["NetworkSettings"]["Networks"][NETWORK]["IPAddress"]
        published = int(server.attrs["NetworkSettings"]["Ports"][port][0]["HostPort"])
        wait_until_it_listens(server)
        asking = f"import urllib.request; urllib.request.urlopen('http://{site.engine.address}:{published}', timeout=1)"

        assert answers((site.engine.address, published), source=site.engine.hub_address)
        assert not answers((site.engine.address, published), source=site.engine.internet_address)
        with pytest.raises(EngineError, match="timed out"):
            site.engine.on_host(sys.executable, "-c", asking)
        with container(site, "-c", asking, network=site.unprotected) as elsewhere:
            assert elsewhere.wait()["StatusCode"] != 0
            assert b"timed out" in elsewhere.logs()
        # Nor by its own address, for whoever takes the site's host as a router.
        with routed(site, address):
            assert not answers((address, NEIGHBOUR_PORT), source=site.engine.internet_address)


def test_a_hub_on_the_sites_own_host_reaches_servers_by_their_own_address(site: Hospital) -> None:
    gateway, hub = "10.201.0.1", f"{site.engine.address}:22"
    done = site.command("up", "--hub", hub, "--hub-source", gateway, "--subnet", "10.201.0.0/24")
    assert done.returncode == 0, done.stderr
    with container(site, "-c", SERVER, network=NETWORK, **AS_A_SERVER) as server:
        server.reload()
        wait_until_it_listens(server)
        address = server.attrs["NetworkSettings"]["Networks"][NETWORK]["IPAddress"]
        asking = f"import urllib.request; urllib.request.urlopen('http://{address}:{NEIGHBOUR_PORT}', timeout=1)"
        site.engine.on_host(sys.executable, "-c", asking)
        tries = json.dumps([{"kind": "tcp", "address": site.engine.address, "port": port} for port in (22, 2375)])
        to_the_hub, beside_it = json.loads(server.exec_run(["python3", *probe_arguments_of(tries)]).output)
    assert to_the_hub["through"]
    assert not beside_it["through"]


def wait_until_it_listens(server: Container) -> None:
    loop = f"import socket, time\nwhile socket.socket().connect_ex(('127.0.0.1', {NEIGHBOUR_PORT})): time.sleep(0.02)"
    assert server.exec_run(["python3", "-c", loop]).exit_code == 0


def answers(address: tuple[str, int], *, source: str) -> bool:
    """Whether a web server answers: Docker's own proxy takes any connection to a published port."""
    try:
        with socket.create_connection(address, timeout=1, source_address=(source, 0)) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return connection.recv(4).startswith(b"HTTP")
    except OSError:
        return False


@contextlib.contextmanager
def routed(site: Hospital, address: str) -> Iterator[None]:
    subprocess.run(["ip", "route", "add", f"{address}/32", "via", site.engine.address], check=True)
    try:
        yield
    finally:
        subprocess.run(["ip", "route", "delete", f"{address}/32"], check=True)


@pytest.mark.parametrize("site", ["vall-verde"], indirect=True)
def test_dockers_resolver_would_ask_the_world_for_a_server(site: Hospital) -> None:
    """Why servers get a resolver that there is not: Docker's own asks from the host's side, past every rule."""
    assert site.up().returncode == 0
    careless = {name: value for name, value in AS_A_SERVER.items() if not name.startswith("dns")}
    with (
        surroundings_of(site, NETWORK) as targets,
        container(site, *probe_arguments(targets), network=NETWORK, **careless) as inside,
    ):
        inside.wait()
        assert wrong(judge(inside.logs(stderr=False).decode(), targets)).keys() == {"dns-own"}
    assert site.heard() == {"hub", "host's DNS"}


def test_down_leaves_a_network_that_servers_use(site: Hospital) -> None:
    assert site.up().returncode == 0
    rules = site.rules()
    with container(site, "-c", WAITING, network=NETWORK, name="jupyter-amara"):
        refused = site.command("down")
        assert refused.returncode == 2
        assert refused.stderr == (
            "notebook-federator: these servers run on federation; stop them from the Hub, then come again: "
            "jupyter-amara \n"
        )
        assert site.rules() == rules


def test_a_network_of_another_make_is_not_taken_over(site: Hospital) -> None:
    site.client.networks.create(NETWORK)
    refused = site.up()
    assert refused.returncode == 2
    assert "there is a network federation of another make" in refused.stderr
    assert "docker network rm federation" in refused.stderr
    assert site.command("down").returncode == 0

    assert site.up("--subnet", "10.201.0.0/24").returncode == 0
    refused = site.up("--subnet", "10.202.0.0/24")
    assert refused.returncode == 2
    assert "has the subnet 10.201.0.0/24, not 10.202.0.0/24" in refused.stderr


def test_what_stops_the_script_halfway_is_told(site: Hospital) -> None:
    site.engine.on_host("ip", "link", "add", "nfed0", "type", "veth", "peer", "name", "taken")
    try:
        stopped = site.up()
    finally:
        site.engine.on_host("ip", "link", "delete", "nfed0")
    assert stopped.returncode == 2
    docker_said, told = stopped.stderr.splitlines()
    assert "nfed0" in docker_said
    assert told == "notebook-federator: the line above stopped it; correct that and run this again"


def test_what_is_missing_is_told_in_one_line(site: Hospital, tmp_path: Path) -> None:
    script = site.up("--print").stdout
    cases = {
        "run this as root": ["setpriv", "--reuid", "65534", "--clear-groups", "sh"],
        "there is no iptables here": ["env", f"PATH={tools(tmp_path / 'a', 'id')}", "/bin/sh"],
        "there is no docker command here": [
            "env",
            f"PATH={tools(tmp_path / 'b', 'id', 'iptables', 'iptables-restore', 'ip6tables')}",
            "/bin/sh",
        ],
    }
    for text, shell in cases.items():
        done = subprocess.run(
            ["ip", "netns", "exec", site.engine.namespace, *shell],
            input=script,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2, done.stderr
        assert text in done.stderr
        assert done.stderr.count("\n") == 1
    nobody = subprocess.run(
        [sys.executable, "-m", "spawner.site", "down", "--docker-host", "unix:///nowhere/docker.sock"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert nobody.returncode == 2
    assert nobody.stderr == "notebook-federator: Docker does not answer at unix:///nowhere/docker.sock; start it\n"


def tools(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        (folder / name).symlink_to(shutil.which(name) or name)
    return folder


def test_what_a_check_cannot_do_is_told_in_one_line(site: Hospital) -> None:
    assert site.up().returncode == 0
    check = ("check", "--hub", str(site.hub))
    cases = {
        "no network nowhere: `python -m spawner.site up` makes it": ("--image", IMAGE, "--network", "nowhere"),
        "no image nobody/nothing:1": ("--image", "nobody/nothing:1"),
    }
    for text, arguments in cases.items():
        done = site.command(*check, *arguments)
        assert done.returncode == 2
        assert text in done.stderr
        assert done.stderr.count("\n") == 1
    assert site.client.containers.list(all=True) == []
