"""The deployment file: what is read from it, and what an administrator is told of a wrong one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from spawner import deployment
from spawner.deployment import DeploymentError, from_environment, load

EXAMPLE = Path(__file__).parents[2] / "deploy" / "deployment.toml"

GOOD = """
[hub]
bind_url = "http://127.0.0.1:8000/"
data_dir = "state"
admin_contact = "Robin"

[sso]
preset = "cilogon"
client_id = "c"

[sso.institutions]
"urn:mace:hospital-a" = "hospital-a"

[sites.hospital-a]
kind = "embedded"
title = "Hospital A"
contact = "Ada"
work_dir = "work/a"

[sites.hospital-a.datasets.biopsies]
title = "Biopsies"
path = "data"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path


def loaded(folder: Path, text: str) -> deployment.Deployment:
    path = folder / "deployment.toml"
    path.write_text(text, encoding="utf-8")
    return load(path)


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(DeploymentError) as refused:
        loaded(folder, text)
    assert str(folder / "deployment.toml") in str(refused.value)
    return str(refused.value)


def test_paths_start_at_the_files_folder(folder: Path) -> None:
    site = loaded(folder, GOOD).sites["hospital-a"]
    assert site.work_dir == folder / "work" / "a"
    assert site.datasets["biopsies"].path == folder / "data"
    assert not site.isolates


def test_an_origin_loses_its_slash(folder: Path) -> None:
    assert loaded(folder, GOOD).hub.origin == "http://127.0.0.1:8000"


def test_the_public_url_is_what_people_type(folder: Path) -> None:
    hub = loaded(folder, GOOD.replace("[hub]", '[hub]\npublic_url = "https://hub.example"')).hub
    assert hub.origin == "https://hub.example"


@pytest.mark.parametrize(
    ("right", "wrong", "expected"),
    [
        (
            'path = "data"',
            'path = "no-such"',
            ["sites.hospital-a.datasets.biopsies.path: there is no folder", "create"],
        ),
        ('kind = "embedded"', 'kind = "cloud"', ["sites.hospital-a: is of an unknown kind", '"embedded"']),
        ('kind = "embedded"\n', "", ["sites.hospital-a: has no kind", 'add `kind = "docker"`, "swarm"']),
        ('contact = "Ada"\n', "", ["sites.hospital-a.contact: is missing; add it"]),
        ('contact = "Ada"', 'contact = " "', ["sites.hospital-a.contact: is empty"]),
        (
            'contact = "Ada"',
            'contact = "Ada"\ncontakt = "Ada"',
            ["sites.hospital-a.contakt: is not a key of this table"],
        ),
        ("[sites.hospital-a]", '[sites."Hospital A"]', ['sites."Hospital A": is no slug', "lower-case"]),
        ("datasets.biopsies]", 'datasets."../x"]', ['sites.hospital-a.datasets."../x": is no slug']),
        (
            '= "hospital-a"',
            '= "hospital-b"',
            ['sso.institutions."urn:mace:hospital-a": there is no site', "hospital-a"],
        ),
        (
            "[sites.hospital-a]",
            '[sso.stewards.b]\nusers = ["u"]\n[sites.hospital-a]',
            ["sso.stewards.b: there is no site"],
        ),
        ('preset = "cilogon"', 'preset = "okta"', ["sso.preset: ", "'cilogon'", "(found 'okta')"]),
        ('preset = "cilogon"', 'preset = "keycloak"', ["sso: the preset 'keycloak' needs `issuer`"]),
        (
            'preset = "cilogon"',
            'preset = "generic"',
            ["sso: the preset 'generic' needs `issuer`, or all of `authorize_url`"],
        ),
        ("8000/", "8000/jupyter", ["hub.bind_url: is no origin", "http://127.0.0.1:8000"]),
        ("http://", "https://", ["hub: `bind_url` begins with https:// where there is a `tls_cert`, and only there"]),
        ("127.0.0.1:8000", "0.0.0.0:8000", ["hub: `bind_url` is every address", "`public_url`"]),
        ("[hub]", "[hub]\nhub_port = 70000", ["hub.hub_port: ", "65535", "(found 70000)"]),
        ("[hub]", '[hub]\ntls_cert = "data"', ["hub.tls_cert: there is no file"]),
        ("[hub]\n", "[hub\n", ["it is not TOML", "line 2"]),
    ],
)
def test_an_error_names_the_key_and_the_fix(folder: Path, right: str, wrong: str, expected: list[str]) -> None:
    assert right in GOOD
    text = refusal(folder, GOOD.replace(right, wrong))
    for part in expected:
        assert part in text


def test_a_certificate_needs_its_key(folder: Path) -> None:
    (folder / "cert.pem").touch()
    assert "hub: `tls_cert` and `tls_key` go together" in refusal(
        folder, GOOD.replace("[hub]", '[hub]\ntls_cert = "cert.pem"')
    )


def test_a_stewards_claim_needs_values(folder: Path) -> None:
    text = GOOD + '[sso.stewards.hospital-a]\nclaim = "role"\n'
    assert "sso.stewards.hospital-a: `claim` and `values` go together" in refusal(folder, text)


def test_all_errors_are_told_at_once(folder: Path) -> None:
    text = GOOD.replace('path = "data"', 'path = "gone"').replace('contact = "Ada"\n', "")
    text = text.replace('= "hospital-a"', '= "hospital-z"').replace('client_id = "c"\n', "")
    told = refusal(folder, text)
    for key in ("datasets.biopsies.path", "hospital-a.contact", "sso.institutions", "sso.client_id"):
        assert key in told


def test_two_sites_do_not_share_a_work_dir(folder: Path) -> None:
    second = '[sites.b]\nkind = "embedded"\ntitle = "B"\ncontact = "Bo"\nwork_dir = "work/b/../a"\n'
    assert "sites.b.work_dir: is also hospital-a's" in refusal(folder, GOOD + second)


def test_a_missing_file_is_told_by_name(tmp_path: Path) -> None:
    with pytest.raises(DeploymentError, match=r"none\.toml cannot be used:\n  it cannot be read: No such file"):
        load(tmp_path / "none.toml")


def test_the_environment_names_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTEBOOK_FEDERATOR_SSO_CLIENT_SECRET", "s")
    monkeypatch.delenv("NOTEBOOK_FEDERATOR_CONFIG", raising=False)
    with pytest.raises(SystemExit, match="NOTEBOOK_FEDERATOR_CONFIG is not set"):
        from_environment()
    monkeypatch.setenv("NOTEBOOK_FEDERATOR_CONFIG", str(folder / "deployment.toml"))
    with pytest.raises(SystemExit, match="cannot be read"):
        from_environment()
    loaded(folder, GOOD)
    assert from_environment().hub.admin_contact == "Robin"
    monkeypatch.delenv("NOTEBOOK_FEDERATOR_SSO_CLIENT_SECRET")
    with pytest.raises(SystemExit, match="NOTEBOOK_FEDERATOR_SSO_CLIENT_SECRET is not set"):
        from_environment()


def test_the_example_is_a_deployment(tmp_path: Path) -> None:
    for dataset in ("st-anna", "vall-verde"):
        (tmp_path / "data" / dataset / "biopsies").mkdir(parents=True)
    shutil.copy(EXAMPLE, tmp_path)
    example = load(tmp_path / EXAMPLE.name)
    assert set(example.sites) == {"st-anna", "vall-verde"}


def test_the_example_shows_every_key() -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    keys = {*deployment.Hub.model_fields, *deployment.Sso.model_fields}
    assert {key for key in keys if f"{key} = " not in text and f"[sso.{key}" not in text} == set()
