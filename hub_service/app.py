"""Builds every object of the service and wires them; the only place that names concrete classes.

The order matters: the Hub ends itself if a managed service does not answer within 30 s. So the port is bound and
`/health` answers first; the database and the aggregators are opened after.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import secrets
import signal
import socket
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from http import HTTPStatus
from importlib.metadata import packages_distributions
from pathlib import Path
from urllib.parse import quote

from federator import logs
from federator.logs import LogFormat
from tornado.httpserver import HTTPServer
from tornado.web import Application, RequestHandler

from hub_service.aggregators.base import AggregatorBackend
from hub_service.aggregators.docker import DockerAggregators
from hub_service.aggregators.local import LocalAggregators
from hub_service.aggregators.superlink import SuperLink
from hub_service.apps.build import AppBuilder
from hub_service.apps.cells import preload
from hub_service.artifact_uploads import Uploads
from hub_service.artifacts import Artifacts
from hub_service.changes import Changes
from hub_service.coordinator import Coordinator
from hub_service.domain.errors import DatabaseUnavailable, Unavailable
from hub_service.durable_files import kept_file
from hub_service.gateway.gateway import Gateway
from hub_service.gateway.handlers import CHUNK_SIZE, FleetHandler, fleet_routes
from hub_service.hub_client import HubClient
from hub_service.identity import OAuthCallback, close_hub_connections, hub_auth_from_environment
from hub_service.last_errors import LastErrors
from hub_service.machinery import Machinery, check_disk
from hub_service.metrics import Metrics
from hub_service.notices.endings import Endings
from hub_service.notices.mail import Mail, addresses_by
from hub_service.notices.outbox import Channel, Outbox
from hub_service.notices.webhook import Webhook
from hub_service.rate_limits import RateLimits
from hub_service.readiness import Part, Readiness
from hub_service.reconciler import Reconciler
from hub_service.results.signing import SigningKey
from hub_service.settings import AggregatorEngine, Settings
from hub_service.store.base import Store
from hub_service.store.sql import SqlStore
from hub_service.sweeper import Sweeper
from hub_service.turns import Turns
from hub_service.web.routes import make_routes, route_names
from hub_service.web.tracing import TracedApplication

log = logging.getLogger(__name__)

_LOST_CLIENTS_EVERY_S = 5.0
_ENDINGS_EVERY_S = 600.0
_GONE_EVERY_S = 1.0
_LARGEST_BODY = 2 << 20  # bytes
_LONGEST_BODY_S = 600.0  # that a request may take to come in; nodes' are watched by the gateway
_DATABASE_WAIT_S = 60.0
_PORT_ATTEMPTS, _PORT_EVERY_S = 240, 0.25  # less in all than the Hub waits: `spawner.access`
_RESTART_AFTER_S = 5.0  # a background task that broke is started again after this long
_LAG_EVERY_S = 1.0


class Health(RequestHandler):
    """Whether the service and its parts do their work, for whoever watches it. Says no reason: anybody may ask."""

    async def get(self) -> None:
        readiness: Readiness | None = self.settings["readiness"]()
        parts: tuple[Part, ...] = ()
        status = "starting"
        if readiness is not None:
            parts = await readiness.parts()
            status = "ready" if all(part.works for part in parts) else "impaired"
        self.set_header("Cache-Control", "no-store")
        self.set_status(HTTPStatus.OK if status == "ready" else HTTPStatus.SERVICE_UNAVAILABLE)
        self.finish({"status": status, "parts": {part.name: "works" if part.works else "fails" for part in parts}})


class NothingHere(RequestHandler):
    """Every path that no other handler takes; while the service starts, that is every path but `/health`."""

    def prepare(self) -> None:
        starting = not self.settings["ready"].is_set()
        if starting and self.request.path == self.settings["prefix"] and self.request.method == "GET":
            # A Hub that starts asks for this page, and ends itself where no answer but errors comes in time.
            self.set_header("Refresh", "2")
            self.finish("The federation service is starting.\n")
            return
        self.set_status(HTTPStatus.SERVICE_UNAVAILABLE if starting else HTTPStatus.NOT_FOUND)
        if starting:
            self.set_header("Retry-After", "1")
        self.finish("The federation service is starting.\n" if starting else "There is nothing here.\n")

    def check_xsrf_cookie(self) -> None:
        """Nothing here has an effect."""


class Service:
    """The running service. `start`, then `close`; `port` is where it listens."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._opened = AsyncExitStack()
        self._ready = asyncio.Event()
        self._rate_limits = RateLimits()
        self._readiness: Readiness | None = None
        self._tasks: dict[str, bool] = {}  # by name, whether a background task runs
        self._last_errors = LastErrors()
        self._metrics = Metrics(settings.sites)
        self._route_names = route_names()
        self.port = settings.port

    async def start(self) -> None:
        """Answer `/health`, then open everything; return when all routes are served."""
        self._settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        ours = logging.getLogger(__package__)
        ours.addHandler(self._last_errors)
        self._opened.callback(ours.removeHandler, self._last_errors)
        application = await self._listen()
        await self._open(application)
        self._ready.set()
        preloading = asyncio.create_task(asyncio.to_thread(preload), name="preloading")
        self._opened.push_async_callback(asyncio.wait, [preloading])
        log.info("ready on %s:%d", self._settings.host, self.port)

    async def close(self) -> None:
        """Stop answering, close the database. Aggregators and their runs are left to the next service."""
        await self._opened.aclose()

    async def _listen(self) -> Application:
        application = TracedApplication(
            self._health_routes(),
            default_handler_class=NothingHere,
            hub_auth=hub_auth_from_environment(),
            rate_limits=self._rate_limits,
            cookie_secret=kept_file(
                self._settings.state_dir / "cookie-secret", _new_secret
            ),  # logins survive a restart
            xsrf_cookies=True,
            log_function=self._log_request,
            ready=self._ready,
            prefix=self._settings.prefix,
            readiness=lambda: self._readiness if self._ready.is_set() else None,
            new_id=_new_id,
        )
        # Handlers that take more in pieces raise the limit themselves.
        server = HTTPServer(
            application,
            xheaders=True,
            max_body_size=_LARGEST_BODY,
            body_timeout=_LONGEST_BODY_S,
            chunk_size=CHUNK_SIZE,
        )
        listening = await _bound(self._settings.port, self._settings.host)
        server.add_socket(listening)
        self.port = listening.getsockname()[1]
        self._opened.push_async_callback(close_hub_connections)
        self._opened.push_async_callback(server.close_all_connections)
        self._opened.callback(server.stop)
        return application

    def _health_routes(self) -> list[tuple[str, type[RequestHandler]]]:
        return [("/health", Health), (f"{self._settings.prefix}health", Health)]

    async def _open(self, application: Application) -> None:
        settings = self._settings
        changes = Changes()
        # May take long, for a server that comes up or a service that ends; `/health` is answered meanwhile.
        store = await asyncio.to_thread(SqlStore, settings.database_url, wait_s=_DATABASE_WAIT_S)
        self._opened.callback(store.close)
        store.time_statements(self._metrics.statement)
        artifacts = settings.artifacts.opened(settings.state_dir)
        backend = self._aggregators()
        self._opened.push_async_callback(backend.close)
        outbox = self._outbox()
        self._readiness = self._checks(store, artifacts, backend)
        machinery = Machinery(
            self._readiness, backend, outbox, settings.state_dir, self._tasks, self._last_errors.lines
        )
        coordinator = Coordinator(
            store=store,
            artifacts=artifacts,
            hub=HubClient(settings.hub_api_url, settings.hub_api_token),
            builder=AppBuilder(known_modules=frozenset(packages_distributions())),
            sites=settings.sites,
            changes=changes,
            clock=_now,
            new_id=_new_id,
            admin_contact=settings.admin_contact,
            tell=outbox.tell,
            serverapp_log=backend.serverapp_log,
            signing_key=SigningKey.kept(settings.state_dir / "signing-key.pem"),
            aggregator_image=settings.aggregator_engine.image if settings.aggregator_engine else "",
            machinery=machinery,
            quotas=settings.quotas,
            client_lost=self._metrics.client_lost,
        )
        turns = Turns()
        reconciler = Reconciler(
            store=store,
            artifacts=artifacts,
            backend=backend,
            superlink=SuperLink,
            changes=changes,
            clock=_now,
            tell=outbox.tell,
            keep_model_bytes=settings.keep_model_bytes,
            watch=self._metrics,
            turns=turns,
        )
        self._opened.push_async_callback(reconciler.close)
        gateway = Gateway(
            grants=coordinator.node_grant,
            backend=backend,
            seen=coordinator.node_seen,
            cut_off=coordinator.node_cut_off,
            moved=coordinator.node_moved,
            clock=_now,
            rate_limits=self._rate_limits,
            turns=turns,
        )
        self._opened.push_async_callback(gateway.close)
        self._in_background(reconciler.run, "reconciler")
        sweeper = Sweeper(
            store=store,
            artifacts=artifacts,
            backend=backend,
            changes=changes,
            clock=_now,
            keep_rounds=settings.keep_round_models,
            keep_model_bytes=settings.keep_model_bytes,
        )
        self._in_background(sweeper.run, "sweeper")
        if settings.artifacts.bucket is not None:
            self._in_background(Uploads(artifacts).run, "uploads of artifacts")
        self._in_background(_every(_LOST_CLIENTS_EVERY_S, coordinator.note_lost_clients), "lost clients")
        self._in_background(_after_each(_GONE_EVERY_S, coordinator.end_parts_of_the_gone), "people of the sites")
        within = timedelta(days=settings.notices.ending_days)
        endings = Endings(coordinator.approvals_ending, outbox.tell, within)
        self._in_background(_every(_ENDINGS_EVERY_S, endings.look), "approvals that end soon")
        self._in_background(self._watch_the_loop, "event loop")

        async def scrape() -> bytes:
            figures = await coordinator.figures(gateway.traffic)
            return await asyncio.to_thread(self._metrics.text, figures)  # with 50 sites it takes 20 ms and more

        application.add_handlers(
            ".*",
            [
                *self._health_routes(),  # the routes below would take its path
                (f"{settings.prefix}oauth_callback", OAuthCallback),
                *fleet_routes(gateway),
                *make_routes(
                    coordinator=coordinator, changes=changes, prefix=settings.prefix, scrape=scrape, turns=turns
                ),
            ],
        )
        self._opened.callback(changes.close)  # first of all, so that those who wait are answered

    def _outbox(self) -> Outbox:
        """Sends notices from now on, by the ways that the deployment has set up."""
        settings, channels = self._settings.notices, list[Channel]()
        if settings.mail is not None:
            channels.append(Mail(settings.mail, addresses_by(settings.address, self._settings.sites), _now))
        if settings.webhook is not None:
            webhook = Webhook(settings.webhook, _now)
            self._opened.push_async_callback(webhook.close)
            channels.append(webhook)
        prefix = settings.origin + self._settings.prefix
        outbox = Outbox(channels, lambda notice: prefix + "/".join(quote(one, safe="") for one in notice.page))
        for name, run in outbox.runs().items():
            self._in_background(run, f"notices by {name}")
        self._opened.push_async_callback(outbox.close)
        return outbox

    def _aggregators(self) -> AggregatorBackend:
        return aggregators_of(self._settings.state_dir, self._settings.aggregator_engine)

    def _checks(self, store: Store, artifacts: Artifacts, backend: AggregatorBackend) -> Readiness:
        async def database() -> None:
            store.unfinished_runs()

        async def kept() -> None:
            await asyncio.to_thread(artifacts.check)

        async def tasks() -> None:
            if broken := [name for name, up in self._tasks.items() if not up]:
                raise Unavailable("A background task broke.", debug=f"is started again soon: {', '.join(broken)}")

        return Readiness(
            {
                "database": database,
                "artifacts": kept,
                "aggregators": backend.check,
                "tasks": tasks,
                "disk": partial(check_disk, self._settings.state_dir),
            }
        )

    async def _watch_the_loop(self) -> None:
        """How late it wakes a sleeper is how late everybody is answered."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _LAG_EVERY_S
            await asyncio.sleep(_LAG_EVERY_S)
            self._metrics.loop_lag(max(0.0, loop.time() - due))

    def _log_request(self, handler: RequestHandler) -> None:
        """Called by tornado after each request. Without the query: OAuth codes and XSRF tokens stand there."""
        request, status, seconds = handler.request, handler.get_status(), handler.request.request_time()
        level = logging.INFO
        if isinstance(handler, FleetHandler):
            level = logging.DEBUG  # a round has hundreds
            self._metrics.fleet_request(handler.known_operation, status, seconds)
        elif (name := self._route_names.get(type(handler))) is not None:
            self._metrics.request(name, request.method or "", status, seconds)
        if status == HTTPStatus.INTERNAL_SERVER_ERROR:
            level = logging.ERROR
        log.log(level, "%s %s %d %.0f ms", request.method, request.path, status, 1000 * seconds)

    def _in_background(self, run: Callable[[], Awaitable[None]], name: str) -> None:
        task = asyncio.create_task(self._kept_running(run, name), name=name)

        async def end() -> None:
            task.cancel()
            await asyncio.wait({task})

        self._opened.push_async_callback(end)

    async def _kept_running(self, run: Callable[[], Awaitable[None]], name: str) -> None:
        """Run a background task; one that breaks is logged and started again: a single fault stops nothing for good."""
        while True:
            task = asyncio.ensure_future(run())
            self._tasks[name] = True
            try:
                await asyncio.wait({task})
            finally:
                task.cancel()
                await asyncio.wait({task})
            self._tasks[name] = False
            self._metrics.task_restarted(name)
            log.error("%s broke and is started again", name, exc_info=task.exception())
            await asyncio.sleep(_RESTART_AFTER_S)


def aggregators_of(state_dir: Path, engine: AggregatorEngine | None) -> AggregatorBackend:
    """Those that the settings name, with all that an earlier service has left running."""
    if engine is None:
        return LocalAggregators(state_dir)
    return DockerAggregators(
        state_dir,
        engine=engine.address,
        tls_dir=engine.tls_dir,
        image=engine.image,
        limits=engine.limits,
        clock=_now,
        new_id=_new_id,
    )


async def _bound(port: int, host: str) -> socket.socket:
    """A socket that listens there.

    After a crash of the Hub, the service of the one before may still be about to end: its port is waited for, and with
    it the state folder, which it keeps longer than anything else. Raises Unavailable.
    """
    for attempt in range(_PORT_ATTEMPTS):
        try:
            listening = socket.create_server((host, port))
            listening.setblocking(False)
            return listening
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise Unavailable(f"Nothing can listen on {host}:{port}.", debug=str(error)) from error
        if not attempt:
            log.warning("port %d is taken; waiting for its owner to end", port)
        await asyncio.sleep(_PORT_EVERY_S)
    raise Unavailable(
        f"Port {port} is taken by another program.", "End that program, or choose another service_port for the Hub."
    )


async def serve(settings: Settings) -> None:
    """Run the service until SIGTERM or SIGINT."""
    asked_to_end = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked_to_end.set)
    service = Service(settings)
    try:
        await service.start()
        await asked_to_end.wait()
    finally:
        await service.close()


def set_up_logging(wanted: LogFormat = LogFormat.TEXT) -> None:
    """One line an event on standard error, which the Hub's log takes up."""
    logs.set_up(wanted)
    # These write session ids, or an address for every request of ours.
    for name in ("tornado.application", "httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _after_each(seconds: float, act: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    async def run() -> None:
        while True:
            await asyncio.sleep(seconds)
            with _put_off_in_an_outage():
                await act()

    return run


def _every(seconds: float, act: Callable[[], None]) -> Callable[[], Awaitable[None]]:
    async def run() -> None:
        while True:
            await asyncio.sleep(seconds)
            with _put_off_in_an_outage():
                act()

    return run


@contextmanager
def _put_off_in_an_outage() -> Iterator[None]:
    """Of the database: what is due now is due then, too."""
    try:
        yield
    except DatabaseUnavailable as error:
        log.warning("put off: %s", error.message)


def _now() -> datetime:
    return datetime.now(UTC)


def _new_secret() -> bytes:
    return secrets.token_bytes(32)


def _new_id() -> str:
    return str(uuid.uuid4())
