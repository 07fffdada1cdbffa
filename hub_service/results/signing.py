"""The service's signature under a run's record: it says that this service saw this run end with this model.

Ed25519. What is signed is `canonical` of the record and the model's sha256, so whoever has both files and the service's
public key can check them without the service: `python -m hub_service.results.verify`.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from federator.contract import SignedRecord

from hub_service.domain.errors import Invalid
from hub_service.durable_files import kept_file


def canonical(record: Mapping[str, Any], model_sha256: str) -> bytes:
    """The bytes that are signed: sorted keys, no spaces, ASCII only."""
    content = {"model_sha256": model_sha256, "record": record}
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def public_key_sha256(pem: str) -> str:
    """What two people compare to know that they have the same key: of its 32 bytes. Raises Invalid."""
    return hashlib.sha256(_public_key(pem).public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()


class SigningKey:
    """The service's key. `kept` has one for good; a new one that nobody knows is of no use to anybody."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @classmethod
    def new(cls) -> SigningKey:
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def kept(cls, path: Path) -> SigningKey:
        """The key in this file, which is made on first use, readable for the service's account only.

        Raises Invalid where the file holds no such key.
        """
        return cls(_private_key(path.name, kept_file(path, _new_key)))

    @property
    def public_pem(self) -> str:
        return self._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()

    def sign(self, record: Mapping[str, Any], model_sha256: str) -> SignedRecord:
        """The record, in JSON's own types, with its signature."""
        plain: dict[str, Any] = json.loads(json.dumps(record))
        signature = base64.b64encode(self._key.sign(canonical(plain, model_sha256))).decode()
        return SignedRecord(plain, model_sha256, signature, self.public_pem)


def is_signed(signed: SignedRecord, public_pem: str) -> bool:
    """Whether the holder of this public key has signed the record. Raises Invalid for what is no key."""
    try:
        signature = base64.b64decode(signed.signature, validate=True)
        _public_key(public_pem).verify(signature, canonical(signed.record, signed.model_sha256))
    except (InvalidSignature, ValueError):
        return False
    return True


def _new_key() -> bytes:
    return Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _private_key(file: str, pem: bytes) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(pem, None)
    except ValueError as error:
        raise Invalid(f"{file} holds no private key.", "Restore it, or remove it to begin with a new one.") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise Invalid(f"{file} holds no Ed25519 key.", "Restore it, or remove it to begin with a new one.")
    return key


def _public_key(pem: str) -> Ed25519PublicKey:
    try:
        key = load_pem_public_key(pem.encode())
    except ValueError as error:
        raise Invalid("The public key cannot be read.", "Take it from the service: api/signing-key.") from error
    if not isinstance(key, Ed25519PublicKey):
        raise Invalid("The public key is no Ed25519 key.", "Take it from the service: api/signing-key.")
    return key
