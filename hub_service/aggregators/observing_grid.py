"""Flower's grid as a project's ServerApp gets it.

It shows the nodes that take part, reports what passes, and lets model data travel in files. What is reported and left
out is decided in `observer.py`; `serverapp.py` runs it.
"""

from __future__ import annotations

import functools
import inspect
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast
from uuid import uuid4

import httpx
from federator.contract import OutagePolicy
from federator.framing import BadFrame, pack, split, unpack
from federator.parcel import Letter
from flwr.app import DEFAULT_TTL, Array, ArrayRecord, ConfigRecord, Error, Message, Metadata, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.common.serde_utils import metadata_from_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.runtime_pb2 import (
    GetNodesRequest,
    GetNodesResponse,
    PullAppMessagesRequest,
    PullAppMessagesResponse,
    PushAppMessagesRequest,
    PushAppMessagesResponse,
)
from flwr.serverapp.strategy import Strategy
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, inflate_object_from_contents, pull_objects
from flwr.supercore.protobuf.client import ProtobufRequestContext
from flwr.superlink.grid import HttpGrid
from google.protobuf.message import DecodeError
from google.protobuf.message import Message as Protobuf

from hub_service.aggregators.mailbox import BeyondHalf, Mailbox
from hub_service.aggregators.mapped_array import is_halved, numpy_view, size_of
from hub_service.aggregators.observer import (
    FEDERATED,
    Arrays,
    ArraySeen,
    MessageSeen,
    Observer,
    odd_lengths,
    odd_ones_out,
    odd_parts,
)
from hub_service.aggregators.outages import Outages, Silent
from hub_service.domain.projects import GRACE_S
from hub_service.domain.runs import LARGEST_COUNT, LEFT_OUT, MOST_COUNTS

# Kinds of message of Flower's strategies.
_TRAIN, _EVALUATE = "train", "evaluate"

# How long to keep trying when the SuperLink does not answer, in seconds.
SUPERLINK_PATIENCE_S = 60.0
# How long the SuperLink holds a look for replies, in seconds; it answers at once when one comes.
_WAIT_S = 1.0
# As long for an app that looks by itself: it may do so without a pause.
_SHORT_WAIT_S = 0.05
# Waits between two looks for objects of a stock node that come by and by, in seconds.
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.01, 0.2
# Between two looks at who is connected, in seconds, while one of them is waited for.
_LOOK_S = 1.0
# How long what the SuperLink said last tells who is connected, in seconds: it says so with replies, and a strategy asks
# at once.
_FRESH_S = 0.1
# A message lives for Flower's twelve hours unless the app says otherwise; a site may be away, or train, for longer.
_MESSAGE_TTL_S = 365 * 24 * 3600.0
# What `Strategy.start` waits at most for the answers of one round, in seconds, where the app does not say otherwise.
_STRATEGY_TIMEOUT_S = inspect.signature(Strategy.start).parameters["timeout"].default
# How long one request may take, in seconds: for stock nodes it carries all arrays of a round.
_CALL_TIMEOUT_S = 120.0
# What inflating raises for objects that are good as such and make no message together.
_ODD_OBJECT = (AttributeError, IndexError, KeyError, TypeError, ValueError, RecursionError, DecodeError)
# An app that asks this often for nodes, is shown all of them, and sends nothing, waits for more than there are.
_PATIENT_ASKS = 8


class RunFailed(Exception):
    """The run cannot go on; the text is for a person."""


class TooFewSites(RunFailed):
    """The app waits for more sites than take part."""


@dataclass(frozen=True, slots=True)
class _Open:
    """A message without an answer, and the blobs that it needs."""

    metadata: Metadata
    blobs: tuple[str, ...]


