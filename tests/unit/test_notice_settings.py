"""From `[notices]`, `four_eyes` and `keep_models` in the deployment file to what the service reads; secrets apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hub_service.domain.errors import Invalid
from hub_service.notices.mail import Security
from hub_service.settings import NoticeSettings, Settings
from spawner import access, deployment
from spawner.deployment import SMTP_PASSWORD_VARIABLE, WEBHOOK_KEY_VARIABLE, DeploymentError

DEPLOYMENT = """
[hub]
bind_url = "http://127.0.0.1:8000"
public_url = "https://hub.example"
data_dir = "state"
admin_contact = "Ada"

[sso]
preset = "cilogon"
client_id = "c"

[sso.institutions]
"urn:mace:a" = "hospital-a"

[notices]
address = "{user}@hub.example"
webhook = "https://chat.example/hook"

[notices.smtp]
host = "mail.hub.example"
sender = "Federation <f@hub.example>"
user = "robot"

[sites.hospital-a]
kind = "embedded"
title = "Hospital A"
contact = "Ada"
work_dir = "work/a"
four_eyes = true
"""

SERVICE = {
    "JUPYTERHUB_SERVICE_URL": "http://127.0.0.1:0",
    "JUPYTERHUB_SERVICE_PREFIX": "/services/federation/",
    "JUPYTERHUB_API_URL": "http://127.0.0.1:8081/hub/api",
    "JUPYTERHUB_API_TOKEN": "t",
}


def loaded(folder: Path, text: str = DEPLOYMENT) -> deployment.Deployment:
    path = folder / "deployment.toml"
    path.write_text(text, encoding="utf-8")
    return deployment.load(path)


def settings(folder: Path, text: str = DEPLOYMENT) -> Settings:
    return Settings.from_environment({**SERVICE, **access.service(loaded(folder, text))["environment"]})


def test_the_file_reaches_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SMTP_PASSWORD_VARIABLE, "the password")
    monkeypatch.setenv(WEBHOOK_KEY_VARIABLE, "the key")
    read = settings(tmp_path)
    assert read.sites["hospital-a"].four_eyes
    told = read.notices
    assert (told.origin, told.address, told.ending_days) == ("https://hub.example", "{user}@hub.example", 7.0)
    assert told.mail is not None
    assert (told.mail.host, told.mail.port, told.mail.security) == ("mail.hub.example", 587, Security.STARTTLS)
    assert (told.mail.sender, told.mail.user, told.mail.password) == (
        "Federation <f@hub.example>",
        "robot",
        "the password",
    )
    assert told.webhook is not None
    assert (told.webhook.url, told.webhook.key) == ("https://chat.example/hook", "the key")
    for secret in ("the password", "the key"):
        assert secret not in repr(read) + repr(told)
        assert secret not in access.service(loaded(tmp_path))["environment"]["FEDERATION_NOTICES"]


def test_without_the_table_nobody_is_told(tmp_path: Path) -> None:
    text = DEPLOYMENT[: DEPLOYMENT.index("[notices]")] + DEPLOYMENT[DEPLOYMENT.index("[sites.") :]
    text = text.replace("four_eyes = true\n", "")
    read = settings(tmp_path, text)
    assert read.notices == NoticeSettings()
    assert not read.sites["hospital-a"].four_eyes


@pytest.mark.parametrize(
    ("said", "kept"), [("", 1024**3), ('keep_models = "250 MiB"', 250 * 1024**2), ("keep_models = 0", 0)]
)
def test_how_much_of_a_runs_models_is_kept(tmp_path: Path, said: str, kept: int) -> None:
    assert settings(tmp_path, DEPLOYMENT.replace("[sso]\n", f"{said}\n\n[sso]\n")).keep_model_bytes == kept


@pytest.mark.parametrize(
    ("good", "bad", "named"),
    [
        ("{user}@hub.example", "people@hub.example", "notices.address: names no user"),
        ("{user}@hub.example", "{user}{0}@hub.example", "notices.address"),
        ("https://chat.example/hook", "chat.example", "notices.webhook: is no address"),
        ('user = "robot"', 'password = "x"', "notices.smtp.password"),
        ('user = "robot"', 'security = "ssl"', "notices.smtp.security"),
        ("four_eyes = true", 'four_eyes = "both"', "four_eyes"),
        ('data_dir = "state"', 'data_dir = "state"\nkeep_models = "lots"', "hub.keep_models"),
        ('data_dir = "state"', 'data_dir = "state"\nkeep_models = -1', "hub.keep_models"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, good: str, bad: str, named: str) -> None:
    with pytest.raises(DeploymentError) as refused:
        loaded(tmp_path, DEPLOYMENT.replace(good, bad))
    assert named in str(refused.value)


@pytest.mark.parametrize(
    "told",
    [
        "nonsense",
        "[]",
        json.dumps({"smtp": {"host": "a"}}),
        json.dumps({"smtp": {"host": "a", "port": 1, "security": "ssl", "sender": "a"}}),
        json.dumps({"pigeon": 1}),
    ],
)
def test_settings_that_cannot_be_read_are_named(tmp_path: Path, told: str) -> None:
    environment = {**SERVICE, **access.service(loaded(tmp_path))["environment"], "FEDERATION_NOTICES": told}
    with pytest.raises(Invalid, match="FEDERATION_NOTICES"):
        Settings.from_environment(environment)


def test_bytes_that_are_no_number_are_named(tmp_path: Path) -> None:
    environment = {**SERVICE, **access.service(loaded(tmp_path))["environment"], "FEDERATION_KEEP_MODEL_BYTES": "1 GiB"}
    with pytest.raises(Invalid, match="FEDERATION_KEEP_MODEL_BYTES"):
        Settings.from_environment(environment)
