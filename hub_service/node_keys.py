"""Public keys of nodes, in the one form in which Flower's messages carry them."""

from __future__ import annotations

import hashlib
from base64 import b64decode, b64encode

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    SECP384R1,
    SECP521R1,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
    load_ssh_public_key,
)

from hub_service.domain.errors import Invalid

_CURVES = (SECP256R1, SECP384R1, SECP521R1)  # the curves of NIST: Flower's SuperLink takes no others
_LONGEST = 2000  # bytes; a P-384 key in PEM has 215
_PRIVATE = (b"PRIVATE KEY", b"Private-Lines:")  # every PEM form, OpenSSH's own among them, and PuTTY's


def flower_form(public_key: bytes) -> bytes:
    """The key as PEM SubjectPublicKeyInfo, given that or OpenSSH's one-line form.

    Raises Invalid for anything that is not a public key on a NIST elliptic curve. No text has any of what was given.
    """
    public_key = public_key.strip()
    if any(sign in public_key for sign in _PRIVATE):
        raise _private()
    try:
        if len(public_key) > _LONGEST:
            raise ValueError("too long")
        load = load_ssh_public_key if public_key.startswith(b"ecdsa-") else load_pem_public_key
        key = load(public_key)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _not_a_key() from error
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, _CURVES):
        raise _not_a_key()
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def fingerprint(key: bytes) -> str:
    """The key's sha256 as `ssh-keygen -l` prints it: SHA256 and a colon, then base64 without padding.

    Args:
        key: in Flower's form.
    """
    line = load_pem_public_key(key).public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    digest = hashlib.sha256(b64decode(line.split()[1])).digest()
    return f"SHA256:{b64encode(digest).decode('ascii').rstrip('=')}"


def _not_a_key() -> Invalid:
    return Invalid(
        "This is not a node's public key.",
        "Send a public key on a NIST elliptic curve, as PEM or as OpenSSH writes it: "
        "`ssh-keygen -t ecdsa` puts it into the file that ends in .pub.",
    )


def _private() -> Invalid:
    return Invalid(
        "This is a private key. It must never leave the machine of its node, and nothing of it was kept here.",
        "Throw this pair away and make a new one; then send the public key, the file that ends in .pub.",
    )