class ObservingGrid(HttpGrid):
    """Flower's grid, restricted to some nodes, that reports all traffic to an Observer and polls without delay.

    A node that falls silent while it is waited for, or when a round begins, is dealt with by the project's policy
    (`outages.py`). One that is left out gives an error for its answer, as a lost node does in Flower; the strategy goes
    on with the rest, and sees the node again once it is back.

    Messages to nodes that take letters, and their answers, travel as `federator.parcel` says; to others as Flower's
    own grid sends them. Nodes and replies come in the order in which the nodes take part, so that sums of floating
    numbers are the same each time.

    Args:
        runtime_api_address: host:port of the SuperLink.
        token: the claim on the run's task, from AcquireTask.
        observer: is told of every message and decides which replies are left out.
        save: called with the global model of a round of the federated phase, as soon as it is seen.
        mailbox: where model data go out and come in.
        on_outage, grace_s: what becomes of a node that falls silent, and after how many seconds.
    """

    def __init__(
        self,
        runtime_api_address: str,
        token: str,
        observer: Observer,
        save: Callable[[ArrayRecord, int], None],
        mailbox: Mailbox,
        on_outage: OutagePolicy = OutagePolicy.WAIT,
        grace_s: float = GRACE_S,
    ) -> None:
        super().__init__(runtime_api_address, insecure=True, token=token)
        self._retry_invoker.max_time = SUPERLINK_PATIENCE_S
        self._observer = observer
        self._save = save
        self._mailbox = mailbox
        self._letter_nodes: frozenset[int] = frozenset()
        self._outages = Outages(on_outage, grace_s, lambda silent: observer.outage(silent, self._rounds))
        self._nodes: Sequence[NodeInfo] = ()  # who was connected when the SuperLink last said it, and when that was
        self._silent: Silent = {}  # of all nodes, then
        self._looked_at = 0.0
        self._open: dict[str, _Open] = {}
        self._shown: dict[int, int] = {}  # node -> its place among all that take part
        self._asks = 0
        self._asked_without: frozenset[int] = frozenset()
        self._rounds = 0
        self._in_round: set[int] = set()
        self._to_be_alike: set[str] = set()  # kinds of message whose replies are to have the same parts
        self.model: ArrayRecord | None = None
        self.model_round = 0
        self.last_evaluate: Message | None = None

    def show(self, node_ids: Iterable[int]) -> None:
        """Begin a phase in which the app sees these nodes only."""
        self._shown = {node_id: place for place, node_id in enumerate(node_ids)}
        self._asks = self._rounds = self.model_round = 0
        self._in_round = set()
        self.model = self.last_evaluate = None

    @property
    def rounds(self) -> int:
        """The last round of this phase that the app has begun."""
        return self._rounds

    def go_on(self, rounds: int) -> None:
        """Count on in the phase that `show` has begun, behind so many rounds that a lost process had seen."""
        self._rounds = rounds

    def online(self) -> frozenset[int]:
        """All nodes that are connected to the SuperLink."""
        return frozenset(node.node_id for node in self._all_nodes())

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Those that are shown and connected, once nobody is waited for. Raises RunFailed.

        An app that asks on and on waits for more sites than these: for one that was left out or, where all are here,
        for ever.
        """
        while True:
            nodes = [node for node in self._nodes_now() if node.node_id in self._shown]
            silent = {node: seconds for node, seconds in self._silent.items() if node in self._shown}
            left_out = self._left_out(silent, others=bool(nodes))
            if not silent.keys() - left_out:
                break
            self._outages.waiting({node: seconds for node, seconds in silent.items() if node not in left_out})
            time.sleep(_LOOK_S)
        if left_out and not nodes:
            raise RunFailed(f"nothing was heard of it for {self._outages.grace_s:g} s")
        self._asks = self._asks + 1 if left_out == self._asked_without else 1
        self._asked_without = left_out
        if self._asks > _PATIENT_ASKS and not left_out:
            raise TooFewSites(f"the app waits for more sites than the {len(nodes)} that take part")
        self._outages.waiting(silent if self._asks > _PATIENT_ASKS else {})
        return sorted(nodes, key=lambda node: self._shown[node.node_id])

    def _left_out(self, silent: Silent, *, others: bool) -> frozenset[int]:
        """Which of the silent nodes are waited for no longer. Raises RunFailed where the run ends for them.

        A site that trains alone, or is compared, keeps nobody waiting under "continue".
        """
        if self._outages.must_stop(silent):
            nodes = ", ".join(f"node {node}" for node in self._outages.overdue(silent))
            raise RunFailed(
                f"{nodes}: nothing was heard for {self._outages.grace_s:g} s, and this project's runs stop then. "
                "The model of the last finished round is kept."
            )
        return self._outages.left_out(silent, others=others or self._observer.phase != FEDERATED)

    def _all_nodes(self) -> Sequence[NodeInfo]:
        """Who is connected; learns which of them take letters, and who is silent."""
        request = GetNodesRequest()
        self._note_nodes(self._bulk("grid-nodes", request, request.SerializeToString()))
        return self._nodes

    def _nodes_now(self) -> Sequence[NodeInfo]:
        """As `_all_nodes`, without asking where the SuperLink has just said it: it does with replies."""
        fresh = time.monotonic() - self._looked_at < _FRESH_S
        return self._nodes if fresh else self._all_nodes()

    def _note_nodes(self, said: bytes) -> None:
        answer, letter_nodes, silent = split(said)
        self._letter_nodes = frozenset(json.loads(letter_nodes))
        self._silent = {int(node): seconds for node, seconds in json.loads(silent).items()}
        self._looked_at = time.monotonic()
        self._nodes = GetNodesResponse.FromString(answer).nodes

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        receivers = {message.metadata.dst_node_id for message in messages}
        if strangers := receivers - self._shown.keys():
            raise RunFailed(f"the app sent a message to node {min(strangers)}, which does not take part")
        if not messages:
            return []
        self._asks = 0
        if receivers - self._letter_nodes:
            self._all_nodes()
        message_ids = self._sent(messages)
        for message_id, message in zip(message_ids, messages, strict=True):
            if message_id:
                self._observer.sent(message_id, _seen(message, message.metadata.dst_node_id, self._round_of(message)))
        self._note_outgoing(messages[0])
        return message_ids

    def _sent(self, messages: Sequence[Message]) -> list[str]:
        """Push all in one request; return their ids, "" for one that the SuperLink did not take."""
        request = PushAppMessagesRequest()
        objects: dict[str, bytes] = {}
        known: dict[int, Letter] = {}  # by content: strategies give all messages the same
        letters = [self._letter_of(message, known) for message in messages]
        with no_object_id_recompute():
            for message, letter in zip(messages, letters, strict=True):
                if message.metadata.ttl == DEFAULT_TTL:
                    message.metadata.ttl = _MESSAGE_TTL_S
                bare = remove_content_from_message(message)
                whole = message if letter is None else bare
                message.metadata.__dict__["_message_id"] = whole.object_id
                self._check_message(message)
                request.messages_list.append(message_to_proto(bare))
                request.message_object_trees.append(get_object_tree(whole))
                if letter is None:
                    new = {key: one for key, one in get_all_nested_objects(message).items() if key not in objects}
                    objects |= {object_id: item.deflate() for object_id, item in new.items()}
        packed = pack([letter.packed() if letter else b"" for letter in letters], {})
        content = pack([request.SerializeToString(), packed], objects)
        (answer,) = split(self._bulk("grid-push", request, content))
        message_ids = list(PushAppMessagesResponse.FromString(answer).message_ids)
        self._open |= {
            message_id: _Open(message.metadata, letter.blobs if letter else ())
            for message_id, message, letter in zip(message_ids, messages, letters, strict=True)
            if message_id
        }
        self._mailbox.keep_only(name for one in self._open.values() for name in one.blobs)
        return message_ids

    def _letter_of(self, message: Message, known: dict[int, Letter]) -> Letter | None:
        """The message's letter, its model data posted; None where its receiver takes no letters. Raises RunFailed."""
        if message.metadata.dst_node_id not in self._letter_nodes:
            return None
        if id(message.content) not in known:
            try:
                known[id(message.content)] = self._mailbox.letter(message.content)
            except BeyondHalf as error:
                raise RunFailed(str(error)) from error
        return known[id(message.content)]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        message_ids = list(message_ids)
        replies = self._pulled(message_ids, _SHORT_WAIT_S)
        if not replies and time.monotonic() - self._looked_at > _LOOK_S:
            replies = self._instead_of_silent(message_ids)
        self._observer.forget(reply.metadata.reply_to_message_id for reply in replies)
        return replies

    def _pulled(self, message_ids: Iterable[str], wait_s: float) -> list[Message]:
        """The replies that are there, as soon as there is one; none after `wait_s` seconds."""
        request = PullAppMessagesRequest(message_ids=message_ids)
        body = self._bulk("grid-pull", request, request.SerializeToString(), wait_s)
        if not body:
            return []
        (envelopes, files, nodes), contents = unpack(body, messages=3)
        self._note_nodes(nodes)
        answer = PullAppMessagesResponse.FromString(envelopes)
        replies = [
            self._opened(proto, tree, json.loads(files), contents)
            for proto, tree in zip(answer.messages_list, answer.message_object_trees, strict=True)
        ]
        return [self._checked(reply) for reply in replies]

    def _bulk(self, operation: str, message: Protobuf, content: bytes, wait_s: float = 0.0) -> bytes:
        """Ask the SuperLink's bulk path, with the proofs and the patience of Flower's own client."""
        client = self._runtime_client
        key = uuid4().hex  # the same for each attempt

        def send() -> httpx.Response:
            request = client._client.build_request(
                "POST",
                f"{client._base_url}/v1/bulk/{operation}",
                content=content,
                headers={"prefer": f"wait={wait_s:g}", "idempotency-key": key},
                timeout=_CALL_TIMEOUT_S,
            )
            response = client._send(ProtobufRequestContext(operation, message, request))
            response.raise_for_status()
            return response

        response: httpx.Response = self._retry_invoker.invoke(send)
        return response.content

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push all and wait for all replies, or until `timeout` seconds have passed.

        A node that works is waited for as long as it takes. So the hour that `Strategy.start` allows by default is no
        limit here, nor is a timeout as long as Flower's messages live by default (twelve hours) or longer. Any other
        timeout was chosen by the app: then no answer is waited for any longer, whatever the site does and whatever the
        project's policy is.

        Raises RunFailed where every site failed to train: no strategy has anything to go on with then; and where the
        policy ends the run.
        """
        messages = list(messages)
        sent_ids = {message_id for message_id in self.push_messages(messages) if message_id}
        open_ids = set(sent_ids)
        limited = timeout is not None and timeout != _STRATEGY_TIMEOUT_S and timeout < DEFAULT_TTL
        deadline = time.monotonic() + timeout if timeout is not None and limited else float("inf")
        replies: list[Message] = []
        while open_ids and (remaining := deadline - time.monotonic()) > 0:
            arrived = self._pulled(open_ids, min(_WAIT_S, remaining)) or self._instead_of_silent(open_ids, replies)
            replies += arrived
            open_ids -= {reply.metadata.reply_to_message_id for reply in arrived}
        self._outages.waiting({})
        for message_id in open_ids:
            self._observer.unanswered(message_id)
        self._give_up(open_ids)
        replies.sort(key=lambda reply: self._shown.get(reply.metadata.src_node_id, -1))
        replies = self._without_odd_ones(replies)
        self._observer.forget(sent_ids)
        if messages and _is_train(messages[0]) and all(reply.has_error() for reply in replies):
            raise RunFailed(f"no site could train: {_reasons(replies)}")
        return replies

    def _give_up(self, message_ids: set[str]) -> None:
        """Wait no longer for these answers. One that comes after all is not kept."""
        if not message_ids:
            return
        for message_id in message_ids:
            self._open.pop(message_id, None)
        request = PullAppMessagesRequest(message_ids=message_ids)
        self._bulk("grid-give-up", request, request.SerializeToString())

    def _instead_of_silent(self, message_ids: Iterable[str], replies: Sequence[Message] = ()) -> list[Message]:
        """Errors in the place of answers that are not waited for any longer, since their nodes are silent."""
        awaited = {one: self._open[one].metadata for one in message_ids if one in self._open}
        self._all_nodes()
        receivers = {metadata.dst_node_id for metadata in awaited.values()}
        silent = {node: seconds for node, seconds in self._silent.items() if node in receivers}
        others = bool(receivers - silent.keys()) or any(reply.has_content() for reply in replies)
        left_out = self._left_out(silent, others=others)
        self._outages.waiting({node: seconds for node, seconds in silent.items() if node not in left_out})
        lost = {one: metadata for one, metadata in awaited.items() if metadata.dst_node_id in left_out}
        self._give_up(set(lost))
        errors = []
        for message_id, metadata in lost.items():
            reason = f"{LEFT_OUT} for {silent[metadata.dst_node_id]:.0f} s"
            self._observer.unanswered(message_id, reason)
            errors.append(_error_reply(_reply_metadata(metadata), ErrorCode.NODE_UNAVAILABLE, reason))
        return errors

    def note_model(self, arrays: ArrayRecord, number: int) -> None:
        """Take `arrays` for the global model after round `number`."""
        if arrays is self.model or not arrays:
            return
        self.model, self.model_round = arrays, number
        if self._observer.phase == FEDERATED and number > 0:
            self._save(arrays, number)

    def note_strategy(self, strategy: Strategy) -> None:
        """Take this strategy for the one that is at work.

        Flower's own way to aggregate ends the run where replies differ in their parts. An app's own may make something
        of what differs.
        """
        ways = {_TRAIN: type(strategy).aggregate_train, _EVALUATE: type(strategy).aggregate_evaluate}
        self._to_be_alike = {kind for kind, way in ways.items() if way.__module__.startswith("flwr.")}

    def note_result(self, arrays: ArrayRecord) -> None:
        """Take `arrays` for the model that the app ended with."""
        self.note_model(arrays, self._rounds)

    def _round_of(self, message: Message) -> int:
        """The app's own number of the round, where it says one; else how often its nodes have been sent to train."""
        if message.metadata.group_id.isdecimal():
            number = int(message.metadata.group_id)
        else:
            number = next((n for record in message.content.config_records.values() if (n := _said_round(record))), 0)
        if number:
            self._rounds = max(self._rounds, number)
            return number
        if _is_train(message):
            if not self._rounds or message.metadata.dst_node_id in self._in_round:
                self._rounds += 1
                self._in_round = set()
            self._in_round.add(message.metadata.dst_node_id)
        return self._rounds

    def _note_outgoing(self, message: Message) -> None:
        records = message.content.array_records
        if not records or not (_is_train(message) or _is_evaluate(message)):
            return
        arrays = max(records.values(), key=size_of_record)
        if _is_evaluate(message):
            self.last_evaluate = message
            self.note_model(arrays, self._rounds)
        else:
            self.note_model(arrays, self._rounds - 1)

    def _opened(
        self, proto: MessageProto, tree: ObjectTree, files: Mapping[str, str], contents: Mapping[str, bytes]
    ) -> Message:
        """The whole reply, or an error reply where it cannot be read or does not come."""
        self._open.pop(proto.metadata.reply_to_message_id, None)
        metadata = metadata_from_proto(proto.metadata)
        if proto.HasField("error"):
            return message_from_proto(proto)
        try:
            if (name := files.get(proto.metadata.message_id)) is not None:
                return make_message(metadata=metadata, content=self._mailbox.fetch(name))
            return self._inflated(proto, tree, contents)
        except ObjectPullError as error:
            reason = f"the site's answer did not arrive whole: {error}"
        except (BadFrame, OSError, *_ODD_OBJECT) as error:
            reason = f"the site's answer cannot be read: {error}"
        return _error_reply(metadata, ErrorCode.MESSAGE_UNAVAILABLE, reason)

    def _inflated(self, proto: MessageProto, tree: ObjectTree, contents: Mapping[str, bytes]) -> Message:
        """The reply of a stock node. Raises ObjectPullError, and any of _ODD_OBJECT."""
        message_id = proto.metadata.message_id
        object_ids = [item.object_id for item in iterate_object_tree(tree)]
        if not contents.keys() >= set(object_ids):
            contents = self._objects(proto, object_ids)
        contents = {object_id: contents[object_id] for object_id in object_ids}
        content = cast(Message, inflate_object_from_contents(message_id, contents)).content
        # Of whom it is, the SuperLink has looked at the envelope, and not at what an object says.
        return make_message(metadata=metadata_from_proto(proto.metadata), content=content)

    def _objects(self, proto: MessageProto, object_ids: list[str]) -> dict[str, bytes]:
        """The objects of a reply that a stock node is still sending, one by one. Raises ObjectPullError."""
        run_id = proto.metadata.run_id
        contents = pull_objects(
            object_ids,
            make_pull_object_fn_protobuf(self._runtime_client.PullObject, self.node, run_id),
            initial_backoff=_FIRST_WAIT_S,
            backoff_cap=_LONGEST_WAIT_S,
            max_tries_per_object=None,
            max_time=SUPERLINK_PATIENCE_S,
        )
        self._runtime_client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(node=self.node, run_id=run_id, message_object_id=proto.metadata.message_id)
        )
        return contents

    def _checked(self, reply: Message) -> Message:
        source = reply.metadata.src_node_id
        fault = self._observer.replied(reply.metadata.reply_to_message_id, _seen(reply, source, 0))
        return _refused(reply, fault) if fault else reply

    def _without_odd_ones(self, replies: list[Message]) -> list[Message]:
        good = {reply.metadata.reply_to_message_id: reply for reply in replies if reply.has_content()}
        sent = {message_id: self._observer.sent_arrays(message_id) for message_id in good}
        odd = odd_ones_out({message_id: _arrays(reply) for message_id, reply in good.items()}, sent)
        if not self._to_be_alike.isdisjoint(map(_kind, replies)):
            odd |= odd_parts({one: _parts(reply, sent[one]) for one, reply in good.items() if one not in odd})
        odd |= odd_lengths({one: lengths_of(reply.content) for one, reply in good.items() if one not in odd})
        for message_id, fault in odd.items():
            self._observer.left_out(message_id, fault)
        return [
            _refused(reply, odd[reply.metadata.reply_to_message_id])
            if reply.metadata.reply_to_message_id in odd
            else reply
            for reply in replies
        ]


