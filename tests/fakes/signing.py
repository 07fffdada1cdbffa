"""Headers of a Fleet request, as Flower's nodes sign it."""

from __future__ import annotations

from base64 import b64encode
from datetime import UTC, datetime

from cryptography.hazmat.primitives.asymmetric import ec
from flwr.supercore.primitives.asymmetric import sign_message

from tests.fakes.fleet import Member


def signed(
    member: Member, at: datetime | None = None, signer: ec.EllipticCurvePrivateKey | None = None
) -> dict[str, str]:
    """By the member's key, or by another in its name; now, or at another time."""
    timestamp = (at or datetime.now(UTC)).isoformat()
    signature = sign_message(signer or member.private_key, timestamp.encode("ascii"))
    return {
        "content-type": "application/protobuf",
        "accept": "application/protobuf",
        "flwr-public-key": b64encode(member.public_key).decode("ascii"),
        "flwr-timestamp": timestamp,
        "flwr-signature": b64encode(signature).decode("ascii"),
    }
