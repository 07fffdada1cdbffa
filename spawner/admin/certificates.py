"""Certificates between the Hub and a site's Docker engine. Whoever can open that connection owns the site's machine.

Each site has a certificate authority of its own, and both ends trust that one only. So the server key of one site can
never pass for another site's engine, and the Hub's certificate for one site opens no other: a key that is lost is lost
for its site alone.

    engines/st-anna/
        ca.pem  cert.pem  key.pem     the Hub's own: what `tls_dir` names
        authority/ca-key.pem          signs the next ones; neither the Hub nor the site needs it in between
        st-anna-engine.tar            for the site's administrator: the engine's key, and how to use it

Docker reads no list of revoked certificates. After a theft, move the folder away and issue everything anew: the new
authority knows none of the old ones.
"""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from spawner.sites import TLS_FILES

ENGINES_FOLDER = "engines"
"""Beside the deployment file: one folder for each site."""

ENGINE_PORT = 2376
AUTHORITY_DAYS = 3650
LEAF_DAYS = 825
"""What a browser would still take; nobody checks it here, but longer is longer than anybody remembers."""

SITE_FOLDER = "/etc/docker/federation"
"""Where the bundle's files lie at the site, which its own texts say."""

_CLOCKS_APART = timedelta(days=1)


class CertificatesRefused(Exception):
    """Nothing was written. The text says why and what to do."""


class NotWritable(CertificatesRefused):
    """This account may not write there."""


@dataclass(frozen=True, slots=True)
class EngineHost:
    """By which addresses and names the Hub reaches an engine: what its certificate must say."""

    addresses: tuple[IPv4Address | IPv6Address, ...] = ()
    names: tuple[str, ...] = ()
    port: int = ENGINE_PORT

    @classmethod
    def of_url(cls, engine: str) -> Self:
        """Read it from an engine's address, tcp://host:port."""
        parts = urlsplit(engine)
        host = parts.hostname or ""
        try:
            return cls(addresses=(ip_address(host),), port=parts.port or ENGINE_PORT)
        except ValueError:
            return cls(names=(host,), port=parts.port or ENGINE_PORT)

    @property
    def listens_on(self) -> str:
        """What dockerd binds: the address that was said, or all, for a name whose address may change."""
        return str(self.addresses[0]) if self.addresses else "0.0.0.0"  # noqa: S104 - the firewall says who may come


@dataclass(frozen=True, slots=True)
class Issued:
    """What was made: `tls_dir` for the site's entry, `bundle` for the site's administrator, and when both end."""

    tls_dir: Path
    bundle: Path
    ends: datetime


def issue(folder: Path, slug: str, host: EngineHost, *, now: datetime, renew: bool = False) -> Issued:
    """Make a site's certificates; called by the commands `certificates` and `add` and by the Hub's page.

    Args:
        folder: has one folder for each site; made if it is not there.
        host: what the engine's certificate is for.
        renew: replace the Hub's and the engine's certificates and keys, by the same authority: each end goes on
            trusting the other while only one of them has its new files.

    Raises:
        CertificatesRefused: the site has certificates already, or none to renew.
        NotWritable: the files cannot be written.
    """
    if not host.addresses and not host.names:
        raise CertificatesRefused("A certificate needs an address or a name of the engine.")
    site = folder / slug
    if site.exists() and not renew:
        raise CertificatesRefused(
            f"{site} is there already. `--renew` replaces the certificates in it and keeps their authority; to make "
            "everything anew, for example after a key was stolen, move the folder away first."
        )
    try:
        return _renewed(site, slug, host, now) if renew else _made(site, slug, host, now)
    except OSError as error:
        raise NotWritable(f"{error.filename or site} cannot be written: {error.strerror}.") from error


def bundle_in(folder: Path, slug: str) -> Path:
    """Where `issue` puts what the site's administrator gets."""
    return folder / slug / _bundle_name(slug)


def _bundle_name(slug: str) -> str:
    return f"{slug}-engine.tar"


def remove(folder: Path, slug: str) -> None:
    """Undo an `issue` of now; called where the site was refused after it."""
    shutil.rmtree(folder / slug)


def ends_of(certificate: bytes) -> datetime:
    """When a PEM certificate ends. Raises ValueError, where it is none."""
    return x509.load_pem_x509_certificate(certificate).not_valid_after_utc


# --- making and renewing


def _made(site: Path, slug: str, host: EngineHost, now: datetime) -> Issued:
    site.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    unfinished = site.with_name(f".{slug}.new")
    shutil.rmtree(unfinished, ignore_errors=True)
    authority = _Authority.new(slug, now)
    try:
        (unfinished / "authority").mkdir(mode=0o700, parents=True)
        unfinished.chmod(0o700)
        _write(unfinished / "ca.pem", authority.certificate_pem)
        _write(unfinished / "authority" / "ca-key.pem", _private_pem(authority.key))
        ends = _write_leaves(unfinished, slug, host, authority, now)
        unfinished.rename(site)
    except OSError:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return Issued(site, bundle_in(site.parent, slug), ends)


def _renewed(site: Path, slug: str, host: EngineHost, now: datetime) -> Issued:
    try:
        authority = _Authority.read(site)
    except (OSError, ValueError, TypeError) as error:
        raise CertificatesRefused(
            f"{site} has no authority to renew by ({error}). Run this without `--renew`, once the folder is gone."
        ) from error
    if authority.certificate.not_valid_after_utc < now + timedelta(days=LEAF_DAYS):
        raise CertificatesRefused(
            f"The authority in {site} ends on {authority.certificate.not_valid_after_utc:%d %B %Y}, too soon to sign "
            "by it. Move the folder away and run this without `--renew`; Hub and site change over together."
        )
    return Issued(site, bundle_in(site.parent, slug), _write_leaves(site, slug, host, authority, now))


