"""Certificates for engines: real TLS handshakes between the ends they are made for, and those that they are not."""

from __future__ import annotations

import ssl
import tarfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest

from spawner.admin.__main__ import main
from spawner.admin.certificates import (
    AUTHORITY_DAYS,
    LEAF_DAYS,
    CertificatesRefused,
    EngineHost,
    drop_in,
    ends_of,
    issue,
)

HOST = EngineHost(addresses=(ip_address("10.77.2.2"),), names=("engine.st-anna.example",))
Made = Callable[..., Path]


@pytest.fixture
def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture
def made(tmp_path: Path, now: datetime) -> Made:
    """Issue certificates for a site and unpack its bundle as its administrator does, below `server`."""

    def make(slug: str, **how: bool) -> Path:
        issued = issue(tmp_path / "engines", slug, HOST, now=now, **how)
        with tarfile.open(issued.bundle) as bundle:
            bundle.extractall(issued.tls_dir / "server", filter="data")
        return issued.tls_dir

    return make


def engine(site: Path) -> ssl.SSLContext:
    """The server's end, as dockerd with --tlsverify."""
    files = site / "server" / "federation"
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=files / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(files / "server-cert.pem", files / "server-key.pem")
    return context


def hub(site: Path, *, trusting: Path | None = None) -> ssl.SSLContext:
    """The client's end, as the Hub with a site's `tls_dir`; or one that trusts another site's engine."""
    context = ssl.create_default_context(cafile=(trusting or site) / "ca.pem")
    context.load_cert_chain(site / "cert.pem", site / "key.pem")
    return context


