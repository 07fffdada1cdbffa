"""A certificate authority for one test, and a server certificate that it has signed."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID


@dataclass(frozen=True, slots=True)
class Certificates:
    authority: Path  # PEM, what a client trusts
    certificate: Path  # PEM, the server's
    key: Path
    server: ssl.SSLContext  # with both


def loopback_certificates(folder: Path, *addresses: str) -> Certificates:
    """Make both, below the folder, for loopback and for these IPv4 addresses."""
    authority_key, server_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
    authority = (
        _builder(authority_name, authority_name, authority_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    server = (
        _builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hub")]), authority_name, server_key)
        .add_extension(
            x509.SubjectAlternativeName(
                [
                    x509.DNSName("localhost"),
                    *(x509.IPAddress(IPv4Address(address)) for address in ("127.0.0.1", *addresses)),
                ]
            ),
            critical=False,
        )
        .sign(authority_key, hashes.SHA256())
    )
    paths = {name: folder / f"{name}.pem" for name in ("authority", "server", "key")}
    paths["authority"].write_bytes(authority.public_bytes(Encoding.PEM))
    paths["server"].write_bytes(server.public_bytes(Encoding.PEM))
    paths["key"].write_bytes(server_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(paths["server"], paths["key"])
    return Certificates(paths["authority"], paths["server"], paths["key"], context)


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
    )
