"""The site's administrator's commands without an engine: arguments, the script's text, the probes, the table."""

from __future__ import annotations

import contextlib
import gc
import http.server
import json
import os
import re
import socket
import ssl
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from spawner.site import inside
from spawner.site.__main__ import main
from spawner.site.engine import EngineError, connected
from spawner.site.isolation import DEFAULT_BRIDGE, Endpoint, SettingsError, bridge_of, down_script, up_script
from spawner.site.probes import (
    EXPECTED_ANSWER,
    Neighbour,
    ProbeError,
    ProbeResult,
    Targets,
    World,
    judge,
    probe_arguments,
    probes_of,
)
from spawner.site.report import table
from spawner.sites import NETWORK
from tests.fakes.certificates import loopback_certificates

HUB = Endpoint(IPv4Address("203.0.113.10"), 443)
LOOPBACK = "127.0.0.1"


# --- what the administrator types


def test_an_endpoint_is_read_as_it_is_written() -> None:
    assert str(Endpoint.parse("203.0.113.10:443")) == "203.0.113.10:443"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("hub.example:443", "is not ADDRESS:PORT with an IPv4 address"),
        ("203.0.113.10", "is not ADDRESS:PORT"),
        ("https://203.0.113.10:443", "is not ADDRESS:PORT"),
        ("[2001:db8::1]:443", "is not ADDRESS:PORT"),
        ("203.0.113.300:443", "is not ADDRESS:PORT"),
        ("203.0.113.10:https", "has no port"),
        ("203.0.113.10:0", "has no port"),
        ("203.0.113.10:65536", "has no port"),
        ("203.0.113.10:٤٤٣", "has no port"),
    ],
)
def test_what_is_no_endpoint_is_refused(text: str, problem: str) -> None:
    with pytest.raises(SettingsError, match=problem):
        Endpoint.parse(text)


def test_every_network_has_an_interface_of_its_own_that_the_kernel_can_name() -> None:
    names = [NETWORK, "federation2", "a" * 200, "Trials_2026.b"]
    bridges = [bridge_of(name) for name in names]
    assert bridges[0] == DEFAULT_BRIDGE
    assert len(set(bridges)) == len(names)
    assert all(len(bridge) <= 15 for bridge in bridges)


@pytest.mark.parametrize("name", ["", "-rm", "a b", "a;reboot", "$(reboot)", "a\nreboot", "ä"])
def test_a_name_that_docker_would_not_take_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match="no name of a Docker network"):
        up_script(HUB, network=name)


