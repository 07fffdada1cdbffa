"""Tries, from inside a container, what a server must not be able to do. Sent to the container as text, and run there.

    python3 -c "$(cat inside.py)" try '[{"kind": "tcp", "address": "192.0.2.1", "port": 80}, ...]'
    python3 -c "$(cat inside.py)" listen 8888
    python3 -c "$(cat inside.py)" await 8888

`try` prints a JSON list of {"through": bool, "found": text}, one for each attempt, in order. `listen` is the other end:
a neighbour that answers on TCP and UDP; `await`, in the same container, ends when it does. One file, standard library
only: whatever image a site uses, it runs there.

An attempt got through when it did something, or when a machine at the other end answered. "Connection refused" is such
an answer: the packets arrived, and only nothing listens there. What the site's rules refuse looks different.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

TIMEOUT = 3.0  # seconds; what is refused is refused at once, what is dropped takes this long
DNS_PORT = 53
LISTEN_SECONDS = 120  # a neighbour whose checker was killed ends by itself
GROUP = "224.0.0.251"  # multicast, on the own network only
GREETING = b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n"


class Refused(Exception):
    """An attempt did not get through. Its text says what was seen."""


def tcp(address: str, port: int) -> str:
    """Open a TCP connection."""
    try:
        _connection(address, port).close()
    except ConnectionRefusedError:
        return "reached; nothing listens there"
    return "connected"


def udp(address: str, port: int) -> str:
    """Send a datagram and wait for an answer."""
    try:
        answer = _exchange(address, port, b"probe")
    except ConnectionRefusedError:
        return "reached; nothing listens there"
    return f"answered with {len(answer)} bytes"


def dns(address: str, port: int, name: str, transport: str) -> str:
    """Ask a DNS server; whatever it answers, it was reached."""
    try:
        answer = _ask(address, port, name, transport)
    except Refused as error:
        return f"reached; {error}"
    except ConnectionRefusedError:
        return "reached; nothing listens there"
    return f"answered with code {answer[3] & 15}"


def resolve(name: str, transport: str, file: str = "/etc/resolv.conf") -> str:
    """Ask whatever resolver the container was given: Docker's own forwards to others, from the host's side."""
    with open(file, encoding="utf-8") as lines:
        servers = [line.split()[1] for line in lines if line.startswith("nameserver ")]
    seen = []
    for server in servers:
        try:
            code = _ask(server, DNS_PORT, name, transport)[3] & 15
        except (OSError, Refused) as error:
            seen.append(f"{server}: {_reason(error)}")
        else:
            if code in (0, 3):  # found, and "no such name": somebody out there was asked
                return f"{server} answered with code {code}"
            seen.append(f"{server}: code {code}")
    raise Refused("; ".join(seen) or "no resolver")


def ping(address: str) -> str:
    """Send an ICMP echo request, as an ordinary user may."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as probe:
        probe.settimeout(TIMEOUT)
        probe.connect((address, 0))
        probe.send(struct.pack("!BBHHH", 8, 0, 0, 0, 1) + b"probe")
        probe.recv(1024)
    return "answered"


def spread(address: str, port: int) -> str:
    """Send a datagram to everybody on the network; whoever hears it answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.settimeout(TIMEOUT)
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        probe.sendto(b"probe", (address, port))
        return f"answered by {probe.recvfrom(1024)[1][0]}"


def ipv6_address(file: str = "/proc/net/if_inet6") -> str:
    """Look for an IPv6 address of the container's own."""
    try:
        with open(file, encoding="ascii") as lines:
            found = [(line.split()[0], line.split()[5]) for line in lines]
    except FileNotFoundError:
        found = []
    for digits, interface in found:
        if interface != "lo":
            return f"has {socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits))}"
    raise Refused("has none")


def unix_socket(path: str) -> str:
    """Look for a socket of the host."""
    if not os.path.exists(path):
        raise Refused("not there")
    return "is there"


def write(folder: str) -> str:
    """Make a file."""
    path = os.path.join(folder, f".probe-{os.getpid()}")
    with open(path, "x", encoding="ascii"):
        pass
    os.remove(path)
    return "written"


def raw_socket() -> str:
    """Open a socket that sends packets of any make, such as ones with another sender's address."""
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()
    return "opened"


def claim_address(address: str) -> str:
    """Say by ARP that an address is ours. Addressed to ourselves, so that where it works, nobody is harmed."""
    interface = next((name for _, name in socket.if_nameindex() if name != "lo"), None)
    if interface is None:
        raise Refused("no network")
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as probe:
        probe.bind((interface, 0))
        own = probe.getsockname()[4]
        sender = own + socket.inet_aton(address)
        probe.send(own + own + struct.pack("!HHHBBH", 0x0806, 1, 0x0800, 6, 4, 2) + sender + sender)
    return "sent"