def _reasons(errors: Sequence[Message]) -> str:
    """Why no site did what it was asked for; where they differ, which site says which."""
    reasons = {error.metadata.src_node_id: error.error.reason or "no reason given" for error in errors}
    if len(set(reasons.values())) > 1:
        return "; ".join(f"node {node_id}: {reason}" for node_id, reason in reasons.items())
    return next(iter(reasons.values()), "no site answered")


def _kind(message: Message) -> str:
    return message.metadata.message_type.partition(".")[0]


def _is_train(message: Message) -> bool:
    return _kind(message) == _TRAIN


def _is_evaluate(message: Message) -> bool:
    return _kind(message) == _EVALUATE


def _said_round(record: ConfigRecord) -> int:
    number = record.get("server-round")
    return number if isinstance(number, int) else 0


def size_of_record(record: ArrayRecord) -> int:
    return sum(map(size_of, record.values()))


def _seen(message: Message, node_id: int, number: int) -> MessageSeen:
    message_type = message.metadata.message_type
    if message.has_error():
        return MessageSeen(node_id, message_type, number, error=message.error.reason or f"error {message.error.code}")
    return MessageSeen(
        node_id,
        message_type,
        number,
        arrays=_arrays(message),
        metrics=metrics_of(message.content),
        counts=counts_of(message.content),
        lengths=lengths_of(message.content),
        size=sum(map(size_of_record, message.content.array_records.values())),
    )