@pytest.mark.parametrize("host", ["", "/var/run/docker.sock", "unix:///a b", "$(reboot)"])
def test_an_engines_address_that_is_none_is_refused(host: str) -> None:
    with pytest.raises(SettingsError, match="no engine's address"):
        down_script(docker_host=host)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["up"], "the following arguments are required: --hub"),
        (["up", "--hub", "hub.example:443"], "is not ADDRESS:PORT with an IPv4 address, such as 203.0.113.10:443"),
        (["up", "--hub", str(HUB), "--hub-source", "proxy"], "argument --hub-source"),
        (["up", "--hub", str(HUB), "--subnet", "10.1.2.3/24"], "has host bits set"),
        (["check", "--hub", str(HUB)], "the following arguments are required: --image"),
        ([], "up|check|down"),
    ],
)
def test_wrong_arguments_are_told(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def test_a_name_that_cannot_be_used_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["up", "--hub", str(HUB), "--network", "a b", "--print"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("notebook-federator: 'a b' is no name of a Docker network")
    assert captured.err.count("\n") == 1


# --- the scripts


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main([*arguments, "--print"]) == 0
    return capsys.readouterr().out


def test_what_is_printed_is_the_script(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    assert printed(capsys, "up", "--hub", str(HUB)) == up_script(HUB)
    assert printed(capsys, "down") == down_script()
    full = printed(
        capsys,
        *("up", "--hub", str(HUB), "--hub-source", "198.51.100.7", "--network", "trials", "--subnet", "10.9.0.0/24"),
        *("--docker-host", "unix:///run/d.sock"),
    )
    assert full == up_script(
        HUB,
        hub_source=IPv4Address("198.51.100.7"),
        network="trials",
        subnet=IPv4Network("10.9.0.0/24"),
        docker_host="unix:///run/d.sock",
    )


SCRIPTS = {
    "up": up_script(HUB),
    "up with everything": up_script(
        HUB,
        hub_source=IPv4Address("198.51.100.7"),
        network="trials",
        subnet=IPv4Network("10.9.0.0/24"),
        docker_host="unix:///run/it's.sock",
    ),
    "down": down_script(),
    "down for another network": down_script(network="trials", docker_host="unix:///run/d.sock"),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_one_for_any_posix_shell_and_for_a_reader(name: str) -> None:
    script = SCRIPTS[name]
    subprocess.run(["/bin/sh", "-n"], input=script, text=True, check=True)
    assert script.startswith("#!/bin/sh\n")
    assert "\nset -eu\n" in script
    assert "@SETTINGS@" not in script
    assert len(script.splitlines()) <= 110
    # A here-document is expanded: an apostrophe-less quote of a command in a comment would run it.
    assert "`" not in script
    assert all(len(line) <= 140 for line in script.splitlines())


def settings_of(script: str) -> dict[str, str]:
    """What a shell makes of the lines at the top."""
    names = re.findall(r"^(?:export )?([A-Z_]+)=", script, flags=re.M)
    top = script[: script.index("fail()")]
    shown = "".join(f'printf "%s\\n" "${name}"; ' for name in names)
    done = subprocess.run(["/bin/sh"], input=top + shown, capture_output=True, text=True, check=True)
    return dict(zip(names, done.stdout.splitlines(), strict=True))


def test_the_settings_reach_the_shell_as_they_were_typed() -> None:
    assert settings_of(SCRIPTS["up"]) == {
        "HUB": "203.0.113.10",
        "HUB_PORT": "443",
        "HUB_SOURCE": "203.0.113.10",
        "SUBNET": "",
        "LABEL": "org.notebook-federator.network=federation",
        "NETWORK": "federation",
        "BRIDGE": "nfed0",
        "FROM": "nfed0-from",
        "TO": "nfed0-to",
    }
    everything = settings_of(SCRIPTS["up with everything"])
    assert everything["HUB_SOURCE"] == "198.51.100.7"
    assert everything["SUBNET"] == "10.9.0.0/24"
    assert everything["DOCKER_HOST"] == "unix:///run/it's.sock"
    assert everything["FROM"] == f"{bridge_of('trials')}-from"


def test_rules_come_before_the_network_and_every_chain_ends_in_a_refusal() -> None:
    script = SCRIPTS["up"]
    assert script.index("\nCOMMIT\nRULES\n") < script.index("docker network create")
    chains = re.findall(r"^-A (\S+) .*-j (\S+)", script, flags=re.M)
    verdicts = {name: [verdict for chain, verdict in chains if chain == name] for name in ("$FROM", "$TO")}
    assert verdicts == {"$FROM": ["RETURN", "RETURN", "REJECT"], "$TO": ["RETURN", "RETURN", "DROP"]}
    # Nothing is ever let through past the site's own rules.
    assert "ACCEPT" not in script


def test_what_is_hooked_in_is_taken_out() -> None:
    hooked = set(re.findall(r"^-I (\S+) (-[io]) \$BRIDGE -j (\S+)", SCRIPTS["up"], flags=re.M))
    again = set(re.findall(r'again \w+ -C (\S+) (-[io]) "\$BRIDGE" -j "(\S+)"', SCRIPTS["up"]))
    unhooked = set(re.findall(r'^unhook \w+ (\S+) (-[io]) "(\S+)"', SCRIPTS["down"], flags=re.M))
    assert (
        hooked
        == again
        == unhooked
        == {("DOCKER-USER", "-i", "$FROM"), ("INPUT", "-i", "$FROM"), ("POSTROUTING", "-o", "$TO")}
    )


def test_a_script_that_cannot_go_on_ends_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """On a host without the tools: nothing has been done by then."""
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "id").symlink_to("/usr/bin/id")
    assert main(["up", "--hub", str(HUB)]) == 2
    assert main(["down"]) == 2
    told = capfd.readouterr().err.splitlines()
    wanted = "there is no iptables here" if os.geteuid() == 0 else "run this as root"
    assert len(told) == 2
    assert all(line.startswith("notebook-federator: ") and wanted in line for line in told)


# --- a client of the engine


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # docker-py's, where a Unix socket is not there
@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("unix:///nowhere/docker.sock", "does not answer: .*No such file"),
        ("tcp://127.0.0.1:1", "does not answer: .*refused"),
        ("nonsense://x", "does not answer: "),
    ],
)
def test_an_engine_that_is_not_there(address: str, told: str) -> None:
    with pytest.raises(EngineError, match=f"the engine at {address} {told}"), connected(address, None):
        pass
    gc.collect()


@pytest.mark.parametrize("engine", ["tcp://127.0.0.1:1", "tcp://localhost:1"])
def test_a_check_of_an_engine_that_is_not_there(engine: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--hub", str(HUB), "--image", "x", "--docker-host", engine]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"notebook-federator: the engine at {engine} does not answer: ")
    assert captured.err.count("\n") == 1


def test_certificates_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["check", "--hub", str(HUB), "--image", "x", "--docker-host", "tcp://127.0.0.1:1"]
    assert main([*arguments, "--tls-dir", str(tmp_path)]) == 2
    assert "Path to a certificate and key files must be provided" in capsys.readouterr().err


class Refusing(http.server.BaseHTTPRequestHandler):
    """An engine that does not let us in."""

    def do_GET(self) -> None:
        body = b'{"message": "authorization denied by plugin"}'
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_an_engine_that_refuses() -> None:
    with serving(Refusing) as port:
        address = f"tcp://127.0.0.1:{port}"
        with pytest.raises(EngineError, match="refused: authorization denied by plugin"), connected(address, None):
            pass


# --- the program that runs inside, here against listeners on loopback


@contextlib.contextmanager
def serving(handler: type[http.server.BaseHTTPRequestHandler], tls: ssl.SSLContext | None = None) -> Iterator[int]:
    server = http.server.HTTPServer((LOOPBACK, 0), handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def answering(kind: socket.SocketKind, answer: Callable[[bytes], bytes]) -> Iterator[int]:
    """Answer once, on a port of loopback."""
    with socket.socket(socket.AF_INET, kind) as server:
        server.bind((LOOPBACK, 0))
        if kind == socket.SOCK_STREAM:
            server.listen()

        def serve() -> None:
            if kind == socket.SOCK_DGRAM:
                data, sender = server.recvfrom(4096)
                server.sendto(answer(data), sender)
                return
            connection, _ = server.accept()
            with connection:
                connection.sendall(answer(connection.recv(4096)))

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        thread.join()


@contextlib.contextmanager
def closed_port() -> Iterator[int]:
    """A port that nobody listens on, and that nobody else gets meanwhile."""
    with socket.socket() as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as elsewhere:
        tcp.bind((LOOPBACK, 0))
        elsewhere.bind((LOOPBACK, 0))
        yield tcp.getsockname()[1]


def attempt(kind: str, **arguments: object) -> tuple[bool, str]:
    outcome = inside.attempt({"kind": kind, **arguments})
    return outcome["through"], outcome["found"]


def on_loopback(kind: str, port: int, **arguments: object) -> tuple[bool, str]:
    return attempt(kind, address=LOOPBACK, port=port, **arguments)


def dns_answer(code: int) -> Callable[[bytes], bytes]:
    return lambda query: query[:2] + struct.pack("!HHHHH", 0x8180 | code, 1, 0, 0, 0) + query[12:]


def dns_answer_by_tcp(query: bytes) -> bytes:
    answer = dns_answer(0)(query[2:])
    return struct.pack("!H", len(answer)) + answer


def test_tcp() -> None:
    with serving(Refusing) as port:
        assert on_loopback("tcp", port) == (True, "connected")


@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_a_machine_that_says_that_nothing_listens_was_reached(kind: str) -> None:
    with closed_port() as port:
        assert on_loopback(kind, port) == (True, "reached; nothing listens there")
        for transport in ("tcp", "udp"):
            found = on_loopback("dns", port, name="example.com", transport=transport)
            assert found == (True, "reached; nothing listens there")


def test_udp() -> None:
    with answering(socket.SOCK_DGRAM, lambda data: data + b"!") as port:
        assert on_loopback("udp", port) == (True, "answered with 6 bytes")


def test_silence_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inside, "TIMEOUT", 0.05)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind((LOOPBACK, 0))
        assert on_loopback("udp", silent.getsockname()[1]) == (False, "no answer")


def test_dns() -> None:
    with answering(socket.SOCK_DGRAM, dns_answer(5)) as port:
        found = on_loopback("dns", port, name="example.com", transport="udp")
        assert found == (True, "answered with code 5")
    with answering(socket.SOCK_STREAM, dns_answer_by_tcp) as port:
        found = on_loopback("dns", port, name="example.com", transport="tcp")
        assert found == (True, "answered with code 0")
    with answering(socket.SOCK_DGRAM, lambda _: b"?") as port:
        found = on_loopback("dns", port, name="example.com", transport="udp")
        assert found == (True, "reached; no DNS answer, but 1 bytes")


@pytest.mark.parametrize(
    ("lines", "outcome"),
    [
        ("search example.com\n", (False, "no resolver")),
        ("nameserver 127.0.0.1\n", (False, "127.0.0.1: connection refused")),
        ("nameserver ::1\nnameserver 127.0.0.1\n", (False, "::1: connection refused; 127.0.0.1: connection refused")),
    ],
)
def test_a_resolver_that_there_is_not(tmp_path: Path, lines: str, outcome: tuple[bool, str]) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text(lines)
    assert attempt("resolve", name="example.com", transport="tcp", file=str(file)) == outcome


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        (0, (True, "127.0.0.1 answered with code 0")),
        (3, (True, "127.0.0.1 answered with code 3")),
        (2, (False, "127.0.0.1: code 2")),
    ],
)
def test_a_resolver_that_asked_somebody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, outcome: tuple[bool, str]
) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text("nameserver 127.0.0.1\n")
    with answering(socket.SOCK_DGRAM, dns_answer(code)) as port:
        monkeypatch.setattr(inside, "DNS_PORT", port)
        assert attempt("resolve", name="example.com", transport="udp", file=str(file)) == outcome


