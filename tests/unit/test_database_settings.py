"""From `[hub] database` in the deployment file to the address that the service opens; passwords apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from hub_service.settings import Settings, StateSettings
from spawner import access, deployment
from spawner.deployment import DeploymentError

SECRET = "the-password-that-nobody-may-see"
DEPLOYMENT = """
[hub]
bind_url = "http://127.0.0.1:8000"
data_dir = "state"
admin_contact = "Ada"
{more}

[sso]
preset = "cilogon"
client_id = "c"

[sso.institutions]
"urn:mace:a" = "hospital-a"

[sites.hospital-a]
kind = "embedded"
title = "Hospital A"
contact = "Ada"
work_dir = "work/a"
"""
OF_THE_HUB = {
    "JUPYTERHUB_SERVICE_URL": "http://127.0.0.1:0",
    "JUPYTERHUB_SERVICE_PREFIX": "/services/federation/",
    "JUPYTERHUB_API_URL": "http://127.0.0.1:8081/hub/api",
    "JUPYTERHUB_API_TOKEN": "t",
}
SOCKET = "postgresql+psycopg://federation@/federation?host=/run/postgresql"


def environment(folder: Path, database: str | None) -> dict[str, str]:
    """Of the service that the Hub starts."""
    more = "" if database is None else f'database = "{database}"'
    path = folder / "deployment.toml"
    path.write_text(DEPLOYMENT.replace("{more}", more), encoding="utf-8")
    told: dict[str, str] = access.service(deployment.load(path))["environment"]
    return {**OF_THE_HUB, **told}


@pytest.mark.parametrize("database", [SOCKET, "postgresql://db.example/federation?sslmode=verify-full"])
def test_the_service_opens_what_the_deployment_says(tmp_path: Path, database: str) -> None:
    told = environment(tmp_path, database)
    assert Settings.from_environment(told).database_url == database
    assert StateSettings.from_environment(told).database_url == database


def test_without_a_word_it_is_sqlite_in_the_state_folder(tmp_path: Path) -> None:
    told = environment(tmp_path, None)
    settings = Settings.from_environment(told)
    assert settings.database_url == f"sqlite:///{settings.state_dir.absolute()}/federation.db"
    assert "FEDERATION_DATABASE_URL" not in told


def test_libpq_finds_the_password_where_the_hub_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", SECRET)
    monkeypatch.setenv("PGPASSFILE", "/etc/federation/pgpass")
    told = environment(tmp_path, SOCKET)
    assert (told["PGPASSWORD"], told["PGPASSFILE"]) == (SECRET, "/etc/federation/pgpass")
    assert SECRET not in told["FEDERATION_DATABASE_URL"]
    assert not {"PGPASSWORD", "PGPASSFILE"} & set(environment(tmp_path, None))  # nothing needs it there


@pytest.mark.parametrize(
    ("database", "named"),
    [
        (f"postgresql://federation:{SECRET}@db.example/x", "hub.database: holds a password"),
        (f"postgresql://federation@db.example/x?password={SECRET}", "hub.database: holds a password"),
        ("mysql://db.example/x", "hub.database: is not PostgreSQL"),
        ("mariadb+pymysql://db.example/x", "hub.database: is not PostgreSQL"),
        ("postgresql+psycopg2://db.example/x", "hub.database: is not PostgreSQL"),
        ("sqlite:////tmp/federation.db", "hub.database: is not PostgreSQL"),
        ("federation", "hub.database: is not PostgreSQL"),
    ],
)
def test_what_cannot_be_used_is_named_without_its_secret(tmp_path: Path, database: str, named: str) -> None:
    with pytest.raises(DeploymentError) as refused:
        environment(tmp_path, database)
    assert named in str(refused.value)
    assert SECRET not in str(refused.value)


def test_no_settings_show_their_password(tmp_path: Path) -> None:
    told = {**environment(tmp_path, None), "FEDERATION_DATABASE_URL": f"postgresql://a:{SECRET}@db.example/x"}
    assert SECRET not in repr(Settings.from_environment(told))
    assert SECRET not in repr(StateSettings.from_environment(told))
