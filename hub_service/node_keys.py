"""Public keys of nodes, in the one form in which Flower's messages carry them."""

from __future__ import annotations

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

_CURVES = (SECP256R1, SECP384R1, SECP521R1)  # Flower takes no other
_LONGEST = 2000  # bytes; a P-384 key in PEM has 215
_CURVES = (SECP256R1, SECP384R1, SECP521R1)  # the curves of NIST: Flower's SuperLink takes no others


def flower_form(public_key: bytes) -> bytes:
    """The key as PEM SubjectPublicKeyInfo, given that or OpenSSH's one-line form.

    Raises Invalid for anything that is not a public key on a NIST elliptic curve.
    """
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


def _not_a_key() -> Invalid:
    return Invalid(
        "This is not a node's public key.",
        "Send a public key on a NIST elliptic curve, as PEM or as OpenSSH writes it.",
    )