def test_spreading() -> None:
    with answering(socket.SOCK_DGRAM, lambda data: data) as port:
        assert on_loopback("spread", port) == (True, "answered by 127.0.0.1")


@pytest.mark.parametrize(
    ("lines", "outcome"),
    [
        (None, (False, "has none")),
        ("00000000000000000000000000000001 01 80 10 80       lo\n", (False, "has none")),
        (
            "00000000000000000000000000000001 01 80 10 80       lo\n"
            "fe80000000000000004242fffe110002 02 40 20 80     eth0\n",
            (True, "has fe80::42:42ff:fe11:2"),
        ),
    ],
)
def test_an_ipv6_address(tmp_path: Path, lines: str | None, outcome: tuple[bool, str]) -> None:
    file = tmp_path / "if_inet6"
    if lines is not None:
        file.write_text(lines)
    assert attempt("ipv6-address", file=str(file)) == outcome


def test_files(tmp_path: Path) -> None:
    assert attempt("unix-socket", path=str(tmp_path / "docker.sock")) == (False, "not there")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "docker.sock"))
    assert attempt("unix-socket", path=str(tmp_path / "docker.sock")) == (True, "is there")
    assert attempt("write", folder=str(tmp_path)) == (True, "written")
    assert attempt("write", folder=str(tmp_path / "nowhere")) == (False, "no such file or directory")
    assert [one.name for one in tmp_path.iterdir()] == ["docker.sock"]


