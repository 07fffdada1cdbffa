"""Real Docker engines for tests, each in a network namespace of its own that stands for an institution's host.

    host of the tests                         the site's host (namespace nf<N>)
    10.77.<N>.1  <──────── veth pair ───────> 10.77.<N>.2   dockerd, by TLS with client certificates
    198.18.<N>.1 (an "internet" host)         default route by 10.77.<N>.1

Everything of an engine runs in a PID and a mount namespace below one process: when that ends, nothing is left, not even
a mount. A test run that was killed leaves an empty network namespace; the next engine with the same number removes it.
"""

from __future__ import annotations

import ctypes
import fcntl
import ipaddress
import os
import select
import shutil
import signal
import socket
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

import docker
import psutil
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from docker.tls import TLSConfig

ROOT = Path(__file__).resolve().parents[2]
ENGINES = ROOT / "test-output" / "engines"
"""Data folders of the tests' engines; images stay in them from run to run."""
API_VERSION = "1.41"  # Docker 20.10's; an explicit one, since docker-py's "auto" connects in the constructor
TLS_PORT = 2376
CLONE_NEWNET = 0x40000000  # of sched.h; the standard library has it from Python 3.12 on
START_TIMEOUT = 60  # seconds
STOP_TIMEOUT = 30
# Debian's, which has BuildKit; another docker may stand before it on PATH.
DOCKER = "/usr/bin/docker"

# The namespaces are made by setpriv, nsenter and unshare; this is what their first process does: /sys and the control
# groups as the new network namespace sees them, a /run/containerd of its own (shims put their sockets there), then
# dockerd. A shell stays the first process since that one has to reap orphans.
FIRST_PROCESS = """
set -e
mount --rbind /sys/fs/cgroup "$RUN/cgroup"
umount -l /sys
mount -t sysfs sysfs /sys
mount --move "$RUN/cgroup" /sys/fs/cgroup
mkdir -p /run/containerd
mount -t tmpfs tmpfs /run/containerd
if [ -e "$RUN/resolv.conf" ]; then mount --bind "$RUN/resolv.conf" /etc/resolv.conf; fi
"$@" &
wait $!
"""


class EngineError(Exception):
    """An engine did not start, or did not stop. Its text ends with the last lines of dockerd's log."""


@dataclass(frozen=True, slots=True)
class ClientCertificates:
    """What a client of an engine holds, as PEM files."""

    authority: Path
    certificate: Path
    key: Path

    def tls_config(self) -> TLSConfig:
        return TLSConfig(ca_cert=str(self.authority), client_cert=(str(self.certificate), str(self.key)), verify=True)


class Daemon(ABC):
    """A dockerd with a data root that stays and a run folder that does not. `Engine` and `BuildEngine` are started."""

    def __init__(self, data: Path) -> None:
        self._held = ExitStack()
        self.number = self._held.enter_context(_free_number())
        self.data = data.resolve()  # dockerd loops for ever on a relative data root
        self.run = Path(f"/run/nf{self.number}")
        self.host = f"unix://{self.run / 'docker.sock'}"
        self.log = self.data / "dockerd.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @abstractmethod
    def start(self) -> None:
        """Start dockerd and return once it answers. Raises EngineError."""

    @abstractmethod
    def stop(self) -> None:
        """End dockerd and all that it started; safe to call at any time."""

    def client(self) -> docker.DockerClient:
        """A client on the engine's Unix socket; close it."""
        return client_of(self.host)

    def docker(self, *arguments: str) -> str:
        """Run the docker command on this engine and return what it printed."""
        return _run(DOCKER, "-H", self.host, *arguments)

    def process(self, pid: int) -> psutil.Process:
        """The process that the engine knows by this id. Raises LookupError where there is none."""
        assert self._process is not None, "the engine does not run"
        for process in psutil.Process(self._process.pid).children(recursive=True):
            with suppress(OSError):
                status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii", errors="replace")
                seen = next(line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:"))
                if len(seen) > 1 and seen[1] == str(pid):
                    return process
        raise LookupError(pid)

    def _start_dockerd(self, *arguments: str, enter: Sequence[str] = (), path: str = "") -> None:
        self.data.mkdir(parents=True, exist_ok=True)
        (self.run / "cgroup").mkdir(parents=True, exist_ok=True)
        command = [
            *("setpriv", "--pdeathsig", "KILL", "--"),
            *enter,
            *("unshare", "--mount", "--propagation", "slave", "--pid", "--fork", "--kill-child", "--mount-proc"),
            *("sh", "-c", FIRST_PROCESS, "engine"),
            *("dockerd", f"--host={self.host}", f"--data-root={self.data / 'docker'}"),
            *(f"--exec-root={self.run / 'exec'}", f"--pidfile={self.run / 'pid'}", *arguments),
        ]
        with _ready_socket(self.run / "notify") as ready, self.log.open("wb") as log:
            environment = os.environ | {
                "RUN": str(self.run),
                "NOTIFY_SOCKET": str(self.run / "notify"),
                "PATH": f"{path}{os.environ['PATH']}",
            }
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
            self._wait_until_ready(ready)

    def _wait_until_ready(self, ready: socket.socket) -> None:
        assert self._process is not None
        pidfd = os.pidfd_open(self._process.pid)
        try:
            while True:
                found, _, _ = select.select([ready.fileno(), pidfd], [], [], START_TIMEOUT)
                if ready.fileno() in found:
                    if b"READY=1" in ready.recv(4096):
                        return
                elif found:
                    raise EngineError(f"dockerd ended with {self._process.wait()}:\n{self._last_lines()}")
                else:
                    raise EngineError(f"dockerd was not ready after {START_TIMEOUT} s:\n{self._last_lines()}")
        finally:
            os.close(pidfd)

    def _stop_dockerd(self) -> None:
        """End dockerd; when it does not end by itself, all its processes at once."""
        process, self._process = self._process, None
        if process is None:
            return
        daemon = _dockerd_below(process)
        if daemon is not None:
            with suppress(psutil.NoSuchProcess):
                daemon.terminate()
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired as error:
            process.kill()  # and with it, by --kill-child, the whole PID namespace
            process.wait()
            raise EngineError(f"dockerd did not end in {STOP_TIMEOUT} s:\n{self._last_lines()}") from error

    def _last_lines(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])


