"""Is a site ready for people's servers? Looked at from the Hub's side, part by part, with what servers run with.

    Result      what one look at one part has shown, and what to do next
    Check       one part: a function on a `SiteUnderTest`, and which parts must be right for it to make sense
    CHECKS      all of them, in the order in which they are told

A check changes nothing at the site: what it starts there is removed when it ends, however it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from importlib.metadata import version
from ipaddress import AddressValueError, IPv4Address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import requests
from docker.errors import APIError, ImageNotFound, NotFound

from spawner.admin.certificates import ends_of
from spawner.admin.containers import WEB_PORT, CheckContainers, ScriptFailed
from spawner.admin.steps import certificates_command, hub_endpoint, isolation_command
from spawner.container_site_spawner import DATA, dataset_mount
from spawner.deployment import Hub
from spawner.engine_refusals import refusal_of
from spawner.engines import Engine, EngineUnavailable, engine_of
from spawner.site.engine import EngineError, connected
from spawner.site.probes import ProbeError, ProbeResult, World, run_probes
from spawner.sites import ContainerSite, DockerSite, Site, SiteDataset
from spawner.swarm_site_spawner import NODE_LABEL

SITE_TIME_S = 300.0
"""All checks of one site; one that takes longer is told as failed."""

CLEAN_UP_S = 30.0
"""How long a look that has no more time waits for what it made at the site to be removed."""

CLIENT_DISTRIBUTION = "notebook-federator-client"
RENEW_WITHIN = timedelta(days=30)
CLOCK_LIMIT_S = 5.0
"""Flower refuses what a node signed with a clock that is further ahead than this."""

LOW_DISK = 10 * 1024**3  # bytes; an image with PyTorch takes as much
_CONNECT_TIMEOUT_S = 5.0
_PUBLISHED_WITHIN_S = 10.0
_LOOK_AGAIN_S = 0.1

_NOTHING_TO_LOOK_AT = {
    "embedded": "an embedded site is a part of the Hub's own machine",
    "supernode": "the site runs a SuperNode of its own; a project's page shows whether it is connected",
}


class Outcome(StrEnum):
    OK = "ok"
    WARNING = "warning"
    FAILED = "FAILED"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Result:
    """One line of the report.

    Attributes:
        part: of the site that was looked at.
        seen: what the look has shown.
        next_step: what somebody should do, and who; empty where there is nothing to do.
    """

    part: str
    outcome: Outcome
    seen: str
    next_step: str = ""


@dataclass(frozen=True, slots=True)
class SiteUnderTest:
    """A site with an engine, and what the checks look at it with."""

    slug: str
    site: ContainerSite
    hub: Hub
    engine: Engine
    now: Callable[[], datetime]
    new_id: Callable[[], str]

    @property
    def docker_site(self) -> DockerSite:
        """For the checks of Docker sites, which are made for those only."""
        assert isinstance(self.site, DockerSite)  # noqa: S101 - see above
        return self.site

    @property
    def containers(self) -> CheckContainers:
        return CheckContainers(self.engine, self.slug, self.docker_site, self.new_id)


@dataclass(frozen=True, slots=True)
class Check:
    """A part of a site and how to look at it.

    Attributes:
        look: gives one result, or one for each of several alike.
        needs: parts without which a look would show nothing.
    """

    part: str
    look: Callable[[SiteUnderTest], Awaitable[Sequence[Result]]]
    needs: tuple[str, ...] = ()


async def check_site(
    slug: str, site: Site, hub: Hub, *, now: Callable[[], datetime], new_id: Callable[[], str]
) -> AsyncIterator[Result]:
    """Look at all parts of a site and give each result as soon as it is there; called by the command and the page.

    Whoever does not go on to the end closes it with `aclose`, so that nothing is left at the site.
    """
    if not isinstance(site, ContainerSite):
        yield Result("site", Outcome.SKIPPED, _NOTHING_TO_LOOK_AT[site.kind])
        return
    under_test = SiteUnderTest(slug, site, hub, engine_of(site), now, new_id)
    failed: set[str] = set()
    deadline = asyncio.get_running_loop().time() + SITE_TIME_S
    for check in CHECKS[site.kind]:
        missing = [part for part in check.needs if part in failed]
        if missing:
            results: Sequence[Result] = [Result(check.part, Outcome.SKIPPED, f"needs the {missing[0]} first")]
        else:
            results = await _looked_at(check, under_test, deadline)
        if missing or any(result.outcome is Outcome.FAILED for result in results):
            failed.add(check.part)
        for result in results:
            yield result


async def _looked_at(check: Check, under_test: SiteUnderTest, deadline: float) -> Sequence[Result]:
    contact = under_test.site.contact
    try:
        async with asyncio.timeout_at(deadline):
            return await check.look(under_test)
    except TimeoutError:
        seen = f"not done within the {SITE_TIME_S:.0f} s that a site has"
        return [Result(check.part, Outcome.FAILED, seen, f"Try again; ask {contact} what slows the machine down.")]
    except EngineUnavailable as unavailable:
        seen = f"the engine went away: {unavailable}"
        return [Result(check.part, Outcome.FAILED, seen, f"Try again; ask {contact} what happened to the engine.")]
    except APIError as error:
        return [Result(check.part, Outcome.FAILED, refusal_of(error).text, f"Ask {contact} to mend this.")]
    except ScriptFailed as failed:
        seen = f"the script in the container failed: {failed}"
        return [Result(check.part, Outcome.FAILED, seen, f"Is {under_test.site.image} a notebook image of this Hub?")]


# --- the engine and the connection to it


async def _engine(under_test: SiteUnderTest) -> Sequence[Result]:
    try:
        found = await under_test.engine.call("version")
        system = await under_test.engine.call("info")
    except EngineUnavailable as unavailable:
        next_step = _reconnect(under_test, unavailable)
        return [Result("engine", Outcome.FAILED, f"{under_test.site.engine}: {unavailable}", next_step)]
    seen = f"Docker {found['Version']}, API {found['ApiVersion']}, {system['OperatingSystem']}, {found['Arch']}"
    if isinstance(under_test.site, DockerSite):
        await under_test.containers.remove_abandoned(under_test.now())
    return [Result("engine", Outcome.OK, seen)]


def _reconnect(under_test: SiteUnderTest, unavailable: EngineUnavailable) -> str:
    site, contact = under_test.site, under_test.site.contact
    if isinstance(unavailable.__cause__, requests.exceptions.SSLError):
        return (
            f"Hub and engine hold certificates of different authorities, or for another address. Ask {contact} to "
            f"install the site's bundle again; `{certificates_command(under_test.slug, site)} --renew` makes a new one."
        )
    if site.engine_host is None:
        return "Does the engine run, and may the Hub's account use its socket?"
    return (
        f"Ask {contact}: does the engine run (systemctl status docker), and may the Hub's address reach "
        f"{site.engine} through the firewall?"
    )


async def _strangers(under_test: SiteUnderTest) -> Sequence[Result]:
    """Try to use the engine without a certificate, as anybody could."""
    part, site = "TLS", under_test.site
    if site.tls_dir is None:
        return [Result(part, Outcome.SKIPPED, "the engine listens on a Unix socket only")]
    try:
        async with _connection(site, _context(site.tls_dir)) as (reader, writer):
            writer.write(b"GET /_ping HTTP/1.1\r\nHost: engine\r\nConnection: close\r\n\r\n")
            answer = await reader.read(64)
    except ssl.SSLCertVerificationError as unknown:
        return [Result(part, Outcome.FAILED, f"not the engine that answered before: {unknown.verify_message}")]
    except (ssl.SSLError, ConnectionResetError) as refused:
        return [Result(part, Outcome.OK, f"the engine refuses who has no certificate ({_reason(refused)})")]
    except OSError as error:
        seen = f"whether the engine obeys who has no certificate could not be tried: {error or 'no answer'}"
        return [Result(part, Outcome.FAILED, seen, "Try again.")]
    if not answer.startswith(b"HTTP/1.1 200"):
        return [Result(part, Outcome.OK, "the engine refuses who has no certificate")]
    seen = "the engine obeys a client without a certificate: whoever reaches it owns the machine"
    next_step = f"Ask {site.contact} to stop the engine now, and to start it with --tlsverify and the site's bundle."
    return [Result(part, Outcome.FAILED, seen, next_step)]


async def _certificates(under_test: SiteUnderTest) -> Sequence[Result]:
    part, site = "certificates", under_test.site
    if site.tls_dir is None:
        return [Result(part, Outcome.SKIPPED, "none, on a Unix socket")]
    try:
        ends = {"the Hub's": min(ends_of((site.tls_dir / name).read_bytes()) for name in ("ca.pem", "cert.pem"))}
    except (OSError, ValueError) as error:
        return [Result(part, Outcome.FAILED, f"they cannot be read: {error}", "Issue them again.")]
    with contextlib.suppress(OSError):  # what keeps the Hub from connecting is told as the engine's state
        ends["the engine's"] = await _engine_certificate_ends(site, site.tls_dir)
    left = min(ends.values()) - under_test.now()
    seen = f"{', '.join(f'{whose} until {end:%d %B %Y}' for whose, end in ends.items())}; {left.days} days left"
    if left > RENEW_WITHIN:
        return [Result(part, Outcome.OK, seen)]
    renew = f"Run `{certificates_command(under_test.slug, site)} --renew` and send the new bundle to {site.contact}."
    return [Result(part, Outcome.WARNING if left > timedelta(0) else Outcome.FAILED, seen, renew)]


async def _engine_certificate_ends(site: ContainerSite, tls_dir: Path) -> datetime:
    """Raises OSError, where the connection fails."""
    context = _context(tls_dir)
    context.load_cert_chain(tls_dir / "cert.pem", tls_dir / "key.pem")
    async with _connection(site, context) as (_, writer):
        shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    return ends_of(ssl.DER_cert_to_PEM_cert(shown).encode())


def _context(tls_dir: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=tls_dir / "ca.pem")


@contextlib.asynccontextmanager
async def _connection(
    site: ContainerSite, context: ssl.SSLContext
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to the engine. Raises OSError, of which ssl.SSLError and TimeoutError are kinds."""
    parts = urlsplit(site.engine)
    async with asyncio.timeout(_CONNECT_TIMEOUT_S):
        reader, writer = await asyncio.open_connection(
            parts.hostname, parts.port, ssl=context, server_hostname=parts.hostname
        )
        try:
            yield reader, writer
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