@pytest.mark.parametrize(
    ("user", "capabilities", "locked", "through"),
    [
        ("1000", "0000000000000000", "1", False),
        ("0", "0000000000000000", "1", True),
        ("1000", "00000000a80425fb", "1", True),
        ("1000", "0000000000000000", "0", True),
    ],
)
def test_privileges(tmp_path: Path, user: str, capabilities: str, locked: str, through: bool) -> None:
    file = tmp_path / "status"
    uids = "\t".join([user] * 4)
    file.write_text(f"Name:\tpython3\nUid:\t{uids}\nCapBnd:\t{capabilities}\nNoNewPrivs:\t{locked}\n")
    found = attempt("privileges", file=str(file))
    assert found[0] is through
    assert found[1].startswith(f"user {user}, {14 if 'a8' in capabilities else 0} capabilities")


def test_raw_sockets_are_for_root() -> None:
    assert attempt("raw-socket")[0] == (os.geteuid() == 0)


def test_posing_as_another_needs_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "if_nameindex", lambda: [(1, "lo")])
    assert attempt("claim-address", address="192.0.2.1") == (False, "no network")


def test_ping_is_for_the_groups_that_the_kernel_lets() -> None:
    low, high = map(int, Path("/proc/sys/net/ipv4/ping_group_range").read_text().split())
    allowed = any(low <= group <= high for group in {os.getegid(), *os.getgroups()})
    assert attempt("ping", address=LOOPBACK) == ((True, "answered") if allowed else (False, "permission denied"))


