"""From `[quotas]`, `log_format` and the token for metrics to what the Hub and the service are told."""

from __future__ import annotations

from pathlib import Path

import pytest
from federator.contract import SERVICE_NAME, Scope
from federator.logs import LogFormat

from hub_service.domain.quotas import Quotas
from hub_service.settings import Settings, log_format
from spawner import access
from spawner.deployment import METRICS_TOKEN_VARIABLE, DeploymentError
from tests.unit.test_notice_settings import DEPLOYMENT, SERVICE, loaded

TOKEN = "a-token-of-a-program-that-watches-us"


def environment(folder: Path, text: str = DEPLOYMENT) -> dict[str, str]:
    return {**SERVICE, **access.service_environment(loaded(folder, text))}


def test_what_is_not_said_is_the_services_own_choice(tmp_path: Path) -> None:
    told = environment(tmp_path)
    assert Settings.from_environment(told).quotas == Quotas()
    assert log_format(told) is LogFormat.TEXT


def test_each_quota_reaches_the_service(tmp_path: Path) -> None:
    quotas = """
[quotas]
projects_per_user = 1
members_per_project = 2
runs = 3
runs_per_user = 4
runs_per_site = 5
project_storage = "6 MiB"
storage = "7 GiB"
upload = "8 KiB"
"""
    told = environment(tmp_path, DEPLOYMENT + quotas)
    assert Settings.from_environment(told).quotas == Quotas(1, 2, 3, 4, 5, 6 << 20, 7 << 30, 8 << 10)


@pytest.mark.parametrize("line", ["runs = 0", "runs = 1.5", 'upload = "21 MiB"', 'storage = "1 KiB"', "cakes = 1"])
def test_a_quota_that_cannot_be_is_refused(tmp_path: Path, line: str) -> None:
    with pytest.raises(DeploymentError, match=f"quotas.{line.partition(' ')[0]}"):
        loaded(tmp_path, f"{DEPLOYMENT}\n[quotas]\n{line}\n")


def test_the_logs_form_is_the_hubs_and_the_services(tmp_path: Path) -> None:
    text = DEPLOYMENT.replace("[hub]", '[hub]\nlog_format = "json"')
    assert log_format(environment(tmp_path, text)) is LogFormat.JSON
    with pytest.raises(DeploymentError, match="log_format"):
        loaded(tmp_path, DEPLOYMENT.replace("[hub]", '[hub]\nlog_format = "xml"'))


@pytest.mark.parametrize("is_empty", [False, True])
def test_without_a_token_nobody_reads_the_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_empty: bool
) -> None:
    monkeypatch.delenv(METRICS_TOKEN_VARIABLE, raising=False)
    if is_empty:  # as deploy/compose gives it
        monkeypatch.setenv(METRICS_TOKEN_VARIABLE, "")
    assert access.monitors() == []
    assert [role for role in access.roles(loaded(tmp_path)) if Scope.READ_METRICS in role["scopes"]] == []


def test_the_token_reads_metrics_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(METRICS_TOKEN_VARIABLE, TOKEN)
    (monitor,) = access.monitors()
    assert (monitor["api_token"], "url" in monitor, "command" in monitor) == (TOKEN, False, False)
    (role,) = [role for role in access.roles(loaded(tmp_path)) if monitor["name"] in role.get("services", ())]
    assert role["scopes"] == ["read:metrics", f"access:services!service={SERVICE_NAME}"]
    assert TOKEN not in str(access.service_environment(loaded(tmp_path)))


def test_a_token_that_could_be_guessed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(METRICS_TOKEN_VARIABLE, "short")
    with pytest.raises(SystemExit, match="openssl rand"):
        access.monitors()
