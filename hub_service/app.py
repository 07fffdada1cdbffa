"""Builds every object of the service and wires them; the only place that names concrete classes.

The order matters: the Hub ends itself if a managed service does not answer within 30 s. So the port is bound and
`/health` answers first; the database and the aggregators are opened after.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import uuid
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from importlib.metadata import packages_distributions
from pathlib import Path
from urllib.parse import quote

from federator.contract import FLEET_PREFIX
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from hub_service.aggregators.base import AggregatorBackend
from hub_service.aggregators.docker import DockerAggregators
from hub_service.aggregators.local import LocalAggregators
from hub_service.aggregators.superlink import SuperLink
from hub_service.apps.build import AppBuilder
from hub_service.artifacts import Artifacts
from hub_service.changes import Changes
from hub_service.coordinator import Coordinator
from hub_service.gateway.gateway import Gateway
from hub_service.gateway.handlers import CHUNK_SIZE, fleet_routes
from hub_service.hub_client import HubClient
from hub_service.identity import OAuthCallback, close_hub_connections, hub_auth_from_environment
from hub_service.notices.endings import Endings
from hub_service.notices.mail import Mail, addresses_by
from hub_service.notices.outbox import Channel, Outbox
from hub_service.notices.webhook import Webhook
from hub_service.reconciler import Reconciler
from hub_service.results.signing import SigningKey
from hub_service.settings import Settings
from hub_service.store.sql import SqlStore
from hub_service.web.routes import make_routes

log = logging.getLogger(__name__)

_LOST_CLIENTS_EVERY_S = 5.0
_ENDINGS_EVERY_S = 600.0
_LARGEST_BODY = 2 << 20  # bytes
_RESTART_AFTER_S = 5.0  # a background task that broke is started again after this long


class Health(RequestHandler):
    """Whether the service is there, for the Hub and for whoever watches it. Tells nothing else."""

    def get(self) -> None:
        self.write({"status": "ready" if self.settings["ready"].is_set() else "starting"})


class NothingHere(RequestHandler):
    """Every path that no other handler takes; while the service starts, that is every path but `/health`."""

    def prepare(self) -> None:
        starting = not self.settings["ready"].is_set()
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
        self.port = settings.port

    async def start(self) -> None:
        """Answer `/health`, then open everything; return when all routes are served."""
        self._settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        application = self._listen()
        await self._open(application)
        self._ready.set()
        log.info("ready on %s:%d", self._settings.host, self.port)

    async def close(self) -> None:
        """Stop answering, end runs and aggregators, close the database."""
        await self._opened.aclose()

    def _listen(self) -> Application:
        application = Application(
            self._health_routes(),
            default_handler_class=NothingHere,
            hub_auth=hub_auth_from_environment(),
            cookie_secret=_kept_secret(self._settings.state_dir / "cookie-secret"),
            xsrf_cookies=True,
            log_function=_log_request,
            ready=self._ready,
        )
        # Handlers that take more in pieces raise the limit themselves.
        server = HTTPServer(application, xheaders=True, max_body_size=_LARGEST_BODY, chunk_size=CHUNK_SIZE)
        sockets = bind_sockets(self._settings.port, self._settings.host)
        server.add_sockets(sockets)
        self.port = sockets[0].getsockname()[1]
        self._opened.push_async_callback(close_hub_connections)
        self._opened.push_async_callback(server.close_all_connections)
        self._opened.callback(server.stop)
        return application

    def _health_routes(self) -> list[tuple[str, type[RequestHandler]]]:
        return [("/health", Health), (f"{self._settings.prefix}health", Health)]

    async def _open(self, application: Application) -> None:
        settings = self._settings
        changes = Changes()
        database = f"sqlite:///{settings.state_dir.absolute() / 'federation.db'}"
        store = await asyncio.to_thread(SqlStore, database)  # may take long; `/health` is answered meanwhile
        self._opened.callback(store.close)
        artifacts = Artifacts(settings.state_dir / "artifacts")
        backend = self._aggregators()
        self._opened.push_async_callback(backend.close)
        outbox = self._outbox()
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
        )
        reconciler = Reconciler(
            store=store,
            artifacts=artifacts,
            backend=backend,
            superlink=SuperLink,
            changes=changes,
            clock=_now,
            tell=outbox.tell,
            keep_model_bytes=settings.keep_model_bytes,
        )
        self._opened.push_async_callback(reconciler.close)
        gateway = Gateway(
            grants=coordinator.node_grant,
            backend=backend,
            seen=coordinator.node_seen,
            cut_off=coordinator.node_cut_off,
            moved=coordinator.node_moved,
            clock=_now,
        )
        self._opened.push_async_callback(gateway.close)
        self._in_background(reconciler.run, "reconciler")
        self._in_background(_every(_LOST_CLIENTS_EVERY_S, coordinator.note_lost_clients), "lost clients")
        within = timedelta(days=settings.notices.ending_days)
        endings = Endings(coordinator.approvals_ending, outbox.tell, within)
        self._in_background(_every(_ENDINGS_EVERY_S, endings.look), "approvals that end soon")
        application.add_handlers(
            ".*",
            [
                *self._health_routes(),  # the routes below would take its path
                (f"{settings.prefix}oauth_callback", OAuthCallback),
                *fleet_routes(gateway),
                *make_routes(coordinator=coordinator, changes=changes, prefix=settings.prefix),
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
        self._in_background(outbox.run, "notices")
        self._opened.push_async_callback(outbox.close)
        return outbox

    def _aggregators(self) -> AggregatorBackend:
        engine = self._settings.aggregator_engine
        if engine is None:
            return LocalAggregators(self._settings.state_dir)
        return DockerAggregators(
            self._settings.state_dir,
            engine=engine.address,
            tls_dir=engine.tls_dir,
            image=engine.image,
            limits=engine.limits,
            clock=_now,
            new_id=_new_id,
        )

    def _in_background(self, run: Callable[[], Awaitable[None]], name: str) -> None:
        task = asyncio.create_task(_kept_running(run, name), name=name)

        async def end() -> None:
            task.cancel()
            await asyncio.wait({task})

        self._opened.push_async_callback(end)


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


def set_up_logging() -> None:
    """One readable line an event on standard error, which the Hub's log takes up."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # These write session ids, or an address for every request of ours.
    for name in ("tornado.application", "httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _log_request(handler: RequestHandler) -> None:
    """Called by tornado after each request. Without the query: OAuth codes and XSRF tokens stand there."""
    request = handler.request
    if handler.get_status() == HTTPStatus.INTERNAL_SERVER_ERROR:
        level = logging.ERROR
    elif request.path.startswith(FLEET_PREFIX):
        level = logging.DEBUG  # a round has hundreds
    else:
        level = logging.INFO
    milliseconds = 1000 * request.request_time()
    log.log(level, "%s %s %d %.0f ms", request.method, request.path, handler.get_status(), milliseconds)


def _kept_secret(path: Path) -> bytes:
    """A secret that survives a restart, so that logins do too."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_bytes()
    with open(descriptor, "wb") as file:
        file.write(secrets.token_bytes(32))
    return path.read_bytes()


async def _kept_running(run: Callable[[], Awaitable[None]], name: str) -> None:
    """Run a background task; one that breaks is logged and started again: a single fault stops nothing for good."""
    while True:
        task = asyncio.ensure_future(run())
        try:
            await asyncio.wait({task})
        finally:
            task.cancel()
            await asyncio.wait({task})
        log.error("%s broke and is started again", name, exc_info=task.exception())
        await asyncio.sleep(_RESTART_AFTER_S)


def _every(seconds: float, act: Callable[[], None]) -> Callable[[], Awaitable[None]]:
    async def run() -> None:
        while True:
            await asyncio.sleep(seconds)
            act()

    return run


def _now() -> datetime:
    return datetime.now(UTC)


def _new_id() -> str:
    return str(uuid.uuid4())
