"""Adding a site: what is written, what is refused, and that a refusal leaves nothing behind."""

from __future__ import annotations

import os
import shlex
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest

from spawner.admin import steps
from spawner.admin.__main__ import main
from spawner.admin.adding import AddingRefused, NewSite, NotWritable, add
from spawner.admin.catalogue import State, listing
from spawner.deployment import CONFIG_VARIABLE, DockerAggregators, load
from spawner.sites import DockerSite

HUB = """
[hub]
bind_url = "http://10.77.2.1:8000"
data_dir = "state"
admin_contact = "Robin"

[sso]
preset = "cilogon"
client_id = "c"

[aggregators]
kind = "docker"
image = "notebook-federator/aggregator:test"
"""
NOW = datetime(2026, 11, 24, tzinfo=UTC)
DIGEST = "registry.example/singleuser@sha256:" + "0" * 64


def new_site(**changes: object) -> NewSite:
    wanted: dict[str, object] = {
        "slug": "st-anna",
        "title": "St. Anna Hospital",
        "contact": "Ingrid Solberg <ingrid@st-anna.example>",
        "engine": "tcp://10.77.2.2:2376",
        "image": DIGEST,
        "institutions": ["urn:mace:st-anna"],
        "stewards": ["ingrid"],
        "datasets": {"biopsies": "/srv/biopsies", "scans": "ct-volume"},
        "gpus": ["GPU-0", "GPU-1"],
    }
    return NewSite(**(wanted | changes))  # type: ignore[arg-type]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "deployment.toml"
    path.write_text(HUB, encoding="utf-8")
    return path


def everything(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def test_what_is_written_is_what_the_hub_reads(config: Path) -> None:
    added = add(config, new_site(), now=NOW)
    deployment = load(config)
    site = deployment.sites["st-anna"]
    assert site == added.site
    assert isinstance(site, DockerSite)
    assert (site.title, site.image, site.gpus) == ("St. Anna Hospital", DIGEST, ("GPU-0", "GPU-1"))
    assert site.tls_dir == config.parent / "engines" / "st-anna"
    assert site.datasets["biopsies"].path == "/srv/biopsies"
    assert site.datasets["scans"].volume == "ct-volume"
    assert deployment.sso.institutions == {"urn:mace:st-anna": "st-anna"}
    assert deployment.sso.stewards["st-anna"].users == ("ingrid",)
    assert isinstance(deployment.aggregators, DockerAggregators)
    assert added.file == config.parent / "sites.d" / "st-anna.toml"
    assert everything(added.file.parent) == {added.file}
    assert added.bundle == config.parent / "engines" / "st-anna" / "st-anna-engine.tar"


def test_a_second_site(config: Path) -> None:
    add(config, new_site(), now=NOW)
    add(config, new_site(slug="vall-verde", institutions=["urn:mace:vall-verde"]), now=NOW)
    assert set(load(config).sites) == {"st-anna", "vall-verde"}


def test_certificates_that_are_there_stay(config: Path) -> None:
    engines = config.parent / "engines"
    first = ["--config", str(config), "certificates", "--site", "st-anna", "--engine-address", "10.77.2.2"]
    assert main(first) == 0
    before = (engines / "st-anna" / "key.pem").read_bytes()
    assert add(config, new_site(), now=NOW).issued is None
    assert (engines / "st-anna" / "key.pem").read_bytes() == before


def test_an_engine_on_the_hubs_machine_needs_no_certificates(config: Path) -> None:
    added = add(config, new_site(engine="unix:///var/run/docker.sock"), now=NOW)
    assert (added.issued, added.bundle, added.site.tls_dir) == (None, None, None)
    assert not (config.parent / "engines").exists()


def test_a_deployment_file_that_is_a_link(config: Path, tmp_path: Path) -> None:
    """Relative paths start where the link leads."""
    real = tmp_path / "real"
    real.mkdir()
    config.rename(real / "deployment.toml")
    config.symlink_to(real / "deployment.toml")
    add(config, new_site(), now=NOW)
    site = load(config).sites["st-anna"]
    assert isinstance(site, DockerSite)
    assert site.tls_dir == real / "engines" / "st-anna"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"slug": "../st-anna"}, "site: is no slug"),
        ({"title": " "}, "sites.st-anna.title: is empty"),
        ({"engine": "10.77.2.2"}, "sites.st-anna.engine: is no engine's address"),
        ({"engine": "tcp://10.77.2.2:99999"}, "engine: "),
        ({"image": "singleuser"}, "sites.st-anna.image: names no version"),
        ({"datasets": {"x": "/"}}, "sites.st-anna.datasets.x.path: is no folder of the site's machine"),
        ({"datasets": {"A b": "/srv"}}, 'sites.st-anna.datasets."A b": is no slug'),
        ({"gpus": ["GPU-0", "GPU-0"]}, "sites.st-anna.gpus: names a GPU twice"),
        ({"hub_url": "https://hub.example"}, "sites.st-anna.hub_address: is missing; servers have no DNS"),
        ({"institutions": []}, "sso.institutions: is missing"),
        ({"stewards": []}, "sso.stewards: is missing"),
    ],
)
def test_a_refusal_writes_nothing(config: Path, changes: dict[str, object], told: str) -> None:
    with pytest.raises(AddingRefused) as refused:
        add(config, new_site(**changes), now=NOW)
    assert told in str(refused.value)
    assert "nothing was written" in str(refused.value)
    assert everything(config.parent) == {config}