def _arrays(message: Message) -> Arrays:
    return {
        name: {
            key: ArraySeen(array.dtype, tuple(array.shape), functools.partial(_read, array), is_halved(array))
            for key, array in record.items()
        }
        for name, record in message.content.array_records.items()
    }


def _read(array: Array) -> Any:
    try:
        return numpy_view(array)
    except (TypeError, EOFError, OverflowError, MemoryError, RecursionError) as error:  # of what a header may say
        raise ValueError(str(error)) from error


def counts_of(content: RecordDict) -> dict[str, list[int]]:
    """All lists of whole numbers of all metric records, such as a confusion table, that an event may hold."""
    return {
        name: [int(one) for one in value]
        for record in content.metric_records.values()
        for name, value in record.items()
        if isinstance(value, list)
        and 0 < len(value) <= MOST_COUNTS
        and all(isinstance(one, int) and 0 <= one <= LARGEST_COUNT for one in value)
    }


def _parts(reply: Message, sent: Arrays) -> frozenset[str]:
    """What a strategy wants to find alike in each reply. Names of arrays are another matter: see `odd_ones_out`."""
    content = reply.content
    arrays = _arrays(reply)
    metrics = [one for record in content.metric_records.values() for one in record.items()]
    return frozenset(
        [f"array record '{name}'" for name in arrays]
        + [f"{arrays[name][key].kind} array '{key}'" for name in sent.keys() & arrays for key in arrays[name]]
        + [f"metric record '{name}'" for name in content.metric_records]
        + [f"{'list' if isinstance(value, list) else 'metric'} '{key}'" for key, value in metrics]
    )


