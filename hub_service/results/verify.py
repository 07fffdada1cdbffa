"""Checks a signed record, and the model beside it, without the service.

    python -m hub_service.results.verify signed.json [model.safetensors] [--key signing-key.pem]

The public key is the one that the service gives out at api/signing-key; take it once, from the Hub that you trust.
Without --key the key in the record is taken, which shows only that nothing was changed since somebody signed it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from federator.contract import SignedRecord

from hub_service.domain.errors import Invalid
from hub_service.results.signing import is_signed, public_key_sha256


def check(record: Path, model: Path | None, key: Path | None) -> list[str]:
    """What is right, one sentence each. Raises Invalid, saying what is wrong."""
    signed = _read(record)
    public_pem = key.read_text(errors="replace") if key else signed.public_key
    if not is_signed(signed, public_pem):
        raise Invalid(
            "The signature is not good: the record was changed, or another key signed it.",
            "Download the signed record again, and take the key from the Hub that ran this.",
        )
    said = [f"The record is as it was signed, by the key {public_key_sha256(public_pem)}."]
    if key is None:
        said.append("Whose key that is, this does not say: compare it with the Hub's, or give it with --key.")
    if model is not None:
        with model.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        kept = {signed.model_sha256, *(one["sha256"] for one in signed.record.get("models", ()))}
        if found not in kept:
            raise Invalid(
                f"The model is not the one of the record: its sha256 is {found}.", "Download it from the same run."
            )
        said.append(f"The model is the one of the record, sha256 {found}.")
    return said


def _read(path: Path) -> SignedRecord:
    """Raises Invalid for anything but a record, two texts and a key."""
    refusal = Invalid(f"{path} is no signed record.", "Download it from the run's page: “Signed record”.")
    try:
        signed = SignedRecord(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise refusal from error
    texts = (signed.model_sha256, signed.signature, signed.public_key)
    if not isinstance(signed.record, dict) or not all(isinstance(text, str) for text in texts):
        raise refusal
    return signed


def say(text: str, stream: TextIO = sys.stdout) -> None:
    stream.write(f"{text}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where all is right, 1 where something is not, with the reason."""
    parser = argparse.ArgumentParser(prog="verify", description="Check a run's signed record, and its model.")
    parser.add_argument("record", type=Path)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--key", type=Path, help="the Hub's public key, from api/signing-key")
    asked = parser.parse_args(arguments)
    try:
        said = check(asked.record, asked.model, asked.key)
    except Invalid as error:
        say(f"{error.message} {error.next_step}".strip(), sys.stderr)
        return 1
    except OSError as error:
        say(f"{error.filename} cannot be read: {error.strerror}.", sys.stderr)
        return 1
    say("\n".join(said))
    return 0


if __name__ == "__main__":
    sys.exit(main())