def test_all_that_is_wrong_is_told_at_once(config: Path) -> None:
    config.write_text(HUB.partition("[aggregators]")[0], encoding="utf-8")
    with pytest.raises(AddingRefused) as refused:
        add(config, new_site(image="x", gpus=["a", "a"]), now=NOW)
    assert {problem.key for problem in refused.value.problems} >= {"sites.st-anna.image", "sites.st-anna.gpus"}
    with pytest.raises(AddingRefused, match="aggregators: run in the Hub's account"):
        add(config, new_site(), now=NOW)


def test_a_site_is_added_once(config: Path) -> None:
    added = add(config, new_site(), now=NOW)
    before = {path: path.read_bytes() for path in everything(config.parent)}
    with pytest.raises(AddingRefused, match=r"is a site of this deployment already: St\. Anna Hospital"):
        add(config, new_site(title="Other"), now=NOW)
    # One that the deployment cannot be read with is not written over either.
    added.file.write_text("[sites.x]\n", encoding="utf-8")
    before[added.file] = b"[sites.x]\n"
    with pytest.raises(AddingRefused, match=r"there is a file .*st-anna\.toml already"):
        add(config, new_site(), now=NOW)
    assert {path: path.read_bytes() for path in everything(config.parent)} == before


def test_an_institution_belongs_to_one_site(config: Path) -> None:
    add(config, new_site(), now=NOW)
    with pytest.raises(AddingRefused, match=r'sso\.institutions\."urn:mace:st-anna": another file'):
        add(config, new_site(slug="vall-verde"), now=NOW)
    assert not (config.parent / "engines" / "vall-verde").exists()


def test_a_file_in_the_place_of_the_folder(config: Path) -> None:
    (config.parent / "sites.d").write_text("", encoding="utf-8")
    with pytest.raises(AddingRefused, match=r"sites\.d is there already"):
        add(config, new_site(), now=NOW)
    assert not (config.parent / "engines" / "st-anna").exists()


@pytest.mark.parametrize("folder", ["engines", "sites.d"])
def test_a_folder_that_cannot_be_written(config: Path, folder: str) -> None:
    """As on a read-only file system, which stops root as well."""
    (config.parent / folder).symlink_to("/proc/self")
    with pytest.raises(NotWritable, match="cannot be written"):
        add(config, new_site(), now=NOW)
    assert not (config.parent / "engines" / "st-anna").exists()