def test_http(tmp_path: Path) -> None:
    with serving(Refusing) as port:
        assert on_loopback("http", port) == (True, "answered HTTP/1.0 403")
    with serving(Refusing, loopback_certificates(tmp_path).server) as port:
        assert on_loopback("http", port) == (True, "answered HTTP/1.0 403 by TLS")
    with closed_port() as port:
        assert on_loopback("http", port) == (False, "connection refused")


@pytest.fixture
def neighbour() -> Iterator[int]:
    """The program as the other end, on a port of its own; started as a module, so that coverage sees it."""
    with closed_port() as port:
        pass
    program = [sys.executable, "-m", "spawner.site.inside"]
    with subprocess.Popen([*program, "listen", str(port)]) as listening:
        subprocess.run([*program, "await", str(port)], check=True)
        yield port
        listening.terminate()


def test_the_other_end(neighbour: int) -> None:
    assert on_loopback("tcp", neighbour) == (True, "connected")
    assert on_loopback("udp", neighbour) == (True, "answered with 5 bytes")
    assert on_loopback("spread", neighbour) == (True, "answered by 127.0.0.1")
    assert on_loopback("http", neighbour) == (True, "answered HTTP/1.0 200")


def test_waiting_for_the_other_end_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inside, "LISTEN_SECONDS", 0.01)
    with closed_port() as port, pytest.raises(TimeoutError, match=f"nobody listens on {port}"):
        inside.main("await", str(port))


# --- what is tried, and what is made of it

NEAR = Neighbour("172.30.0.3", "fe80::42:acff:fe1e:3", Endpoint(IPv4Address("172.30.0.1"), 32768))
FAR = Neighbour("172.31.0.2", "fe80::42:acff:fe1f:2", Endpoint(IPv4Address("172.31.0.1"), 32769))
TARGETS = Targets(HUB, ["172.30.0.1", "192.0.2.20"], "172.30.255.255", NEAR, FAR, World(resolvers=["192.0.2.53"]))


def program_output(*, through: set[str]) -> str:
    """As the program prints it, when the probes of these names get through."""
    return json.dumps(
        [
            {"through": probe.name in through, "found": "connected" if probe.name in through else "no answer"}
            for probe in probes_of(TARGETS)
            for _ in probe.attempts
        ]
    )


def test_only_the_hub_must_answer_and_every_probe_says_what_to_do() -> None:
    probes = probes_of(TARGETS)
    assert [probe.name for probe in probes if probe.expected == EXPECTED_ANSWER] == ["hub"]
    assert len({probe.name for probe in probes}) == len(probes) >= 20
    assert all(probe.attempts and probe.advice and probe.title for probe in probes)
    assert {attempt["kind"] for probe in probes for attempt in probe.attempts} == set(inside.KINDS)


def test_the_hubs_own_port_is_not_among_its_others() -> None:
    targets = Targets(Endpoint(HUB.address, 8081), ["172.30.0.1"], "172.30.255.255")
    (others,) = (probe for probe in probes_of(targets) if probe.name == "hub-ports")
    assert 8081 not in {attempt["port"] for attempt in others.attempts}
    assert others.attempts