def _reason(error: OSError) -> str:
    return error.reason.replace("_", " ").lower() if isinstance(error, ssl.SSLError) else str(error)


async def _clock(under_test: SiteUnderTest) -> Sequence[Result]:
    asked = under_test.now()
    system = await under_test.engine.call("info")
    answered = under_test.now()
    theirs = datetime.fromisoformat(system["SystemTime"])
    ahead = (theirs - (asked + (answered - asked) / 2)).total_seconds()
    seen = f"the engine's is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} the Hub's"
    if abs(ahead) <= CLOCK_LIMIT_S:
        return [Result("clock", Outcome.OK, seen)]
    next_step = f"Ask {under_test.site.contact} to set it by NTP (timedatectl), and look at the Hub's own."
    return [Result("clock", Outcome.FAILED, seen, next_step)]


# --- what servers are made of


async def _image(under_test: SiteUnderTest) -> Sequence[Result]:
    site = under_test.docker_site
    try:
        image = await under_test.engine.call("inspect_image", site.image)
    except ImageNotFound:
        next_step = (
            f"Ask {site.contact} to fetch it (docker pull {site.image}) or to load it from a file (docker load)."
        )
        return [Result("image", Outcome.FAILED, f"{site.image} is not at the engine", next_step)]
    named = "" if "@" in site.image else f" is {next(iter(image['RepoDigests']), image['Id'])}"
    return [Result("image", Outcome.OK, f"{site.image}{named}, {_gib(image['Size'])}")]