class Engine(Daemon):
    """An institution's host with its Docker engine. Use it as a context manager, or call `start()` and `stop()`.

    Args:
        data: folder that keeps images between runs, such as `test-output/engines/<name>`. One engine at a time.
        gpus: ids of GPUs that the engine says it has; empty for an engine without NVIDIA's runtime hook.
        options: further arguments of dockerd.

    Attributes:
        nameserver: what the host's /etc/resolv.conf names, set before the start; None for what the machine has.
        namespace: name of the network namespace, for `ip netns exec`.
        hub_address: address of the tests' host on the link to the site: where a Hub listens.
        address: address of the site's host.
        internet_address: an address of the tests' host that the site reaches by its default route only.
        url: of the engine's API, by TLS.
        certificates: for that API.
    """

    def __init__(self, data: Path, *, gpus: Sequence[str] = (), options: Sequence[str] = ()) -> None:
        super().__init__(data)
        self.namespace = f"nf{self.number}"
        self._gpus = tuple(gpus)
        self._options = tuple(options)
        self.nameserver: str | None = None
        self.hub_address = f"10.77.{self.number}.1"
        self.address = f"10.77.{self.number}.2"
        self.internet_address = f"198.18.{self.number}.1"
        self.url = f"tcp://{self.address}:{TLS_PORT}"
        folder = self.run / "client"
        self.certificates = ClientCertificates(folder / "ca.pem", folder / "cert.pem", folder / "key.pem")

    def start(self) -> None:
        """Make the namespace, start dockerd and remove what earlier runs left in it, but for images.

        Raises:
            EngineError: dockerd does not come up, or another engine uses the data folder.
        """
        self.run.mkdir()
        self._held.enter_context(_exclusive(self.data))
        self._make_host()
        _make_certificates(self.run, self.address)
        if self.nameserver is not None:
            (self.run / "resolv.conf").write_text(f"nameserver {self.nameserver}\n", encoding="utf-8")
        if self._gpus:
            self._make_gpu_hook()
        self.boot()
        self.remove_all()

    def boot(self) -> None:
        """Start dockerd on the host; after `halt`, as a host that comes up again does."""
        server = self.run / "server"
        self._start_dockerd(
            f"--host={self.url}",
            *("--tlsverify", f"--tlscacert={server / 'ca.pem'}"),
            *(f"--tlscert={server / 'cert.pem'}", f"--tlskey={server / 'key.pem'}"),
            *(("--add-runtime=nvidia=runc",) if self._gpus else ()),
            *(f"--node-generic-resource=NVIDIA-GPU={gpu}" for gpu in self._gpus),
            *self._options,
            enter=("nsenter", f"--net=/run/netns/{self.namespace}"),
            path=f"{self._hook_folder}:" if self._gpus else "",
        )

    def halt(self) -> None:
        """Stop dockerd and forget what a host forgets that goes down: firewall rules and bridges."""
        self._stop_dockerd()
        for iptables in ("iptables", "ip6tables"):
            for table in ("raw", "mangle", "nat", "filter"):
                self.on_host(iptables, "-t", table, "-F")
                self.on_host(iptables, "-t", table, "-X")
        for line in self.on_host("ip", "-oneline", "link", "show", "type", "bridge").splitlines():
            self.on_host("ip", "link", "delete", line.split(": ")[1])

    def restart(self) -> None:
        """Stop dockerd, which stops its containers, and start it again on the same host."""
        self._stop_dockerd()
        self.boot()

    def stop(self) -> None:
        """End the engine and remove the host: namespace, link, run folder. Images stay in the data folder."""
        try:
            if self._process is not None and (daemon := _dockerd_below(self._process)) is not None:
                daemon.resume()
                self.remove_all()  # dockerd would give each container ten seconds
            self._stop_dockerd()
        finally:
            _remove_traces(self.number)
            self._held.close()

    def tls_client(self, *, timeout: float = 60) -> docker.DockerClient:
        """A client as the Hub has one, by TLS; close it."""
        return client_of(self.url, self.certificates, timeout=timeout)

    def load(self, image: str, source: Daemon | None = None) -> None:
        """Copy an image from the engine where it was built (by default the machine's own), where it is not here yet."""
        origin = () if source is None else ("-H", source.host)
        wanted = _run(DOCKER, *origin, "image", "inspect", "--format={{.Id}}", image)
        present = subprocess.run(
            [DOCKER, "-H", self.host, "image", "inspect", "--format={{.Id}}", image],
            capture_output=True,
            text=True,
            check=False,
        )
        if present.stdout == wanted:
            return
        with subprocess.Popen([DOCKER, *origin, "save", image], stdout=subprocess.PIPE) as saving:
            subprocess.run(
                [DOCKER, "-H", self.host, "load", "--quiet"], stdin=saving.stdout, capture_output=True, check=True
            )
        if saving.returncode != 0:
            raise EngineError(f"docker save {image} ended with {saving.returncode}")

    def remove_all(self) -> None:
        """Remove all containers, volumes and networks that somebody made."""
        client = self.client()
        try:
            for container in client.containers.list(all=True):
                container.remove(force=True, v=True)
            for volume in client.volumes.list():
                volume.remove(force=True)
            for network in client.networks.list(filters={"type": "custom"}):
                network.remove()
        finally:
            client.close()

    def freeze(self) -> None:
        """Stop dockerd in its tracks: it accepts connections and answers nothing. Containers go on."""
        self._daemon().suspend()

    def thaw(self) -> None:
        """Let dockerd go on."""
        self._daemon().resume()

    def on_host(self, *command: str, stdin: str | None = None) -> str:
        """Run a command in the site's network namespace and return what it printed."""
        return _run("ip", "netns", "exec", self.namespace, *command, stdin=stdin)

    def bind(self, kind: socket.SocketKind, address: str, port: int) -> socket.socket:
        """A socket of this process that is bound on the site's host; listening, where it is a stream. Close it."""
        with ThreadPoolExecutor(1) as thread:  # only the thread enters the namespace, and it ends here
            return thread.submit(_bind_in, Path("/run/netns") / self.namespace, kind, address, port).result()

    def _daemon(self) -> psutil.Process:
        assert self._process is not None, "the engine does not run"
        daemon = _dockerd_below(self._process)
        assert daemon is not None, "dockerd has ended"
        return daemon

    def _make_host(self) -> None:
        here, there = f"{self.namespace}h", f"{self.namespace}s"
        _run("ip", "netns", "add", self.namespace)
        _run("ip", "link", "add", here, "type", "veth", "peer", "name", there, "netns", self.namespace)
        _run("ip", "address", "add", f"{self.hub_address}/30", "dev", here)
        _run("ip", "address", "add", f"{self.internet_address}/32", "dev", here)
        _run("ip", "link", "set", here, "up")
        self.on_host("ip", "link", "set", "lo", "up")
        self.on_host("ip", "address", "add", f"{self.address}/30", "dev", there)
        self.on_host("ip", "link", "set", there, "up")
        self.on_host("ip", "route", "add", "default", "via", self.hub_address)

    @property
    def _hook_folder(self) -> Path:
        return self.run / "gpu"

    def _make_gpu_hook(self) -> None:
        """What tells Docker that it can hand out GPUs: NVIDIA's hook on dockerd's PATH. This one hands out nothing."""
        self._hook_folder.mkdir()
        hook = self._hook_folder / "nvidia-container-runtime-hook"
        hook.write_text("#!/bin/sh\nexec cat > /dev/null\n", encoding="utf-8")
        hook.chmod(0o755)


