"""Servers of a site that is cut off, with JupyterHub's own bookkeeping: the Hub keeps them, or removes them later."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from docker.errors import APIError, NotFound
from jupyterhub import orm
from jupyterhub.app import JupyterHub
from jupyterhub.httpclient import JupyterHubHTTPClient
from jupyterhub.user import User, UserDict
from sqlalchemy.pool import StaticPool
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application, HTTPError, RequestHandler
from traitlets.config import Config

from spawner.container_site_spawner import DockerSiteSpawner
from spawner.deployment import Deployment
from spawner.engines import EngineUnavailable
from spawner.labels import HUB_LABEL, SERVER_LABEL, SITE_LABEL, USER_LABEL
from spawner.site_spawner import StartRefused

HUB = "http://192.0.2.1:8000"


class OneEngine:
    """Has containers, and answers while it is not `away`."""

    def __init__(self) -> None:
        self.away = False
        self.containers: dict[str, dict[str, str]] = {}
        self.asked = asyncio.Condition()
        self.unanswered = 0

    async def connect(self) -> None:
        """It is found when it is called."""

    async def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        async with self.asked:
            self.asked.notify_all()
            if self.away:
                self.unanswered += 1
                raise EngineUnavailable("it sleeps")
            return getattr(self, f"_{method}")(*args, **kwargs)

    async def holds(self, *names: str) -> None:
        """Return once it has these containers and no others."""
        async with asyncio.timeout(10), self.asked:
            await self.asked.wait_for(lambda: {*self.containers} == {*names})

    async def was_asked(self, times: int) -> None:
        async with asyncio.timeout(10), self.asked:
            await self.asked.wait_for(lambda: self.unanswered >= times)

    def make(self, name: str, user: str, hub: str = HUB) -> None:
        self.containers[name] = {HUB_LABEL: hub, SITE_LABEL: "st-anna", USER_LABEL: user, SERVER_LABEL: ""}

    def _inspect_container(self, name: str) -> dict[str, Any]:
        if name not in self.containers:
            raise NotFound("no such container")
        return {"Id": name, "State": {"Running": True}}

    def _containers(self, *, all: bool, filters: dict[str, list[str]]) -> list[dict[str, Any]]:
        wanted = set(filters["label"])
        return [
            {"Id": name, "Labels": labels}
            for name, labels in self.containers.items()
            if wanted <= {f"{key}={value}" for key, value in labels.items()}
        ]

    def _inspect_image(self, image: str) -> None:
        raise APIError("no room", explanation="no room")

    def _remove_container(self, name: str, *, v: bool, force: bool) -> None:
        del self.containers[name]


class Spawner(DockerSiteSpawner):
    """At that engine, and never patient."""

    engine: OneEngine
    ask_again_s = 0.01

    @property
    def _engine(self) -> Any:
        return self.engine


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> OneEngine:
    engine = OneEngine()
    monkeypatch.setattr(Spawner, "engine", engine, raising=False)
    return engine


@pytest.fixture
def users(tmp_path: Path, engine: OneEngine) -> UserDict:
    tables = {
        "hub": {"bind_url": HUB, "data_dir": "state", "admin_contact": "Robin"},
        "sso": {"preset": "cilogon", "client_id": "c", "institutions": {"urn:mace:a": "st-anna"}},
        "aggregators": {"kind": "docker", "image": "aggregator@sha256:12"},
        "sites": {
            "st-anna": {
                "kind": "docker",
                "title": "St. Anna Hospital",
                "contact": "Ingrid",
                "engine": "unix:///not/asked.sock",
                "image": "notebook@sha256:12",
            }
        },
    }
    deployment = Deployment.model_validate(tables, context={"folder": tmp_path})
    db = orm.new_session_factory("sqlite:///:memory:", poolclass=StaticPool)()
    settings = {"spawner_class": Spawner, "config": Config({"Spawner": {"deployment": deployment, "http_timeout": 1}})}
    return UserDict(lambda: db, settings)


@pytest.fixture
async def server() -> AsyncIterator[tuple[HTTPServer, int]]:
    """A notebook server that nobody reaches yet; a request waits for it to be started."""

    class Api(RequestHandler):
        def get(self) -> None:
            self.set_header("X-JupyterHub-Version", "6")

    listener, port = bind_unused_port()
    listener.close()
    server = HTTPServer(Application([(r".*", Api)]))
    yield server, port
    await JupyterHubHTTPClient.loop_instance().close()
    server.stop()
    await server.close_all_connections()


def running(users: UserDict, name: str, port: int = 9) -> User:
    """A person whose server runs, as a Hub that is started anew finds it in its database."""
    user = orm.User(name=name, groups=[orm.Group.find(users.db, "site-st-anna") or orm.Group(name="site-st-anna")])
    state = {"object_id": f"federation-{name}", "object_name": f"federation-{name}", "site": "st-anna"}
    users.db.add(orm.Spawner(user=user, name="", state=state, server=orm.Server(ip="127.0.0.1", port=port)))
    users.db.commit()
    return users[name]


async def restarted(users: UserDict) -> None:
    """What a Hub does with its servers when it is started."""
    hub = SimpleNamespace(
        log=logging.getLogger("hub"),
        log_level=logging.INFO,
        db=users.db,
        users=users,
        authenticator=SimpleNamespace(blocked_users=set()),
    )
    await JupyterHub.init_spawners(hub)


async def test_a_hub_that_is_started_anew_waits_for_a_site_that_is_cut_off(
    users: UserDict, engine: OneEngine, server: tuple[HTTPServer, int]
) -> None:
    listener, port = server
    user = running(users, "amara", port)
    engine.make("federation-amara", "amara")
    engine.away = True
    starting = asyncio.create_task(restarted(users))
    await engine.was_asked(times=150)  # more than `http_timeout`
    assert user.spawner.pending == "check"
    listener.listen(port, "127.0.0.1")
    engine.away = False
    async with asyncio.timeout(10):
        await starting
    assert user.spawner.ready
    assert user.spawner.orm_spawner.state["object_id"] == "federation-amara"
    user.spawner.stop_polling()


async def test_a_server_that_is_reached_needs_no_engine_to_be_known(
    users: UserDict, engine: OneEngine, server: tuple[HTTPServer, int]
) -> None:
    """People work on while their site's engine hangs and the Hub is started anew."""
    listener, port = server
    listener.listen(port, "127.0.0.1")
    user = running(users, "amara", port)
    engine.away = True
    async with asyncio.timeout(10):
        await restarted(users)
    assert user.spawner.ready
    user.spawner.stop_polling()