def test_without_neighbours_the_rest_is_tried() -> None:
    alone = {probe.name for probe in probes_of(Targets(HUB, ["172.30.0.1"], "172.30.255.255"))}
    left_out = {probe.name for probe in probes_of(TARGETS)} - alone
    assert left_out == {"neighbour", "neighbour-udp", "neighbour-published", "neighbour-ipv6", "other-network"}


def test_the_program_gets_every_attempt_in_order() -> None:
    option, program, command, attempts = probe_arguments(TARGETS)
    assert (option, command) == ("-c", "try")
    compile(program, "inside", "exec")
    assert json.loads(attempts) == [dict(attempt) for probe in probes_of(TARGETS) for attempt in probe.attempts]


def test_the_program_as_it_is_sent_runs_alone(tmp_path: Path) -> None:
    """With nothing but a bare Python, far from this tree."""
    tries = json.dumps([{"kind": "unix-socket", "path": "/nowhere"}, {"kind": "write", "folder": str(tmp_path)}])
    _, program, command, _ = probe_arguments(TARGETS)
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program, command, tries],
        cwd=tmp_path,
        env={},
        capture_output=True,
        text=True,
        check=True,
    )
    assert [one["through"] for one in json.loads(done.stdout)] == [False, True]


def test_all_as_expected() -> None:
    results = judge(program_output(through={"hub"}), TARGETS)
    assert all(result.ok and not result.advice for result in results)
    assert {result.found for result in results} == {"connected", "no answer"}


@pytest.mark.parametrize("name", [probe.name for probe in probes_of(TARGETS)])
def test_one_that_is_not_as_expected_is_told(name: str) -> None:
    results = judge(program_output(through={"hub"} ^ {name}), TARGETS)
    assert [result.name for result in results if not result.ok] == [name]
    assert [result.name for result in results if result.advice] == [name]


def test_one_attempt_of_several_is_enough() -> None:
    outcomes = json.loads(program_output(through={"hub"}))
    position = [probe.name for probe in probes_of(TARGETS) for _ in probe.attempts].index("host") + 1
    outcomes[position] = {"through": True, "found": "reached; nothing listens there"}
    (host,) = (result for result in judge(json.dumps(outcomes), TARGETS) if not result.ok)
    assert host.found == "reached; nothing listens there"
    assert host.tried == "tcp 172.30.0.1:22,80,443,8080 192.0.2.20:22,80,443,8080"


def test_without_any_network_the_hub_is_expected_to_be_out_of_reach() -> None:
    assert all(result.ok for result in judge(program_output(through=set()), TARGETS, hub_answers=False))
    found = judge(program_output(through={"hub"}), TARGETS, hub_answers=False)
    assert [result.name for result in found if not result.ok] == ["hub"]


@pytest.mark.parametrize(
    ("output", "told"),
    [("", "nothing"), ("Traceback ...\nModuleNotFoundError: No module named 'ssl'\n", "ModuleNotFoundError")],
)
def test_a_program_that_did_not_end_is_told(output: str, told: str) -> None:
    with pytest.raises(ProbeError, match=f"python3 said: {told}"):
        judge(output, TARGETS)


def result(title: str, *, ok: bool, advice: str = "") -> ProbeResult:
    return ProbeResult(title, title, "tcp 192.0.2.1:80", "refused", "no answer" if ok else "connected", ok, advice)


def test_the_table() -> None:
    assert table([result("internet", ok=True), result("a longer one", ok=True)]).splitlines() == [
        "    probe         expected  found      tried",
        "ok  internet      refused   no answer  tcp 192.0.2.1:80",
        "ok  a longer one  refused   no answer  tcp 192.0.2.1:80",
        "",
        "All 2 probes found what they must: from a server, the Hub and nothing else.",
    ]
    failed = [
        result("internet", ok=False, advice="set the rules"),
        result("host", ok=True),
        result("ping", ok=False, advice="set the rules"),
        result("root", ok=False, advice="ask Docker"),
    ]
    assert table(failed).splitlines()[-3:] == [
        "3 of 4 probes failed: this network is not fit for data.",
        "- internet, ping: set the rules.",
        "- root: ask Docker.",
    ]
