"""Ports for processes that bind theirs some seconds after it was chosen."""

from __future__ import annotations

import random
import socket
from contextlib import suppress
from pathlib import Path

from jupyterhub.utils import random_port

_GIVEN_BY_THE_SYSTEM = Path("/proc/sys/net/ipv4/ip_local_port_range")  # ip(7)
_LOWEST, _LOWEST_GIVEN = 10_000, 32_768
_DRAWS = 100


def free_port() -> int:
    """A port of the loopback address that nobody has, of those that the system gives to nobody by itself.

    A port that `bind` to 0 gave is given again once it is closed: to a kernel, a SuperLink or a connection that is
    begun before the server for which it was meant has come as far as to bind it. Called for each server of an embedded
    site, and for client kernels. Where the system gives all ports, it is one of those.
    """
    drawn = random.SystemRandom()
    given = _lowest_given()
    for _ in range(_DRAWS if given > _LOWEST else 0):
        port = drawn.randrange(_LOWEST, given)
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    return int(random_port())  # type: ignore[no-untyped-call]


def _lowest_given() -> int:
    with suppress(OSError):
        return int(_GIVEN_BY_THE_SYSTEM.read_text("ascii").split()[0])
    return _LOWEST_GIVEN