async def _image_contents(under_test: SiteUnderTest) -> Sequence[Result]:
    """What runs in the image, and how much room there is: one container tells both."""
    site = under_test.docker_site
    told = await under_test.containers.run("about")
    return [_account(told, site), _client(told, site), _room(told, site, await under_test.engine.call("info"))]


def _account(told: Mapping[str, Any], site: DockerSite) -> Result:
    if told["uid"] != 0:
        return Result("account", Outcome.OK, f"servers run as user {told['uid']}")
    next_step = f"Start no server there; ask {site.contact} how the engine comes to do so."
    return Result("account", Outcome.FAILED, "servers run as root, though told otherwise", next_step)


def _client(told: Mapping[str, Any], site: DockerSite) -> Result:
    ours, theirs = version(CLIENT_DISTRIBUTION), told["client"]
    if theirs == ours:
        return Result("client", Outcome.OK, f"{CLIENT_DISTRIBUTION} {theirs}, as at the Hub")
    seen = f"{CLIENT_DISTRIBUTION} is {theirs or 'missing'} in the image and {ours} at the Hub"
    return Result("client", Outcome.FAILED, seen, f"Build the image again from this release; tell {site.contact}.")


def _room(told: Mapping[str, Any], site: DockerSite, system: Mapping[str, Any]) -> Result:
    seen = (
        f"{_gib(told['disk_free'])} of disk free; {_gib(told['memory_free'])} of {_gib(told['memory_total'])} memory "
        f"free; {system['NCPU']} cores"
    )
    short = [
        text
        for is_short, text in (
            (told["disk_free"] < LOW_DISK, f"free some disk (below {_gib(LOW_DISK)}, images do not fit)"),
            (told["memory_total"] < site.memory, f"lower `memory`: one server may have {_gib(site.memory)}"),
            (system["NCPU"] < site.cpus, f"lower `cpus`: one server may have {site.cpus:g}"),
        )
        if is_short
    ]
    if not short:
        return Result("room", Outcome.OK, seen)
    return Result("room", Outcome.WARNING, seen, f"With {site.contact}: {'; '.join(short)}.")


