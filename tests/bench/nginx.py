"""nginx in front of a Hub, with the example for production: `deploy/nginx.conf`, without its TLS."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from examples.demo.deployment import Ports
from examples.demo.stack import ROOT

EXAMPLE = ROOT / "deploy" / "nginx.conf"
_START_S = 10
_FRAME = """\
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
{site}
}}
"""


def program() -> str | None:
    """Path of nginx; None where it is not installed. Debian has it where only root's PATH looks."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")


@contextlib.contextmanager
def running_nginx(folder: Path, port: int, ports: Ports) -> Iterator[None]:
    """nginx on this port of loopback, in front of the Hub and the service with these ports.

    Args:
        folder: for its files; it does not exist yet.

    Raises:
        OSError: it is not installed, or does not come up; with what it said.
    """
    folder.mkdir()
    configuration, log = folder / "nginx.conf", folder / "nginx.log"
    configuration.write_text(_FRAME.format(folder=folder, site=_site(port, ports)))
    command = [program() or "nginx", "-e", str(log), "-p", str(folder), "-c", str(configuration)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(port, process, log)
        yield
    finally:
        process.terminate()
        process.wait()


def _site(port: int, ports: Ports) -> str:
    """The example's text with these ports."""
    text = EXAMPLE.read_text()
    for pattern, instead in (
        (r"127\.0\.0\.1:8000;", f"127.0.0.1:{ports.public};"),
        (r"127\.0\.0\.1:8082;", f"127.0.0.1:{ports.service};"),
        (r"listen 443 ssl;", f"listen 127.0.0.1:{port};"),
        (r"\n *ssl_certificate .*", ""),
        (r"\n *ssl_certificate_key .*", ""),
    ):
        text, times = re.subn(pattern, instead, text)
        if times != 1:
            raise OSError(f"{EXAMPLE} has {pattern} {times} times, not once")
    return text


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    said = log.read_text(errors="replace") if log.exists() else ""
    raise OSError(f"nginx did not come up: {said.strip()}")
