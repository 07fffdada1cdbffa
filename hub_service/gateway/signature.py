"""Who sent a Fleet request: Flower's signature headers. The signature covers the timestamp alone."""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Mapping
from datetime import datetime

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.supercore.constant import (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
    MAX_TIMESTAMP_DIFF_SECONDS,
    MIN_TIMESTAMP_DIFF_SECONDS,
)
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature

SIGNATURE_HEADERS = (FLEET_HTTP_PUBLIC_KEY_HEADER, TIMESTAMP_HEADER, FLEET_HTTP_SIGNATURE_HEADER)


class NotSigned(Exception):
    """The request is not signed by the key it names, or not now."""


class ClockOff(NotSigned):
    """Signed well, but not now. Nothing of who may do what is in this: anybody may sign with a key of their own."""

    def __init__(self, age_s: float) -> None:
        super().__init__("the timestamp is outside Flower's window")
        self.age_s = age_s  # how far the signer's clock is behind; negative where it is ahead


def signing_key(headers: Mapping[str, str], now: datetime) -> bytes:
    """The public key (PEM) that signed the request within Flower's window of time. Raises NotSigned or ClockOff."""
    try:
        public_key = b64decode(headers[FLEET_HTTP_PUBLIC_KEY_HEADER], validate=True)
        signature = b64decode(headers[FLEET_HTTP_SIGNATURE_HEADER], validate=True)
        timestamp = headers[TIMESTAMP_HEADER]
        age_s = (now - datetime.fromisoformat(timestamp)).total_seconds()
        key = bytes_to_public_key(public_key)
        signed = timestamp.encode("ascii")
    except (KeyError, ValueError, TypeError, binascii.Error, UnsupportedAlgorithm) as error:
        raise NotSigned("a signature header is missing or malformed") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not verify_signature(key, signed, signature):
        raise NotSigned("the signature does not fit the key")
    if not MIN_TIMESTAMP_DIFF_SECONDS < age_s < MAX_TIMESTAMP_DIFF_SECONDS:
        raise ClockOff(age_s)
    return public_key