async def _datasets(under_test: SiteUnderTest) -> Sequence[Result]:
    datasets = under_test.docker_site.datasets
    if not datasets:
        return [Result("dataset", Outcome.SKIPPED, "none declared")]
    return [await _dataset(under_test, name, dataset) for name, dataset in datasets.items()]


async def _dataset(under_test: SiteUnderTest, name: str, dataset: SiteDataset) -> Result:
    part, contact = f"dataset {name}", under_test.site.contact
    source = dataset.path or dataset.volume
    mount = dataset_mount(name, dataset)
    try:
        if dataset.volume is not None:
            await under_test.engine.call("inspect_volume", dataset.volume)
        told = await under_test.containers.run("dataset", f"{DATA}/{name}", mounts=[mount])
    except APIError as error:
        next_step = f"Ask {contact} where the data lie, or correct `sites.{under_test.slug}.datasets.{name}`."
        return Result(part, Outcome.FAILED, refusal_of(error).text, next_step)
    except ScriptFailed as failed:
        return Result(part, Outcome.FAILED, f"{source}: {failed}", f"Ask {contact} whether its file server answers.")
    return dataset_result(part, str(source), told, contact)


def dataset_result(part: str, source: str, told: Mapping[str, Any], contact: str) -> Result:
    """What `inside/dataset.py` has told of a dataset, worst first. Pure."""
    if told["write_refused"] is None:
        next_step = f"Stop: ask {contact} to take the site out of use until this is understood."
        return Result(part, Outcome.FAILED, f"a server could write into {source}", next_step)
    if told["unreadable"]:
        next_step = f"Ask {contact} to let user id 1000 read all of {source}."
        return Result(part, Outcome.FAILED, f"user 1000 may not read {told['unreadable']}", next_step)
    if told["entries"] == 0:
        next_step = f"Ask {contact} whether the data are there; what is mounted below that folder, servers do not see."
        return Result(part, Outcome.WARNING, f"{source} is empty", next_step)
    count = f"{'at least ' if told['entries'] == told['most'] else ''}{told['entries']}"
    seen = f"{source}, entries: {count}, readable; a write is refused ({told['write_refused'].lower()})"
    return Result(part, Outcome.OK, seen)