class BuildEngine(Daemon):
    """An engine that only builds images, with the machine's own network, so that builds reach the package index.

    Args:
        data: folder that keeps images and the build cache, such as `test-output/engines/build`. A second build engine
            on the same folder waits for the first to end.
    """

    def start(self) -> None:
        self._held.enter_context(_exclusive(self.data, wait=True))
        # Not `--bridge=none`: that removes docker0, which is another engine's.
        bridge = f"nf{self.number}b"
        _run("ip", "link", "add", bridge, "type", "bridge")
        _run("ip", "address", "add", f"10.77.{self.number}.1/30", "dev", bridge)
        self._start_dockerd(f"--bridge={bridge}", "--iptables=false", "--ip-forward=false", "--ip-masq=false")

    def stop(self) -> None:
        try:
            self._stop_dockerd()
        finally:
            _remove_traces(self.number)
            self._held.close()

    def build_test_images(self) -> None:
        """Make the images that tests run; quick when nothing has changed."""
        environment = os.environ | {"DOCKER_HOST": self.host}
        subprocess.run([ROOT / "scripts" / "build_test_images.sh", self.host], env=environment, check=True)


def client_of(url: str, certificates: ClientCertificates | None = None, *, timeout: float = 60) -> docker.DockerClient:
    """A client of an engine that trusts the certificates given and nothing of the environment; close it."""
    client = docker.DockerClient(
        base_url=url, version=API_VERSION, timeout=timeout, tls=certificates.tls_config() if certificates else None
    )
    # REQUESTS_CA_BUNDLE would take the place of the engine's authority.
    client.api.trust_env = False
    return client