def privileges(file: str = "/proc/self/status") -> str:
    """Look at the process's own rights."""
    with open(file, encoding="utf-8") as lines:
        status = dict(line.rstrip("\n").split(":\t", 1) for line in lines if ":\t" in line)
    user, capabilities, locked = status["Uid"].split()[0], int(status["CapBnd"], 16), status["NoNewPrivs"]
    found = f"user {user}, {bin(capabilities).count('1')} capabilities, no-new-privileges {locked}"
    if user != "0" and not capabilities and locked == "1":
        raise Refused(found)
    return found


def http(address: str, port: int) -> str:
    """Ask a web server for its front page, by TLS where it speaks that. Whose certificate it has is not looked at."""
    with contextlib.suppress(ConnectionResetError, Refused), _connection(address, port) as plain:
        return _front_page(plain, address)
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with _connection(address, port) as plain, context.wrap_socket(plain) as wrapped:
        return f"{_front_page(wrapped, address)} by TLS"


KINDS: dict[str, Callable[..., str]] = {
    "tcp": tcp,
    "udp": udp,
    "dns": dns,
    "resolve": resolve,
    "ping": ping,
    "spread": spread,
    "ipv6-address": ipv6_address,
    "unix-socket": unix_socket,
    "write": write,
    "raw-socket": raw_socket,
    "claim-address": claim_address,
    "privileges": privileges,
    "http": http,
}


def attempt(wanted: dict[str, Any]) -> dict[str, Any]:
    """Try one thing: its kind and that kind's arguments."""
    arguments = dict(wanted)
    try:
        return {"through": True, "found": KINDS[arguments.pop("kind")](**arguments)}
    except (OSError, Refused) as error:
        return {"through": False, "found": _reason(error)}


def listen(port: int) -> None:
    """Answer on TCP and UDP until ended, or for LISTEN_SECONDS."""
    signal.alarm(LISTEN_SECONDS)
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind(("", port))
    with contextlib.suppress(OSError):  # no route for multicast, where there is no network
        datagrams.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(GROUP) + bytes(4))
    threading.Thread(target=_echo, args=(datagrams,), daemon=True).start()
    try:
        server = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    except OSError:  # no IPv6
        server = socket.create_server(("", port))
    while True:
        connection, _ = server.accept()
        with connection, contextlib.suppress(OSError):
            connection.sendall(GREETING)


def wait_for(port: int) -> None:
    """Wait until somebody listens here. Raises TimeoutError."""
    end = time.monotonic() + LISTEN_SECONDS
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if time.monotonic() > end:
            raise TimeoutError(f"nobody listens on {port}")
        time.sleep(0.02)


def main(command: str, argument: str) -> None:
    if command == "listen":
        listen(int(argument))
    elif command == "await":
        wait_for(int(argument))
    else:
        with ThreadPoolExecutor(64) as threads:
            sys.stdout.write(json.dumps(list(threads.map(attempt, json.loads(argument)))))


def _echo(datagrams: socket.socket) -> None:
    while True:
        data, sender = datagrams.recvfrom(1024)
        with contextlib.suppress(OSError):
            datagrams.sendto(data, sender)


def _connection(address: str, port: int) -> socket.socket:
    return socket.create_connection((address, port), TIMEOUT)


def _exchange(address: str, port: int, data: bytes) -> bytes:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.settimeout(TIMEOUT)
        probe.connect((address, port))
        probe.send(data)
        return probe.recv(4096)


def _ask(address: str, port: int, name: str, transport: str) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode("ascii") for label in name.split("."))
    query = struct.pack("!HHHHHH", 0x4E46, 0x0100, 1, 0, 0, 0) + labels + b"\0" + b"\0\1\0\1"
    if transport == "udp":
        answer = _exchange(address, port, query)
    else:
        with _connection(address, port) as probe:
            probe.sendall(struct.pack("!H", len(query)) + query)
            answer = probe.recv(4096)[2:]
    if len(answer) < 12:
        raise Refused(f"no DNS answer, but {len(answer)} bytes")
    return answer


def _front_page(connection: socket.socket, host: str) -> str:
    connection.sendall(f"GET / HTTP/1.0\r\nHost: {host}\r\n\r\n".encode("ascii"))
    line = connection.recv(1024).split(b"\r\n", 1)[0].decode("ascii", "replace")
    if not line.startswith("HTTP/"):
        raise Refused(f"no HTTP: {line[:40]!r}")
    return f"answered {' '.join(line.split()[:2])}"


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error)


if __name__ == "__main__":
    main(*sys.argv[1:])
