"""Broken Fleet requests: valid ones that were recorded from a real node, changed by a seeded generator.

`Corpus` makes `Attack`s, `send` writes one on a connection of its own, byte for byte, and reads what comes back. What
an attacker may know of another tenant (ids, hashes, names) is known to the corpus: a guess that is right must not help.
"""

from __future__ import annotations

import asyncio
import json
import re
import struct
from base64 import b64encode
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from federator.contract import FLEET_LETTERS_HEADER, FLEET_PREFIX
from federator.framing import pack, split
from flwr.common.serde import message_from_proto
from flwr.proto.fab_pb2 import GetFabRequest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    Message,
    Metadata,
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.inflatable.inflatable_object import get_object_tree, no_object_id_recompute
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message

Headers = list[tuple[str, str]]

PATIENCE_S = 20.0  # an answer takes milliseconds; whoever has none by then has hung
_SILENT_S = 0.3  # how long a request that has no end is left waiting before its sender goes
_STATUS = re.compile(rb"^HTTP/1\.[01] (\d{3})", re.MULTILINE)
_ENCODINGS = ("gzip", "chunked, chunked", "xchunked", "chunked\x0b", "")
_CHUNK_HEADS = (b"-1\r\n", b"g\r\n", b"f" * 40 + b"\r\n", b"0x1\r\n", b"5;" + b"x" * 9000 + b"\r\n", b"1_0\r\n")
_METHODS = ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "HEAD", "post", "X" * 500, "PO ST", "")
_VERSIONS = ("HTTP/1.0", "HTTP/0.9", "HTTP/2", "HTTP/1.2", "HTCPCP/1.0", "", "HTTP/1.1 ")
_VALUES = ("a\0b", "\x7f", "é", "a\r\n folded", "\x80\xff")
_METADATA = ("é\xff", "a" * 5000, "", "\t", "{}")
_WAITS = ("wait=nan", "wait=-1", "wait=0x1", "wait=٠", "wait=.", "wait=0;x", "wait=" + "0" * 500)
_PATHS = (
    "../../etc/passwd",
    "%2e%2e/%2e%2e/etc/passwd",
    "..\\x",
    "pull-messages/",
    "pull-messages/../get-fab",
    "bulk-online",
    "grid-push",
    "%00",
    "é",
    "x" * 5000,
    "get-run?x=1",
    "get-run;x",
    "//",
)
_NO_NAMES = (b"{}", b"1", b"null", b"[[]]", b'"x"', b"[1e999]", b"\xff")
_NUMBERS = ("-1", "+5", "0x10", "1_0", "5,5", "5, 6", " 5", "", "٣", "1e3", "nan", "9" * 30, "5 5")
_TRAVERSALS = ("../../../etc/passwd", "..%2f..%2fetc%2fpasswd", "/etc/passwd", "mail/../../x", "a\0b", "." * 300)


@dataclass(frozen=True, slots=True)
class Attack:
    """What is written on one connection. `ends`: it has an end, and the gateway answers by itself."""

    kind: str
    data: bytes
    ends: bool = True


@dataclass(frozen=True, slots=True)
class Answer:
    """All bytes that came back. `hung`: neither an answer nor the connection's end came."""

    content: bytes
    hung: bool = False

    @property
    def statuses(self) -> list[int]:
        return [int(status) for status in _STATUS.findall(self.content)]


@dataclass
class Known:
    """What the attacker knows of a project: of its own by right, of another by whatever means."""

    node_ids: list[int] = field(default_factory=list)
    run_ids: list[int] = field(default_factory=list)
    message_ids: list[str] = field(default_factory=list)
    object_ids: list[str] = field(default_factory=list)
    fab_hashes: list[str] = field(default_factory=list)
    blobs: list[str] = field(default_factory=list)


def signature_headers(signer: ec.EllipticCurvePrivateKey, public_key: bytes, timestamp: str) -> Headers:
    """As Flower's nodes sign; here the signer need not be who the key says."""
    return [
        ("flwr-public-key", b64encode(public_key).decode("ascii")),
        ("flwr-timestamp", timestamp),
        ("flwr-signature", b64encode(sign_message(signer, timestamp.encode())).decode("ascii")),
    ]