def _write_leaves(site: Path, slug: str, host: EngineHost, authority: _Authority, now: datetime) -> datetime:
    client_key, server_key = _new_key(), _new_key()
    ends = now + timedelta(days=LEAF_DAYS)
    client = authority.sign(f"hub for {slug}", client_key, ExtendedKeyUsageOID.CLIENT_AUTH, (), now, ends)
    names = [*(x509.IPAddress(address) for address in host.addresses), *(x509.DNSName(name) for name in host.names)]
    server = authority.sign(f"engine of {slug}", server_key, ExtendedKeyUsageOID.SERVER_AUTH, names, now, ends)
    _write(site / _bundle_name(slug), _tar(slug, host, authority.certificate_pem, server, _private_pem(server_key)))
    _write(site / "key.pem", _private_pem(client_key))
    _write(site / "cert.pem", client)
    return ends


@dataclass(frozen=True, slots=True)
class _Authority:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def new(cls, slug: str, now: datetime) -> Self:
        key = _new_key()
        name = _name(f"Notebook Federator: {slug}")
        builder = _builder(name, name, key, key, now, now + timedelta(days=AUTHORITY_DAYS))
        certificate = (
            builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        return cls(certificate, key)

    @classmethod
    def read(cls, site: Path) -> Self:
        """The authority of before. Raises OSError, ValueError and TypeError, where it is none of ours."""
        certificate = x509.load_pem_x509_certificate((site / "ca.pem").read_bytes())
        key = load_pem_private_key((site / "authority" / "ca-key.pem").read_bytes(), password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise ValueError("its key is another authority's")
        return cls(certificate, key)

    @property
    def certificate_pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    def sign(
        self,
        name: str,
        key: ec.EllipticCurvePrivateKey,
        usage: x509.ObjectIdentifier,
        hosts: Iterable[x509.GeneralName],
        now: datetime,
        ends: datetime,
    ) -> bytes:
        """A certificate for one end of the connection, as PEM."""
        builder = (
            _builder(_name(name), self.certificate.subject, key, self.key, now, ends)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        )
        if reached_as := list(hosts):
            builder = builder.add_extension(x509.SubjectAlternativeName(reached_as), critical=False)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.PEM)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer_key: ec.EllipticCurvePrivateKey,
    now: datetime,
    ends: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCKS_APART)
        .not_valid_after(ends)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write(path: Path, content: bytes) -> None:
    """Put a file in place whole, readable by its owner only from its first moment."""
    unfinished = path.with_name(f".{path.name}.new")
    unfinished.unlink(missing_ok=True)
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
    unfinished.replace(path)


# --- what the site gets


def _tar(slug: str, host: EngineHost, authority: bytes, certificate: bytes, key: bytes) -> bytes:
    """The bundle, to be unpacked in /etc/docker by root."""
    members = {
        TLS_FILES[0]: authority,
        "server-cert.pem": certificate,
        "server-key.pem": key,
        "docker.service.conf": drop_in(host).encode(),
        "README.txt": _readme(slug, host).encode(),
    }
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        folder = tarfile.TarInfo(Path(SITE_FOLDER).name)
        folder.type, folder.mode = tarfile.DIRTYPE, 0o700
        tar.addfile(folder)
        for name, content in members.items():
            member = tarfile.TarInfo(f"{folder.name}/{name}")
            member.size, member.mode = len(content), 0o600
            tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def daemon_arguments(host: EngineHost, folder: str = SITE_FOLDER) -> list[str]:
    """What dockerd is told beside what it is told already."""
    address = f"[{host.listens_on}]" if ":" in host.listens_on else host.listens_on
    return [
        f"--host=tcp://{address}:{host.port}",
        "--tlsverify",
        f"--tlscacert={folder}/{TLS_FILES[0]}",
        f"--tlscert={folder}/server-cert.pem",
        f"--tlskey={folder}/server-key.pem",
    ]


def drop_in(host: EngineHost) -> str:
    """For systemd: dockerd as distributions start it, and by TLS for whoever holds the Hub's certificate."""
    # Debian's unit takes DOCKER_OPTS from /etc/default/docker; elsewhere it is empty.
    return f"[Service]\nExecStart=\nExecStart=dockerd --host=fd:// {' '.join(daemon_arguments(host))} $DOCKER_OPTS\n"


def _readme(slug: str, host: EngineHost) -> str:
    return f"""\
The Docker engine of {slug}, opened to the Hub of a Notebook Federator.

server-key.pem is this engine's secret. Delete the archive that it came in, here and wherever it passed through.

1. As root, in the folder that the archive is in:

    tar -C {Path(SITE_FOLDER).parent} -xf {slug}-engine.tar
    install -D -m 644 {SITE_FOLDER}/docker.service.conf /etc/systemd/system/docker.service.d/federation.conf
    systemctl daemon-reload
    systemctl restart docker

   The restart stops the containers that run, unless daemon.json has "live-restore". If daemon.json has "hosts" or a
   "tls..." key, take that out: dockerd refuses to be told twice.
   Without systemd, start dockerd with

    {" ".join(daemon_arguments(host))}

2. Let the Hub's address, and no other, reach TCP port {host.port}.
"""