def test_whoever_comes_second_does_not_write_over(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two administrators at once: the second one's file is put in place only where there is none."""
    link = os.link

    def after_somebody_else(source: str, target: Path) -> None:
        target.write_text("somebody else's", encoding="utf-8")
        link(source, target)

    monkeypatch.setattr(os, "link", after_somebody_else)
    with pytest.raises(AddingRefused, match="is there already; look into it"):
        add(config, new_site(), now=NOW)
    assert (config.parent / "sites.d" / "st-anna.toml").read_text(encoding="utf-8") == "somebody else's"


# --- the command


@pytest.fixture
def deployed(config: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CONFIG_VARIABLE, str(config))
    return config


def words(new: NewSite) -> list[str]:
    """The command's arguments, as `steps.add_command` writes them."""
    return shlex.split(steps.add_command(new).removeprefix("python -m spawner.admin "))


def test_the_command_adds_what_it_was_told_and_says_what_is_next(
    deployed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(new_site(hub_url="http://10.8.0.1:8000", hub_address="10.8.0.1"))) == 0
    told = capsys.readouterr().out
    for text in (
        f"St. Anna Hospital is in {deployed.parent}/sites.d/st-anna.toml. Next:",
        "python -m spawner.site up --hub 10.8.0.1:8000 --print > st-anna-isolation",
        "st-anna-engine.tar to Ingrid Solberg",
        "install -m 755 st-anna-isolation /usr/local/sbin/notebook-federator-isolation",
        f"docker pull {DIGEST}",
        "python -m spawner.admin check --site st-anna",
        "Restart the Hub",
    ):
        assert text in told
    assert "PRIVATE" not in told
    site = load(deployed).sites["st-anna"]
    assert isinstance(site, DockerSite)
    assert site.datasets["scans"].volume == "ct-volume"


def test_the_command_tells_a_refusal(deployed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(new_site(image="x"))) == 1
    assert "sites.st-anna.image: names no version" in capsys.readouterr().err


def test_the_command_needs_a_deployment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CONFIG_VARIABLE, raising=False)
    with pytest.raises(SystemExit, match="Which deployment"):
        main(words(new_site()))


def test_a_dataset_that_cannot_be_read(deployed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*words(new_site()), "--dataset", "biopsies"])
    assert "write NAME=FOLDER" in capsys.readouterr().err


def test_the_file_can_be_read_by_the_hubs_account(config: Path) -> None:
    mode = add(config, new_site(), now=NOW).file.stat().st_mode
    assert mode & stat.S_IROTH


# --- what the page makes of it


def test_a_new_site_waits_for_the_hubs_restart(config: Path) -> None:
    add(config, new_site(), now=NOW)
    running = load(config)
    add(config, new_site(slug="vall-verde", institutions=["v"]), now=NOW)
    entries = {entry.slug: entry for entry in listing(running, config).entries}
    assert {slug: entry.state for slug, entry in entries.items()} == {
        "st-anna": State.IN_USE,
        "vall-verde": State.NEW,
    }
    assert entries["vall-verde"].steps
    assert not entries["st-anna"].steps


def test_a_changed_and_a_removed_site(config: Path) -> None:
    added = add(config, new_site(), now=NOW)
    other = add(config, new_site(slug="vall-verde", institutions=["v"]), now=NOW)
    running = load(config)
    added.file.write_text(added.file.read_text(encoding="utf-8").replace("GPU-1", "GPU-2"), encoding="utf-8")
    other.file.unlink()
    states = {entry.slug: entry.state for entry in listing(running, config).entries}
    assert states == {"st-anna": State.CHANGED, "vall-verde": State.REMOVED}


def test_files_that_cannot_be_read_leave_what_runs(config: Path) -> None:
    add(config, new_site(), now=NOW)
    running = load(config)
    config.write_text("[hub", encoding="utf-8")
    seen = listing(running, config)
    assert [entry.slug for entry in seen.entries] == ["st-anna"]
    assert "it is not TOML" in str(seen.problems[0])


def test_a_check_of_a_site_that_there_is_not(deployed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add(deployed, new_site(), now=NOW)
    assert main(["check", "--site", "st-ana"]) == 1
    assert capsys.readouterr().err == "There is no site st-ana; the sites are: st-anna.\n"