async def _gpus(under_test: SiteUnderTest) -> Sequence[Result]:
    gpus = under_test.docker_site.gpus
    if not gpus:
        return [Result("GPU", Outcome.SKIPPED, "none declared")]
    return [await _gpu(under_test, gpu) for gpu in gpus]


async def _gpu(under_test: SiteUnderTest, gpu: str) -> Result:
    part, contact = f"GPU {gpu}", under_test.site.contact
    try:
        told = await under_test.containers.run("gpu", gpu=gpu)
    except APIError as error:
        next_step = f"Ask {contact} for the NVIDIA container toolkit and for what `nvidia-smi -L` says."
        return Result(part, Outcome.FAILED, refusal_of(error).text, next_step)
    return Result(part, Outcome.OK, f"a container gets it{': ' + '; '.join(told['names']) if told['names'] else ''}")


# --- the network


async def _network(under_test: SiteUnderTest) -> Sequence[Result]:
    site = under_test.docker_site
    try:
        network = await under_test.engine.call("inspect_network", site.network)
    except NotFound:
        next_step = (
            f"Ask {site.contact} to run the script that `{isolation_command(under_test.slug, site, under_test.hub)}` "
            "writes, as root on the site's machine."
        )
        return [Result("network", Outcome.FAILED, f"there is no network {site.network}", next_step)]
    subnets = ", ".join(one["Subnet"] for one in network["IPAM"]["Config"] or ())
    return [Result("network", Outcome.OK, f"{site.network}, {network['Driver']}, {subnets}")]


async def _isolation(under_test: SiteUnderTest) -> Sequence[Result]:
    """Try from inside a server what no server may do."""
    part, site = "isolation", under_test.docker_site
    thread = ThreadPoolExecutor(1, thread_name_prefix="probes")
    probing = asyncio.get_running_loop().run_in_executor(thread, _probe, under_test)
    try:
        results = await asyncio.shield(probing)
    except asyncio.CancelledError:
        # The thread goes on, to remove what it made; but for an engine that hangs, nobody waits for ever.
        await asyncio.wait({probing}, timeout=CLEAN_UP_S)
        raise
    except (ProbeError, EngineError) as error:
        seen = f"the probes could not be tried: {error}"
        return [Result(part, Outcome.FAILED, seen, f"Try again; then ask {site.contact}.")]
    finally:
        thread.shutdown(wait=False)
    failed = [probe for probe in results if not probe.ok]
    if not failed:
        return [Result(part, Outcome.OK, f"{len(results)} probes: a server reaches the Hub and nothing else")]
    wrong = "; ".join(f"{probe.title}: {probe.found} (must be: {probe.expected})" for probe in failed)
    seen = f"{len(failed)} of {len(results)} probes failed: {wrong}"
    advice = "; ".join(dict.fromkeys(probe.advice for probe in failed))
    return [Result(part, Outcome.FAILED, seen, f"With {site.contact}: {advice}")]


def _probe(under_test: SiteUnderTest) -> Sequence[ProbeResult]:
    site, hub = under_test.docker_site, under_test.hub
    world = World(hub_ports=(22, hub.hub_port, hub.service_port, hub.proxy_api_port))
    with connected(site.engine, site.tls_dir) as client:
        return run_probes(
            client, site.image, site.network, hub_endpoint(hub, site), host=_address_of(site), world=world
        )