async def send(port: int, attack: Attack) -> Answer:
    """Send it and read to the connection's end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    content = bytearray()
    try:
        writer.write(attack.data)
        with suppress(ConnectionError):
            await writer.drain()
        hung = False
        try:
            async with asyncio.timeout(PATIENCE_S if attack.ends else _SILENT_S):
                await _read(reader, content)
        except TimeoutError:
            hung = attack.ends
        return Answer(bytes(content), hung)
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def _read(reader: asyncio.StreamReader, content: bytearray) -> None:
    with suppress(ConnectionError):  # the gateway may hang up on what it does not want to read
        while piece := await reader.read(65536):
            content += piece


class Corpus:
    """Attacks by the holder of one key.

    Args:
        seed: the same seed and the same knowledge give the same attacks, but for times and signatures.
        private_key: a key that opens a project.
        recorded: requests of a real node of that project: operation and body.
        own, foreign: what is known of that project and of another.
    """

    def __init__(
        self,
        seed: int,
        private_key: ec.EllipticCurvePrivateKey,
        recorded: Sequence[tuple[str, bytes]],
        own: Known,
        foreign: Known,
        foreign_public_key: bytes,
    ) -> None:
        self._random = Random(seed)  # noqa: S311 - repeats, guards nothing
        self._key = private_key
        self._public_key = public_key_to_bytes(private_key.public_key())
        self._stranger = ec.generate_private_key(ec.SECP256R1())
        self._rsa = rsa.generate_private_key(65537, 2048).public_key()
        self._foreign_public_key = foreign_public_key
        self._recorded = list(recorded)
        self.own = own
        self.foreign = foreign
        self._kinds: tuple[Callable[[], Attack], ...] = (
            self._badly_signed,
            self._with_a_broken_body,
            self._with_a_broken_body,
            self._with_anothers_ids,
            self._with_anothers_ids,
            self._in_broken_frames,
            self._with_a_garbage_answer,
            self._in_broken_http,
            self._in_broken_http,
        )

    def attack(self) -> Attack:
        return self._random.choice(self._kinds)()

    # --- kinds

    def _badly_signed(self) -> Attack:
        operation, body = self._valid()
        now = datetime.now(UTC)
        good = self._signed()
        headers = self._random.choice(
            [
                lambda: self._signed(signer=self._stranger),
                lambda: self._signed(at=now - timedelta(seconds=self._random.uniform(301, 10**9))),
                lambda: self._signed(at=now + timedelta(seconds=self._random.uniform(6, 10**9))),
                lambda: self._signed(text=now.replace(tzinfo=None).isoformat()),
                lambda: self._signed(text=self._random.choice(["0001-01-01T00:00:00+23:59", "now", "", "9" * 5000])),
                lambda: self._signed(public_key=self._foreign_public_key),
                lambda: self._signed(public_key=public_key_to_bytes(self._stranger.public_key())),
                lambda: self._signed(public_key=self._rsa.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)),
                lambda: self._signed(public_key=self._mutated(self._public_key)),
                lambda: [(name, self._mutated_text(value)) for name, value in good],
                lambda: [one for one in good if self._random.random() < 0.6],
                lambda: [*good, self._random.choice(good)],
                lambda: [(name, value * 50) for name, value in good],
            ]
        )()
        return self._request("badly signed", operation, headers, body)

    def _with_a_broken_body(self) -> Attack:
        operation, body = self._valid()
        if self._random.random() < 0.2:
            operation, _ = self._valid()
        return self._request("broken body", operation, self._signed(), self._mutated(body))

    def _with_anothers_ids(self) -> Attack:
        operation, body = self._stock(self.foreign if self._random.random() < 0.7 else self.own, honest=False)
        return self._request("another's ids", operation, self._signed(), body)

    def _in_broken_frames(self) -> Attack:
        operation = self._random.choice(["bulk-pull", "bulk-push"])
        pull = PullMessagesRequest(node=Node(node_id=self._one(self.own.node_ids, 1))).SerializeToString()
        body = self._random.choice(
            [
                lambda: struct.pack(">Q", self._number()) + pull,
                lambda: struct.pack(">Q", len(pull) + self._random.randint(-3, 3)) + pull,
                lambda: b"\0" * 8 * self._random.randint(1, 100_000),
                lambda: pack([pull] * self._random.randint(0, 5), {}),
                lambda: pack([pull, json.dumps([self._random.choice(_TRAVERSALS)] * 3).encode()], {}),
                lambda: pack([pull, b"[" * self._random.randint(1, 100_000)], {}),
                lambda: pack([pull, self._random.choice(_NO_NAMES)], {}),
                lambda: pack([pull, b"9" * 5000], {}),
                lambda: pack([pull, self._random.randbytes(40)], {}),
                lambda: self._random.randbytes(self._random.randint(0, 200)),
            ]
        )()
        return self._request("broken frames", operation, self._signed(), body)

    def _with_a_garbage_answer(self) -> Attack:
        """An envelope that fits a message that the node has, and after it anything."""
        recorded = [body for operation, body in self._recorded if operation == "bulk-push"]
        envelope = self._answer_to(self._one(self.own.message_ids, "0" * 64)).SerializeToString()
        tail = self._random.choice(
            [
                lambda: b"",
                lambda: struct.pack(">Q", 40) + b"\x1f\x8b\x08" + b"\0" * 37,  # gzip
                lambda: pack([pack([b"", b"[" * 50_000], {})], {}),  # a letter whose names do not end
                lambda: pack([pack([b"", json.dumps([*_TRAVERSALS]).encode()], {}), b"x"], {}),
                lambda: pack([pack([self._random.randbytes(60), b"[]"], {})], {}),
                lambda: self._random.randbytes(self._random.randint(1, 5000)),
                lambda: self._mutated(_content(self._random.choice(recorded))),
                lambda: self._mutated(_content(self._random.choice(recorded))),
                lambda: self._mutated(_content(self._random.choice(recorded))),
                lambda: b"\0" * 8 * self._random.randint(1, 20_000),
            ]
        )()
        return self._request("garbage answer", "bulk-push", self._signed(), pack([envelope], {}) + tail)

    def _in_broken_http(self) -> Attack:
        operation, body = self._valid()
        good = self._signed()
        length = ("Content-Length", str(len(body)))
        chunked = ("Transfer-Encoding", "chunked")
        whole = f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
        smuggled = b"GET /v1/fleet/smuggled HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        return self._random.choice(
            [
                lambda: self._raw(
                    "content-length",
                    operation,
                    [*good, ("Content-Length", self._random.choice(_NUMBERS))],
                    body,
                    ends=False,
                ),
                lambda: self._raw(
                    "content-length twice", operation, [*good, length, ("Content-Length", "0")], body, ends=False
                ),
                lambda: self._raw("content-length twice", operation, [*good, length, length], body),
                lambda: self._raw("both lengths", operation, [*good, length, chunked], whole),
                lambda: self._raw(
                    "both lengths", operation, [*good, ("Content-Length", "4"), chunked], whole + smuggled
                ),
                lambda: self._raw(
                    "transfer-encoding",
                    operation,
                    [*good, ("Transfer-Encoding", self._random.choice(_ENCODINGS))],
                    whole,
                    ends=False,
                ),
                lambda: self._raw("chunked", operation, [*good, chunked], whole),
                lambda: self._raw("broken chunks", operation, [*good, chunked], self._mutated(whole), ends=False),
                lambda: self._raw(
                    "broken chunks", operation, [*good, chunked], self._random.choice(_CHUNK_HEADS) + body, ends=False
                ),
                lambda: self._raw(
                    "aborted",
                    operation,
                    [*good, ("Content-Length", str(len(body) + self._random.randint(1, 10**6)))],
                    body,
                    ends=False,
                ),
                lambda: self._raw(
                    "oversized",
                    operation,
                    [*good, ("Content-Length", str(2 ** self._random.randint(32, 70)))],
                    body,
                    ends=False,
                ),
                lambda: self._raw("smuggled", operation, [*good, length], body + smuggled),
                lambda: self._raw(
                    "method", operation, [*good, length], body, method=self._random.choice(_METHODS), ends=False
                ),
                lambda: self._raw(
                    "version", operation, [*good, length], body, version=self._random.choice(_VERSIONS), ends=False
                ),
                lambda: self._raw(
                    "huge header",
                    operation,
                    [*good, length, ("X-Large", "x" * self._random.choice([60_000, 70_000]))],
                    body,
                ),
                lambda: self._raw(
                    "many headers", operation, [*good, length, *[(f"X-{i}", "y") for i in range(2000)]], body
                ),
                lambda: self._raw(
                    "odd header", operation, [*good, length, ("X", self._random.choice(_VALUES))], body, ends=False
                ),
                lambda: self._raw(
                    "odd header",
                    operation,
                    [
                        *good,
                        length,
                        (
                            f"flwr-{self._random.choice(['x', 'package-version', 'component'])}",
                            self._random.choice(_METADATA),
                        ),
                    ],
                    body,
                ),
                lambda: self._raw(
                    "prefer", operation, [*good, length, ("Prefer", self._random.choice(_WAITS))], body, ends=False
                ),
                lambda: self._raw("path", self._random.choice(_PATHS), [*good, length], body, ends=False),
                lambda: Attack("no HTTP", self._random.randbytes(self._random.randint(1, 500)), ends=False),
                lambda: self._cut(self._raw("cut off", operation, [*good, length], body)),
            ]
        )()

    # --- what they are made of

    def _valid(self) -> tuple[str, bytes]:
        """A request as a node sends it, with ids of its own project."""
        if self._recorded and self._random.random() < 0.5:
            return self._random.choice(self._recorded)
        return self._stock(self.own, honest=True)

    def _stock(self, known: Known, *, honest: bool) -> tuple[str, bytes]:
        """A request of Flower's own client. Not honest: each id may be any."""

        def some(own: list[Any], others: list[Any], odd: list[Any]) -> Any:
            if honest or self._random.random() < 0.4:
                return self._one(own, odd[0])
            return self._random.choice([self._one(others, odd[0]), self._random.choice(odd)])

        odd_numbers = [0, 1, 2**63, 2**64 - 1, self._number()]
        odd_texts = ["", "0" * 64, "é", "x" * 3000, *_TRAVERSALS]
        node = Node(node_id=some(self.own.node_ids, known.node_ids, odd_numbers))
        run_id = some(self.own.run_ids, known.run_ids, odd_numbers)
        message_id = some(self.own.message_ids, known.message_ids, odd_texts)
        object_id = some(self.own.object_ids, known.object_ids, odd_texts)
        fab_hash = some(self.own.fab_hashes, known.fab_hashes, odd_texts)
        interval = self._random.choice([30.0, 0.0, -1.0, float("nan"), float("inf"), 1e300])
        content = self._random.randbytes(self._random.choice([0, 10, 3000]))
        request = self._random.choice(
            [
                lambda: ("get-run", GetRunRequest(node=node, run_id=run_id)),
                lambda: ("get-fab", GetFabRequest(node=node, run_id=run_id, hash_str=fab_hash)),
                lambda: ("pull-messages", PullMessagesRequest(node=node, message_ids=[message_id])),
                lambda: ("pull-object", PullObjectRequest(node=node, run_id=run_id, object_id=object_id)),
                lambda: (
                    "push-object",
                    PushObjectRequest(
                        node=node, run_id=run_id, object_id=object_id, object_content=content, session_id=message_id
                    ),
                ),
                lambda: (
                    "confirm-message-received",
                    ConfirmMessageReceivedRequest(node=node, run_id=run_id, message_object_id=message_id),
                ),
                lambda: ("send-node-heartbeat", SendNodeHeartbeatRequest(node=node, heartbeat_interval=interval)),
                lambda: (
                    "activate-node",
                    ActivateNodeRequest(public_key=self._public_key, heartbeat_interval=interval),
                ),
                lambda: ("deactivate-node", DeactivateNodeRequest(node_id=node.node_id)),
                lambda: ("push-messages", self._answer_to(message_id, node.node_id, run_id, object_id)),
                lambda: ("push-messages", PushMessagesRequest(node=node)),
                lambda: ("bulk-pull", PullMessagesRequest(node=node)),
                lambda: ("bulk-push", self._answer_to(message_id, node.node_id, run_id, object_id)),
                lambda: ("register-node", ActivateNodeRequest(public_key=self._public_key)),
            ]
        )()
        operation, message = request
        body: bytes = message.SerializeToString()
        if operation == "bulk-pull":
            body = pack([body, json.dumps(known.blobs).encode()], {})
        if operation == "bulk-push":
            body = pack([body, pack([b"", b"[]"], {})], {})
        return operation, body

    def _answer_to(
        self, message_id: str, node_id: int | None = None, run_id: int | None = None, object_id: str = ""
    ) -> PushMessagesRequest:
        node_id = self._one(self.own.node_ids, 1) if node_id is None else node_id
        metadata = Metadata(
            run_id=self._one(self.own.run_ids, 1) if run_id is None else run_id,
            message_id=object_id,
            src_node_id=node_id,
            dst_node_id=self._random.choice([1, 1, 1, 1, self._one(self.foreign.node_ids, 2)]),
            reply_to_message_id=message_id,
            group_id="1",
            ttl=self._random.choice([1.0, 1.0, 1.0, 0.0, -5.0, 1e300, float("nan")]),
            message_type=self._random.choice(["train", "train", "train", "evaluate", "query", "x", ""]),
            created_at=datetime.now(UTC).timestamp(),
        )
        message = Message(metadata=metadata)
        if self._random.random() < 0.8:
            message.content.SetInParent()
        tree = self._random_tree(object_id)
        if not object_id:
            with suppress(ValueError, TypeError):  # Flower's own classes refuse some of what is sent here
                whole = message_from_proto(message)
                with no_object_id_recompute():
                    tree = get_object_tree(whole)
                metadata.message_id = tree.object_id
                message.metadata.CopyFrom(metadata)
        return PushMessagesRequest(
            node=Node(node_id=node_id),
            messages_list=[message] * self._random.choice([1, 1, 1, 1, 2, 0]),
            message_object_trees=[tree] * self._random.choice([1, 1, 1, 1, 0, 2]),
        )

    def _random_tree(self, object_id: str) -> ObjectTree:
        tree = ObjectTree(object_id=self._random.choice([object_id, "", "x"]))
        for _ in range(self._random.choice([0, 1, 40])):
            tree = ObjectTree(object_id=tree.object_id, children=[tree])
        return tree

    def _mutated(self, content: bytes) -> bytes:
        changed = bytearray(content)
        for _ in range(self._random.choice([1, 1, 1, 2, 5])):
            start = self._random.randrange(len(changed) + 1)
            end = min(len(changed), start + self._random.choice([1, 2, 8, 100]))
            match self._random.randrange(7):
                case 0:
                    del changed[start:]
                case 1:
                    del changed[start:end]
                case 2:
                    changed[start:start] = self._random.randbytes(self._random.choice([1, 4, 40]))
                case 3 if changed:
                    changed[start % len(changed)] ^= 1 << self._random.randrange(8)
                case 4:
                    changed[start:start] = changed[start:end] * 3
                case 5:
                    changed[start:end] = self._random.choice(
                        [b"\xff" * 10, b"\0" * 8, b"\x0a" * 300, b"%s%n", b"\x80" * 12]
                    )
                case _:
                    changed[start:end] = self._random.randbytes(end - start)
        return bytes(changed)

    def _mutated_text(self, text: str) -> str:
        changed = self._mutated(text.encode("latin-1")).decode("latin-1")
        return re.sub(r"[\r\n]", "", changed)

    def _signed(
        self,
        at: datetime | None = None,
        signer: ec.EllipticCurvePrivateKey | None = None,
        public_key: bytes | None = None,
        text: str | None = None,
    ) -> Headers:
        timestamp = (at or datetime.now(UTC)).isoformat() if text is None else text
        return signature_headers(signer or self._key, self._public_key if public_key is None else public_key, timestamp)

    def _request(self, kind: str, operation: str, headers: Headers, body: bytes) -> Attack:
        return self._raw(f"{kind}: {operation}", operation, [*headers, ("Content-Length", str(len(body)))], body)

    def _raw(
        self,
        kind: str,
        operation: str,
        headers: Headers,
        body: bytes,
        *,
        method: str = "POST",
        version: str = "HTTP/1.1",
        ends: bool = True,
    ) -> Attack:
        more = [("Host", "hub.example"), ("Connection", "close"), ("Content-Type", "application/protobuf")]
        if not any(name == "Prefer" for name, _ in headers):
            more.append(("Prefer", "wait=0"))
        if self._random.random() < 0.7:
            more.append((FLEET_LETTERS_HEADER, "1"))
        lines = [
            f"{method} {FLEET_PREFIX}{operation} {version}",
            *(f"{name}: {value}" for name, value in [*more, *headers]),
        ]
        return Attack(kind, "\r\n".join(lines).encode("utf-8") + b"\r\n\r\n" + body, ends)

    def _cut(self, attack: Attack) -> Attack:
        return Attack(attack.kind, attack.data[: self._random.randrange(1, len(attack.data))], ends=False)

    def _number(self) -> int:
        return self._random.getrandbits(self._random.randint(1, 64))

    def _one(self, values: list[Any], otherwise: Any) -> Any:
        return self._random.choice(values) if values else otherwise


def _content(answer: bytes) -> bytes:
    """The letter and the blobs of an answer, as its node sent them."""
    return pack(split(answer)[1:], {})