def lengths_of(content: RecordDict) -> dict[str, int]:
    """How long each list of the metric records is."""
    return {
        name: len(value)
        for record in content.metric_records.values()
        for name, value in record.items()
        if isinstance(value, list)
    }


def metrics_of(content: RecordDict) -> dict[str, float]:
    """All single numbers of all metric records."""
    return {
        name: value
        for record in content.metric_records.values()
        for name, value in record.items()
        if not isinstance(value, list)
    }


def _refused(reply: Message, fault: str) -> Message:
    return _error_reply(reply.metadata, ErrorCode.MOD_FAILED_PRECONDITION, fault)


def _reply_metadata(asked: Metadata) -> Metadata:
    """Of an answer to the message, as the node would have given it."""
    return Metadata(
        run_id=asked.run_id,
        message_id="",
        src_node_id=asked.dst_node_id,
        dst_node_id=SUPERLINK_NODE_ID,
        reply_to_message_id=asked.message_id,
        group_id=asked.group_id,
        created_at=asked.created_at,
        ttl=asked.ttl,
        message_type=asked.message_type,
    )


def _error_reply(metadata: Metadata, code: int, reason: str) -> Message:
    """An error in the place of the reply that has this metadata."""
    return make_message(metadata=metadata, error=Error(code, reason))