async def _published_port(under_test: SiteUnderTest) -> Sequence[Result]:
    """Reach a web server at the site as the Hub's proxy reaches a notebook server."""
    site, word = under_test.docker_site, under_test.new_id()
    host_ip = _address_of(site) or "0.0.0.0"  # noqa: S104 - as the spawner publishes
    async with under_test.containers.web_server(word, str(host_ip)) as container:
        found = await under_test.engine.call("inspect_container", container)
        host, port = _where(found, site)
        if await _says(word, host, port):
            return [Result("server port", Outcome.OK, f"the Hub reaches a server's port, {host}:{port}")]
    next_step = (
        f"Ask {site.contact} to let the Hub's address reach the ports that Docker publishes on {host} "
        "(32768 to 60999, unless the machine says otherwise)."
    )
    return [Result("server port", Outcome.FAILED, f"the Hub does not reach a server's port, {host}:{port}", next_step)]


def _address_of(site: DockerSite) -> IPv4Address | None:
    """The site's machine, where it is not only known by a name."""
    try:
        return IPv4Address(site.server_host or "")
    except AddressValueError:
        return None


def _where(container: Mapping[str, Any], site: DockerSite) -> tuple[str, int]:
    if site.server_host is None:
        return container["NetworkSettings"]["Networks"][site.network]["IPAddress"], WEB_PORT
    return site.server_host, int(container["NetworkSettings"]["Ports"][f"{WEB_PORT}/tcp"][0]["HostPort"])


async def _says(word: str, host: str, port: int) -> bool:
    """Whether a web server that says `word` is reached within a while."""
    async with httpx.AsyncClient(trust_env=False, timeout=_CONNECT_TIMEOUT_S) as client:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PUBLISHED_WITHIN_S):
                while True:
                    with contextlib.suppress(httpx.TransportError):
                        return (await client.get(f"http://{host}:{port}/")).text == word
                    await asyncio.sleep(_LOOK_AGAIN_S)
    return False


# --- a Swarm


async def _node(under_test: SiteUnderTest) -> Sequence[Result]:
    nodes = await under_test.engine.call("nodes")
    return [node_result(under_test.slug, nodes, under_test.site.contact)]


def node_result(slug: str, nodes: Sequence[Mapping[str, Any]], contact: str) -> Result:
    """Whether exactly one of a Swarm's nodes is the site's, and takes servers. Pure."""
    part, label = "node", f"{NODE_LABEL}={slug}"
    own = [node for node in nodes if (node["Spec"].get("Labels") or {}).get(NODE_LABEL) == slug]
    if len(own) != 1:
        names = ", ".join(node["Description"]["Hostname"] for node in own) or "none"
        next_step = f"On a manager: docker node update --label-add {label} NODE, and --label-rm on any other."
        return Result(part, Outcome.FAILED, f"one node must have the label {label}, and these have: {names}", next_step)
    name, state = own[0]["Description"]["Hostname"], own[0]["Status"]["State"]
    availability = own[0]["Spec"]["Availability"]
    seen = f"{name} has the label {label}; it is {state}, {availability}"
    if (state, availability) == ("ready", "active"):
        return Result(part, Outcome.OK, seen)
    return Result(part, Outcome.FAILED, seen, f"Ask {contact} what happened to {name}.")


def _gib(size: int) -> str:
    return f"{size / 1024**3:.1f} GiB"


_CONNECTION = (
    Check("engine", _engine),
    Check("TLS", _strangers, needs=("engine",)),
    Check("certificates", _certificates),
    Check("clock", _clock, needs=("engine",)),
)
CHECKS: Mapping[str, Sequence[Check]] = {
    "docker": (
        *_CONNECTION,
        Check("image", _image, needs=("engine",)),
        Check("image contents", _image_contents, needs=("image",)),
        Check("datasets", _datasets, needs=("image",)),
        Check("GPUs", _gpus, needs=("image",)),
        Check("network", _network, needs=("engine",)),
        Check("isolation", _isolation, needs=("image", "network")),
        Check("server port", _published_port, needs=("image", "network")),
    ),
    "swarm": (*_CONNECTION, Check("node", _node, needs=("engine",))),
}
