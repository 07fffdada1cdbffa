"""`[hub.apart]`: a service that the Hub does not start is told what the Hub would have told it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from hub_service.settings import Settings
from spawner import access
from spawner.admin.__main__ import main
from spawner.deployment import SERVICE_TOKEN_VARIABLE, DeploymentError
from tests.unit.test_notice_settings import DEPLOYMENT, loaded

APART = DEPLOYMENT.replace("[sso]\n", '[hub.apart]\nhub = "h"\nproxy = "p"\nservice = "s"\n\n[sso]\n', 1)
TOKEN = "0123456789abcdef" * 4


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SERVICE_TOKEN_VARIABLE, TOKEN)


def test_the_hub_knows_it_by_its_token_and_starts_nothing(tmp_path: Path) -> None:
    service = access.service(loaded(tmp_path, APART))
    assert service["api_token"] == TOKEN
    assert service["url"] == "http://s:8082"
    assert "command" not in service


def test_its_settings_are_whole(tmp_path: Path) -> None:
    settings = Settings.from_environment(access.apart_environment(loaded(tmp_path, APART)))
    assert (settings.host, settings.port, settings.prefix) == ("0.0.0.0", 8082, "/services/federation/")
    assert (settings.hub_api_url, settings.hub_api_token) == ("http://h:8081/hub/api", TOKEN)
    assert set(settings.sites) == {"hospital-a"}


@pytest.mark.parametrize("token", ["", "short"])
def test_without_a_good_token_it_says_how_to_make_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv(SERVICE_TOKEN_VARIABLE, token)
    with pytest.raises(SystemExit, match="openssl rand"):
        access.service(loaded(tmp_path, APART))


def test_the_certificate_is_the_proxys(tmp_path: Path) -> None:
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).touch()
    text = APART.replace('bind_url = "http://', 'tls_cert = "cert.pem"\ntls_key = "key.pem"\nbind_url = "https://')
    with pytest.raises(DeploymentError, match="the proxy has the certificate"):
        loaded(tmp_path, text)


def test_serve_becomes_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded(tmp_path, APART)
    become: list[tuple[str, list[str], dict[str, str]]] = []
    monkeypatch.setattr(os, "execve", lambda *said: become.append(said))
    main(["--config", str(tmp_path / "deployment.toml"), "serve"])
    ((program, arguments, environment),) = become
    assert (program, arguments[1:]) == (sys.executable, ["-m", "hub_service"])
    assert environment["JUPYTERHUB_CLIENT_ID"] == "service-federation"
    scopes: list[Any] = json.loads(environment["JUPYTERHUB_OAUTH_ACCESS_SCOPES"])
    assert "access:services!service=federation" in scopes


def test_serve_is_refused_where_the_hub_starts_the_service(tmp_path: Path) -> None:
    loaded(tmp_path)
    with pytest.raises(SystemExit, match=r"\[hub.apart\]"):
        main(["--config", str(tmp_path / "deployment.toml"), "serve"])