def bind(kind: socket.SocketKind, address: str, port: int) -> socket.socket:
    """A socket bound here; listening, where it is a stream. Close it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    bound = socket.socket(family, kind)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((address, port))
        if kind == socket.SOCK_STREAM:
            bound.listen()
    except OSError:
        bound.close()
        raise
    return bound


def _bind_in(namespace: Path, kind: socket.SocketKind, address: str, port: int) -> socket.socket:
    with namespace.open("rb") as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"setns({namespace})")
    return bind(kind, address, port)


def _run(*command: str, stdin: str | None = None) -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise EngineError(
            f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip() or done.stdout.strip()}"
        )
    return done.stdout


def _dockerd_below(process: subprocess.Popen[bytes]) -> psutil.Process | None:
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            if child.name() == "dockerd":
                return child
    return None


@contextmanager
def _ready_socket(path: Path) -> Iterator[socket.socket]:
    """Where dockerd says that it is ready, as it says to systemd."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
        ready.bind(str(path))
        try:
            yield ready
        finally:
            path.unlink()


@contextmanager
def _exclusive(data: Path, *, wait: bool = False) -> Iterator[None]:
    data.mkdir(parents=True, exist_ok=True)
    with (data / "lock").open("a+", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            if not wait or lock.read() == str(os.getpid()):  # this very run would wait for itself
                raise EngineError(
                    f"another engine uses {data}: share that one, or give this one a folder of its own"
                ) from None
            fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


@contextmanager
def _free_number() -> Iterator[int]:
    """Reserve the lowest number that no engine on this machine uses."""
    for number in range(1, 255):
        with Path(f"/run/lock/nf-engine-{number}").open("wb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            _remove_traces(number)  # of a test run that was killed
            yield number
            return
    raise EngineError("254 engines run on this machine already")


def _remove_traces(number: int) -> None:
    """Remove what an engine with this number had on the machine: namespace, link or bridge, run folder."""
    namespace = f"nf{number}"
    if (Path("/run/netns") / namespace).exists():
        # Processes that a test started there would keep the namespace and its link alive.
        for pid in _run("ip", "netns", "pids", namespace).split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        _run("ip", "netns", "delete", namespace)
    # The link goes with the namespace, but some time after it: a later engine may want the same names.
    for link in (f"{namespace}h", f"{namespace}b"):
        subprocess.run(["ip", "link", "delete", link], capture_output=True, check=False)
    shutil.rmtree(Path("/run") / namespace, ignore_errors=True)


def _make_certificates(run: Path, address: str) -> None:
    """An authority, the client's certificate below `run/client` and the server's below `run/server`."""
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority_name = _name("test authority")
    now = datetime.now(UTC)

    def certificate(subject: x509.Name, key: ec.EllipticCurvePrivateKey, *extensions: x509.ExtensionType) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(authority_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        return builder.sign(authority_key, hashes.SHA256()).public_bytes(Encoding.PEM)

    authority = certificate(authority_name, authority_key, x509.BasicConstraints(ca=True, path_length=None))
    extensions: dict[str, tuple[x509.ExtensionType, ...]] = {
        "client": (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]),),
        "server": (
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]),
        ),
    }
    for name, own in extensions.items():
        key = ec.generate_private_key(ec.SECP256R1())
        folder = run / name
        folder.mkdir(mode=0o700)
        (folder / "ca.pem").write_bytes(authority)
        (folder / "cert.pem").write_bytes(certificate(_name(name), key, *own))
        (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])