async def test_a_server_that_ended_meanwhile_is_let_go(users: UserDict, engine: OneEngine) -> None:
    user = running(users, "amara")
    engine.away = True
    starting = asyncio.create_task(restarted(users))
    await engine.was_asked(times=2)
    engine.away = False
    async with asyncio.timeout(10):
        await starting
    assert not user.spawner.active


async def stopped_while_away(users: UserDict, engine: OneEngine) -> None:
    """Amara's server, by its owner."""
    user = running(users, "amara")
    engine.make("federation-amara", "amara")
    engine.away = True
    with pytest.raises(HTTPError, match=r"St\. Anna Hospital does not answer: it sleeps.*is stopped when the engine"):
        await user.stop()
    assert not user.spawner.active
    assert user.spawner.orm_spawner.state == {"site": ""}  # JupyterHub forgets it, whatever is raised


async def test_a_server_that_could_not_be_stopped_is_removed_when_its_site_is_back(
    users: UserDict, engine: OneEngine
) -> None:
    await stopped_while_away(users, engine)
    running(users, "ben")
    engine.make("federation-ben", "ben")
    engine.make("elsewhere", "amara", hub="https://another.hub.example")
    engine.away = False
    await engine.holds("elsewhere", "federation-ben")


async def test_a_person_who_was_given_another_name_keeps_the_server(users: UserDict, engine: OneEngine) -> None:
    running(users, "ben").name = "benedict"
    users.db.commit()
    engine.make("federation-ben", "ben")
    await stopped_while_away(users, engine)
    engine.away = False
    await engine.holds("federation-ben")


async def test_where_the_hub_was_started_anew_meanwhile_the_next_start_at_the_site_removes_it(
    users: UserDict, engine: OneEngine
) -> None:
    ben = running(users, "ben")
    engine.make("federation-amara", "amara")
    with pytest.raises(StartRefused, match="could not start your server"):
        await ben.spawner.start()
    assert engine.containers == {}
