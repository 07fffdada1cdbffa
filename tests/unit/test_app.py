"""The service as a whole: settings, the order of its start, its routes beside each other, and its end."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path

import pytest
from federator.contract import SERVICE_PREFIX
from tornado.httpclient import AsyncHTTPClient, HTTPResponse

from hub_service.__main__ import main
from hub_service.aggregators.base import Limits
from hub_service.aggregators.docker import DockerAggregators
from hub_service.aggregators.local import LocalAggregators
from hub_service.app import Service, _after_each, _bound
from hub_service.domain.errors import DatabaseUnavailable, Invalid, Unavailable
from hub_service.settings import AggregatorEngine, Settings
from tests.fakes.federation import SITES

SECRET = "the-token-that-nobody-may-see"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {
        "JUPYTERHUB_SERVICE_URL": "http://127.0.0.1:0",
        "JUPYTERHUB_SERVICE_PREFIX": SERVICE_PREFIX,
        "JUPYTERHUB_SERVICE_NAME": "federation",
        "JUPYTERHUB_CLIENT_ID": "service-federation",
        "JUPYTERHUB_API_URL": "http://127.0.0.1:1/hub/api",
        "JUPYTERHUB_API_TOKEN": SECRET,
        "FEDERATION_STATE_DIR": str(tmp_path / "state"),
        "FEDERATION_SITES": json.dumps([asdict(site) for site in SITES.values()]),
        "FEDERATION_ADMIN_CONTACT": "it@hub.example",
    }


class TestSettings:
    def test_the_hubs_environment_is_read(self, environment: dict[str, str], tmp_path: Path) -> None:
        settings = Settings.from_environment({**environment, "JUPYTERHUB_SERVICE_URL": "http://10.0.0.1:9100/x"})
        assert (settings.host, settings.port, settings.prefix) == ("10.0.0.1", 9100, SERVICE_PREFIX)
        assert settings.sites == SITES
        assert settings.state_dir == tmp_path / "state"
        assert settings.admin_contact == "it@hub.example"

    def test_the_token_is_in_no_repr(self, environment: dict[str, str]) -> None:
        assert SECRET not in repr(Settings.from_environment(environment))

    @pytest.mark.parametrize(
        "name",
        [
            "JUPYTERHUB_SERVICE_URL",
            "JUPYTERHUB_SERVICE_PREFIX",
            "JUPYTERHUB_API_URL",
            "JUPYTERHUB_API_TOKEN",
            "FEDERATION_STATE_DIR",
            "FEDERATION_SITES",
        ],
    )
    def test_what_is_missing_is_named(self, environment: dict[str, str], name: str) -> None:
        del environment[name]
        with pytest.raises(Invalid, match=name):
            Settings.from_environment(environment)

    @pytest.mark.parametrize("text", ["hospital", "{}x", '["a"]', '[{"slug": "a"}]', '[{"slug": "a", "datasets": []}]'])
    def test_sites_that_cannot_be_read_are_refused(self, environment: dict[str, str], text: str) -> None:
        with pytest.raises(Invalid, match="FEDERATION_SITES"):
            Settings.from_environment({**environment, "FEDERATION_SITES": text})

    @pytest.mark.parametrize("text", ["", '{"kind": "local"}'])
    def test_aggregators_are_processes_unless_an_engine_is_named(self, environment: dict[str, str], text: str) -> None:
        settings = Settings.from_environment({**environment, "FEDERATION_AGGREGATORS": text})
        assert settings.aggregator_engine is None
        assert isinstance(Service(settings)._aggregators(), LocalAggregators)

    async def test_an_engine_has_defaults_for_all_but_the_image(self, environment: dict[str, str]) -> None:
        text = json.dumps({"kind": "docker", "image": "aggregator@sha256:1"})
        settings = Settings.from_environment({**environment, "FEDERATION_AGGREGATORS": text})
        assert settings.aggregator_engine == AggregatorEngine(
            "unix:///var/run/docker.sock", None, "aggregator@sha256:1", Limits()
        )
        backend = Service(settings)._aggregators()
        assert isinstance(backend, DockerAggregators)
        await backend.close()

    def test_an_engine_is_described(self, environment: dict[str, str]) -> None:
        told = {"kind": "docker", "engine": "tcp://10.0.0.7:2376", "tls_dir": "/etc/engine", "image": "aggregator"}
        limits = {"memory_bytes": 2**31, "cpus": 0.5, "disk_bytes": 10**9, "hours": 1.5}
        settings = Settings.from_environment({**environment, "FEDERATION_AGGREGATORS": json.dumps(told | limits)})
        assert settings.aggregator_engine == AggregatorEngine(
            "tcp://10.0.0.7:2376", Path("/etc/engine"), "aggregator", Limits(2**31, 0.5, 10**9, 1.5)
        )

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("docker", "Expecting value"),
            ("[]", "FEDERATION_AGGREGATORS"),
            ("{}", "'kind' is missing"),
            ('{"kind": "swarm"}', "neither local nor docker"),
            ('{"kind": "docker"}', "'image' is missing"),
            ('{"kind": "local", "image": "a"}', "nothing is known by 'image'"),
            ('{"kind": "docker", "image": "a", "memory": 1}', "nothing is known by 'memory'"),
            ('{"kind": "docker", "image": "a", "cpus": 0}', "cpus is 0"),
            ('{"kind": "docker", "image": "a", "hours": true}', "hours is True"),
            ('{"kind": "docker", "image": "a", "disk_bytes": "1g"}', "disk_bytes is '1g'"),
            ('{"kind": "docker", "image": "a", "tls_dir": 7}', "FEDERATION_AGGREGATORS"),
        ],
    )
    def test_aggregators_that_cannot_be_read_are_refused(
        self, environment: dict[str, str], text: str, reason: str
    ) -> None:
        with pytest.raises(Invalid, match="FEDERATION_AGGREGATORS") as caught:
            Settings.from_environment({**environment, "FEDERATION_AGGREGATORS": text})
        assert reason in caught.value.message


async def get(service: Service, path: str, method: str = "GET") -> HTTPResponse:
    return await AsyncHTTPClient().fetch(
        f"http://127.0.0.1:{service.port}{path}",
        method=method,
        body=b"" if method == "POST" else None,
        raise_error=False,
        follow_redirects=False,
    )


class TestService:
    @pytest.fixture
    async def service(self, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        service = Service(Settings.from_environment(environment))
        await service.start()
        yield service
        await service.close()

    @pytest.mark.parametrize("path", ["/health", SERVICE_PREFIX + "health"])
    async def test_health_is_answered_to_anybody(self, service: Service, path: str) -> None:
        answer = await get(service, path)
        assert (answer.code, answer.headers["Cache-Control"]) == (200, "no-store")
        parts = dict.fromkeys(("database", "artifacts", "aggregators", "tasks", "disk"), "works")
        assert json.loads(answer.body) == {"status": "ready", "parts": parts}

    async def test_health_names_the_part_that_fails_and_not_why(
        self, service: Service, environment: dict[str, str], caplog: pytest.LogCaptureFixture
    ) -> None:
        shutil.rmtree(Path(environment["FEDERATION_STATE_DIR"]) / "artifacts")
        answer = await get(service, "/health")
        told = json.loads(answer.body)
        assert (answer.code, told["status"], told["parts"]["artifacts"]) == (503, "impaired", "fails")
        assert environment["FEDERATION_STATE_DIR"].encode() not in answer.body
        assert "artifacts fails" in caplog.text

    async def test_a_task_that_broke_fails_the_health_until_it_runs_again(self, service: Service) -> None:
        service._tasks["reconciler"] = False
        assert json.loads((await get(service, "/health")).body)["parts"]["tasks"] == "fails"

    async def test_metrics_are_not_for_everybody(self, service: Service) -> None:
        assert (await get(service, SERVICE_PREFIX + "metrics")).code == 401

    async def test_a_request_id_is_kept_or_made(self, service: Service) -> None:
        url = f"http://127.0.0.1:{service.port}{SERVICE_PREFIX}api/home"
        for sent, kept in (("abc-1", True), ("a b", False), ("x" * 65, False)):
            answer = await AsyncHTTPClient().fetch(url, headers={"X-Request-ID": sent}, raise_error=False)
            assert (answer.headers["X-Request-ID"] == sent) is kept
            assert len(answer.headers["X-Request-ID"]) <= 64

    async def test_every_part_has_its_own_refusal(self, service: Service) -> None:
        assert (await get(service, SERVICE_PREFIX)).code == 302
        assert (await get(service, SERVICE_PREFIX + "api/home")).code == 401
        assert (await get(service, "/v1/fleet/pull-messages", "POST")).code == 401
        assert (await get(service, "/elsewhere")).code == 404
        assert (await get(service, "/elsewhere", "POST")).code == 404

    async def test_a_request_is_logged_without_its_query(
        self, service: Service, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.INFO, "hub_service.app"):
            await get(service, "/elsewhere?code=oauth-code")
            await get(service, "/v1/fleet/pull-messages", "POST")
        assert "GET /elsewhere 404" in caplog.text
        assert "oauth-code" not in caplog.text
        assert "fleet" not in caplog.text

    async def test_health_is_answered_while_the_database_is_opened(
        self, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        service = Service(Settings.from_environment(environment))
        opened = asyncio.Event()
        monkeypatch.setattr(service, "_open", lambda application: opened.wait())
        starting = asyncio.create_task(service.start())
        await asyncio.sleep(0)
        health = await get(service, "/health")
        assert (health.code, json.loads(health.body)) == (503, {"status": "starting", "parts": {}})
        answer = await get(service, SERVICE_PREFIX + "api/home")
        assert (answer.code, answer.headers["Retry-After"]) == (503, "1")
        # The Hub ends itself where this page answers with an error for half a minute.
        assert (await get(service, SERVICE_PREFIX)).code == 200
        opened.set()
        await starting
        await service.close()

    async def test_logins_survive_a_restart(self, environment: dict[str, str], service: Service) -> None:
        secret = Path(environment["FEDERATION_STATE_DIR"]) / "cookie-secret"
        before = secret.read_bytes()
        assert len(before) == 32
        assert secret.stat().st_mode & 0o777 == 0o600
        await service.close()
        again = Service(Settings.from_environment(environment))
        await again.start()
        assert secret.read_bytes() == before
        await again.close()

    async def test_a_database_that_cannot_be_opened_ends_the_start(
        self, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        state_dir = Path(environment["FEDERATION_STATE_DIR"])
        (state_dir / "federation.db").mkdir(parents=True)
        monkeypatch.setattr("hub_service.app._DATABASE_WAIT_S", 0.1)
        service = Service(Settings.from_environment(environment))
        with pytest.raises(Unavailable, match="database"):
            await service.start()
        await service.close()


async def test_a_background_task_that_broke_is_started_again(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service(Settings.from_environment(environment))
    monkeypatch.setattr("hub_service.app._RESTART_AFTER_S", 0)
    attempts: list[int] = []
    going = asyncio.Event()

    async def run() -> None:
        attempts.append(1)
        if len(attempts) == 1:
            raise OSError("the disk is gone")
        going.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(service._kept_running(run, "example"))
    async with asyncio.timeout(10):
        await going.wait()
    task.cancel()
    await asyncio.wait({task})
    assert "example broke and is started again" in caplog.text
    assert "the disk is gone" in caplog.text


async def test_what_is_done_each_second_outlives_an_outage_of_the_database(caplog: pytest.LogCaptureFixture) -> None:
    outages = [DatabaseUnavailable("The service's database does not answer.")]
    done = asyncio.Event()

    async def act() -> None:
        if outages:
            raise outages.pop()
        done.set()

    task = asyncio.create_task(_after_each(0, act)())
    async with asyncio.timeout(10):
        await done.wait()
    task.cancel()
    await asyncio.wait({task})
    assert "put off: The service's database does not answer." in caplog.text


class TestPort:
    """A service whose Hub was killed may still be about to end when the next one starts."""

    async def test_one_that_is_taken_is_waited_for(self, caplog: pytest.LogCaptureFixture) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            binding = asyncio.create_task(_bound(port, "127.0.0.1"))
            while "waiting for its owner to end" not in caplog.text:  # noqa: ASYNC110 - a log tells nobody
                await asyncio.sleep(0.01)
            assert not binding.done()
        async with asyncio.timeout(10):
            bound = await binding
        with bound:
            assert bound.getsockname() == ("127.0.0.1", port)

    async def test_one_that_stays_taken_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("hub_service.app._PORT_ATTEMPTS", 2)
        monkeypatch.setattr("hub_service.app._PORT_EVERY_S", 0)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(Unavailable, match=f"Port {port} is taken"):
                await _bound(port, "127.0.0.1")

    async def test_an_address_that_the_machine_does_not_have_is_named(self) -> None:
        with pytest.raises(Unavailable, match=r"192\.0\.2\.1"):
            await _bound(0, "192.0.2.1")


async def test_the_process_serves_until_it_is_told_to_end(environment: dict[str, str]) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "hub_service",
        env={"PATH": os.environ["PATH"], **environment},
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    async with asyncio.timeout(60):
        while b"ready on 127.0.0.1:" not in (line := await process.stderr.readline()):
            assert line, "it ended before it was ready"
        process.send_signal(signal.SIGTERM)
        rest = await process.stderr.read()
        assert await process.wait() == 0
    assert b"Traceback" not in rest


def test_the_process_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("JUPYTERHUB_SERVICE_URL", raising=False)
    assert main() == 1
    assert "JUPYTERHUB_SERVICE_URL is not set." in capsys.readouterr().err