def shake_hands(client: ssl.SSLContext, server: ssl.SSLContext, host: str = "10.77.2.2") -> None:
    """Connect the two ends and send one byte each way. Raises ssl.SSLError, where one refuses the other."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(to_client, to_server, server_hostname=host),
        server.wrap_bio(to_server, to_client, server_side=True),
    )
    waiting = [end.do_handshake for end in ends]
    for _ in range(10):
        for step in list(waiting):
            try:
                step()
                waiting.remove(step)
            except ssl.SSLWantReadError:
                continue
    assert not waiting
    for end, other in (ends, ends[::-1]):
        end.write(b"!")
        assert other.read(1) == b"!"


@pytest.mark.parametrize("host", ["10.77.2.2", "engine.st-anna.example"])
def test_hub_and_engine_of_a_site_accept_each_other(made: Made, host: str) -> None:
    site = made("st-anna")
    shake_hands(hub(site), engine(site), host)


def test_the_hub_does_not_take_another_sites_engine_for_it(made: Made) -> None:
    st_anna, vall_verde = made("st-anna"), made("vall-verde")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(hub(st_anna), engine(vall_verde))


def test_the_hubs_certificate_for_one_site_opens_no_other(made: Made) -> None:
    st_anna, vall_verde = made("st-anna"), made("vall-verde")
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        shake_hands(hub(st_anna, trusting=vall_verde), engine(vall_verde))


def test_an_engine_refuses_who_has_no_certificate(made: Made) -> None:
    site = made("st-anna")
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        shake_hands(ssl.create_default_context(cafile=site / "ca.pem"), engine(site))


def test_an_engine_at_another_address_is_refused(made: Made) -> None:
    site = made("st-anna")
    with pytest.raises(ssl.SSLCertVerificationError, match="IP address mismatch"):
        shake_hands(hub(site), engine(site), "10.77.2.3")


def test_an_engines_key_opens_no_engine(made: Made) -> None:
    site = made("st-anna")
    posing = ssl.create_default_context(cafile=site / "ca.pem")
    files = site / "server" / "federation"
    posing.load_cert_chain(files / "server-cert.pem", files / "server-key.pem")
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        shake_hands(posing, engine(site))


def test_nobody_else_can_read_what_is_made(made: Made, tmp_path: Path) -> None:
    site = made("st-anna")
    with tarfile.open(site / "st-anna-engine.tar") as bundle:
        members = {member.name: member.mode for member in bundle}
    assert members.pop("federation") == 0o700
    assert set(members.values()) == {0o600}
    assert "federation/server-key.pem" in members
    for path in (tmp_path / "engines", site, site / "authority"):
        assert path.stat().st_mode & 0o777 == 0o700
    for name in ("ca.pem", "cert.pem", "key.pem", "st-anna-engine.tar", "authority/ca-key.pem"):
        assert (site / name).stat().st_mode & 0o777 == 0o600


def test_how_long_they_last(made: Made, now: datetime) -> None:
    site = made("st-anna")
    whole = now.replace(microsecond=0)
    assert ends_of((site / "cert.pem").read_bytes()) == whole + timedelta(days=LEAF_DAYS)
    assert ends_of((site / "server/federation/server-cert.pem").read_bytes()) == whole + timedelta(days=LEAF_DAYS)
    assert ends_of((site / "ca.pem").read_bytes()) == whole + timedelta(days=AUTHORITY_DAYS)


def test_nothing_is_written_over(made: Made) -> None:
    site = made("st-anna")
    before = {path: path.read_bytes() for path in site.rglob("*") if path.is_file()}
    with pytest.raises(CertificatesRefused, match="`--renew`"):
        made("st-anna")
    assert before == {path: path.read_bytes() for path in site.rglob("*") if path.is_file()}


def test_while_one_end_is_renewed_the_other_goes_on(made: Made) -> None:
    site = made("st-anna")
    old_hub, old_engine = hub(site), engine(site)
    old_key = (site / "key.pem").read_bytes()
    made("st-anna", renew=True)
    assert (site / "key.pem").read_bytes() != old_key
    for client, server in ((hub(site), old_engine), (old_hub, engine(site)), (hub(site), engine(site))):
        shake_hands(client, server)


def test_another_sites_authority_does_not_renew(made: Made) -> None:
    st_anna, vall_verde = made("st-anna"), made("vall-verde")
    (st_anna / "authority" / "ca-key.pem").write_bytes((vall_verde / "authority" / "ca-key.pem").read_bytes())
    with pytest.raises(CertificatesRefused, match="its key is another authority's"):
        made("st-anna", renew=True)


def test_there_must_be_something_to_renew(made: Made, tmp_path: Path) -> None:
    with pytest.raises(CertificatesRefused, match="has no authority to renew by"):
        made("st-anna", renew=True)
    assert not (tmp_path / "engines" / "st-anna").exists()


def test_an_old_authority_signs_nothing_that_outlives_it(made: Made, tmp_path: Path, now: datetime) -> None:
    made("st-anna")
    later = now + timedelta(days=AUTHORITY_DAYS - LEAF_DAYS + 1)
    with pytest.raises(CertificatesRefused, match=r"too soon to sign by it\. Move the folder away"):
        issue(tmp_path / "engines", "st-anna", HOST, now=later, renew=True)


def test_a_folder_that_cannot_be_written(tmp_path: Path, now: datetime) -> None:
    (tmp_path / "engines").touch()
    with pytest.raises(CertificatesRefused, match="cannot be written"):
        issue(tmp_path / "engines", "st-anna", HOST, now=now)


def test_a_certificate_is_for_some_host(tmp_path: Path, now: datetime) -> None:
    with pytest.raises(CertificatesRefused, match="needs an address or a name"):
        issue(tmp_path, "st-anna", EngineHost(), now=now)


@pytest.mark.parametrize(
    ("host", "listens"),
    [
        (HOST, "--host=tcp://10.77.2.2:2376"),
        (EngineHost(names=("engine.example",), port=2377), "--host=tcp://0.0.0.0:2377"),
        (EngineHost.of_url("tcp://[2001:db8::2]:2376"), "--host=tcp://[2001:db8::2]:2376"),
        (EngineHost.of_url("tcp://engine.example:2376"), "--host=tcp://0.0.0.0:2376"),
    ],
)
def test_what_the_sites_dockerd_is_told(host: EngineHost, listens: str) -> None:
    lines = drop_in(host).splitlines()
    assert lines[:2] == ["[Service]", "ExecStart="]
    assert lines[2] == (
        f"ExecStart=dockerd --host=fd:// {listens} --tlsverify --tlscacert=/etc/docker/federation/ca.pem "
        "--tlscert=/etc/docker/federation/server-cert.pem --tlskey=/etc/docker/federation/server-key.pem $DOCKER_OPTS"
    )


def test_the_command_says_what_is_next_and_shows_no_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["certificates", "--site", "st-anna", "--engine-address", "10.77.2.2", "--folder", str(tmp_path)]
    assert main(command) == 0
    told = capsys.readouterr().out
    for text in (f"{tmp_path}/st-anna/st-anna-engine.tar", "tar -C /etc/docker -xf", "systemctl restart docker"):
        assert text in told
    assert "PRIVATE" not in told
    assert main(command) == 1
    assert "is there already" in capsys.readouterr().err
    assert main([*command, "--renew"]) == 0


@pytest.mark.parametrize("slug", ["../st-anna", "St Anna", ""])
def test_a_site_is_named_by_a_slug(tmp_path: Path, capsys: pytest.CaptureFixture[str], slug: str) -> None:
    folder = tmp_path / "engines"
    command = ["certificates", "--site", slug, "--engine-address", "10.77.2.2", "--folder", str(folder)]
    assert main(command) == 1
    assert "is no slug" in capsys.readouterr().err
    assert not folder.exists()
