"""What the name `client` means in a client kernel: this server's part in one project, seen and steered by its person.

`FlowerClient` registers a fresh key with the service, runs the node that signs with it, and reports what happens. All
of that is in threads of its own: the kernel answers cells at once, whatever the network does.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from federator import display
from federator import service_client as api
from federator.contract import Assignment, ClientState, RunDetail
from federator.delay import Delay

REASSIGN = "reassign_client"  # control message to a client kernel; its content is the newest Assignment
STOP_TIMEOUT = 1.0  # seconds that a stopping kernel gives its node
# Seconds before a client whose key was refused registers another one. Two kernels that serve one participation would
# take it from each other: ever more seldom.
_FIRST_REJOIN, _LONGEST_REJOIN = 5.0, 600.0
SHOW_TIMEOUT = 5.0  # seconds that showing the client waits for what the service knows of the last run

_CONNECTED = frozenset({ClientState.READY, ClientState.WORKING})

OnState = Callable[[ClientState, str], None]


class RunningNode(Protocol):
    """What `FlowerClient` needs of `federator.node.Node`."""

    @property
    def refused(self) -> bool: ...

    def prepare(self, fab_hash: str) -> None: ...

    def start(self) -> None: ...

    def stop(self, timeout: float) -> None: ...

    def interrupt(self) -> None: ...


MakeNode = Callable[[ec.EllipticCurvePrivateKey, OnState], RunningNode]


@dataclass(frozen=True, slots=True)
class Status:
    """What the client is doing now, in words for its person."""

    state: ClientState
    detail: str


class FlowerClient:
    """This server's client in one project.

    `client` alone in a cell shows it; `client.pause()` and `client.resume()` stop and start its part in the project's
    runs, `client.leave()` ends it for good.
    """

    def __init__(self, assignment: Assignment, service: api.ServiceClient, make_node: MakeNode) -> None:
        """
        Args:
            make_node: makes the node for a private key; called once for each start.
        """
        self.assignment = assignment
        self._service = service
        self._make_node = make_node
        self._node: RunningNode | None = None
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._status = Status(ClientState.STARTING, "The client kernel is starting.")
        self._closed = threading.Event()
        self._reports: queue.SimpleQueue[Status] = queue.SimpleQueue()
        self._log = logging.getLogger("federator.client")
        self._reporting = threading.Thread(target=self._send_reports, name="federator-reports", daemon=True)
        self._joining = threading.Thread()
        self._rejoin_delay = Delay(random.random, _FIRST_REJOIN, _LONGEST_REJOIN)
        self._reporting.start()

    @property
    def state(self) -> ClientState:
        return self._status.state

    @property
    def detail(self) -> str:
        return self._status.detail

    def start(self) -> None:
        """Join the project's aggregator; returns at once, the state tells how it goes."""
        self._rejoin_delay.reset()
        with self._lock:
            self._stopping.set()  # for who waits to join again
            self._stopping = threading.Event()
            self._begin(self._join, self._stopping)

    def _begin(self, work: Callable[[threading.Event], None], stopping: threading.Event) -> None:
        self._joining = threading.Thread(target=work, args=(stopping,), name="federator-join", daemon=True)
        self._joining.start()

    def reassign(self, assignment: Assignment) -> None:
        """Take the newest assignment; the node loads its app version, or is started again. Called by
        `federator.kernel`."""
        with self._lock:
            self.assignment = assignment
            if self._node is not None:
                self._node.prepare(assignment.fab_hash)
        if self._is_refused():
            self.start()

    def pause(self) -> None:
        """Take no part in runs until `resume()`. A message being worked on is given up."""
        self.stop(STOP_TIMEOUT)
        self._set(ClientState.PAUSED, "Paused by its researcher in the client kernel.")

    def resume(self) -> None:
        """Take part again after `pause()`, or after the service did not accept this client."""
        if self._stopping.is_set() or self._is_refused():
            self._set(ClientState.STARTING, "Resumed by its researcher.")
            self.start()

    def _is_refused(self) -> bool:
        node = self._node
        return node is not None and node.refused

    def leave(self) -> None:
        """End this site's part in the project. This kernel is shut down with it.

        Raises:
            ServiceError: the service did not take it.
        """
        self._service.call(api.leave(self.assignment.project_id))
        self.stop(STOP_TIMEOUT)

    def interrupt(self) -> None:
        """Give up the message being worked on; the aggregator is told, and the next message is taken as usual."""
        with self._lock:
            if self._node is not None:
                self._node.interrupt()

    def stop(self, timeout: float) -> None:
        """Stop the node within `timeout` seconds."""
        self._stopping.set()
        with self._lock:
            node, self._node = self._node, None
        if node is not None:
            node.stop(timeout)

    def close(self, timeout: float) -> None:
        """Stop, and report nothing more, within `timeout` seconds: the kernel ends."""
        deadline = time.monotonic() + timeout
        self._closed.set()
        self._reports.put(self._status)  # wakes the thread that waits for one
        self.stop(timeout)
        for thread in (self._joining, self._reporting):
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))

    def __repr__(self) -> str:
        return display.client_text(self.assignment, self.state, self.detail, self._last_run())

    def _repr_html_(self) -> str:
        return display.client_html(self.assignment, self.state, self.detail, self._last_run())

    def _last_run(self) -> RunDetail | None:
        """The project's newest run, where there is one and the service answers soon."""
        try:
            runs = self._service.call(replace(api.get_project(self.assignment.project_id), timeout=SHOW_TIMEOUT)).runs
            return self._service.call(replace(api.get_run(runs[0].id), timeout=SHOW_TIMEOUT)) if runs else None
        except api.ServiceError:
            return None

    def _join(self, stopping: threading.Event) -> None:
        """Register a new key, then run the node with it."""
        # Flower takes any NIST curve. Each request is signed and checked twice: six times faster than with P-384.
        private_key = ec.generate_private_key(ec.SECP256R1())
        public_key = private_key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        delay = Delay(random.random)
        while not stopping.is_set():
            try:
                self._service.call(api.register_node(self.assignment.participation_id, public_key))
            except api.Unreachable as trouble:
                self._status = Status(ClientState.STARTING, str(trouble))
                stopping.wait(delay.next())
            except api.ServiceError as refusal:
                self._set(ClientState.FAILED, str(refusal))
                return
            else:
                self._run_node(private_key, stopping)
                return

    def _join_again(self, stopping: threading.Event) -> None:
        """As `_join`, once the service wants this client again: its right may come back."""
        while not stopping.wait(self._rejoin_delay.next()):
            with contextlib.suppress(api.ServiceError):  # it is asked again
                if self._is_assigned():
                    self._join(stopping)
                    return

    def _is_assigned(self) -> bool:
        mine = self.assignment
        wanted = self._service.call(api.get_assignments("", wait=0)).assignments
        return any((one.participation_id, one.kernel_id) == (mine.participation_id, mine.kernel_id) for one in wanted)

    def _run_node(self, private_key: ec.EllipticCurvePrivateKey, stopping: threading.Event) -> None:
        def on_state(state: ClientState, detail: str) -> None:
            # That a stopping node is gone is told by whoever stopped it, with the reason.
            if stopping.is_set():
                return
            self._set(state, detail)
            if node.refused:
                with self._lock:
                    if not stopping.is_set():
                        self._begin(self._join_again, stopping)

        try:
            node = self._make_node(private_key, on_state)
        except ImportError as error:
            self._set(
                ClientState.FAILED, f"{error.name or 'Flower'} is not installed in this server: ask the site to add it."
            )
            return
        with self._lock:
            if stopping.is_set():
                return
            self._node = node
            node.prepare(self.assignment.fab_hash)
            node.start()

    def _set(self, state: ClientState, detail: str) -> None:
        self._status = Status(state, detail)
        self._reports.put(self._status)

    def _send_reports(self) -> None:
        """Send the newest report, again and again until the service has it; older ones are skipped.

        A node changes between ready and working with each message. The gateway sees that by itself, so the service is
        told of neither where it was last told of one of the two.
        """
        delay = Delay(random.random)
        told = ClientState.OFFLINE
        while True:
            status = self._reports.get()
            while not self._reports.empty():
                status = self._reports.get()
            if self._closed.is_set():
                return
            if {status.state, told} <= _CONNECTED:
                continue
            try:
                self._service.call(api.report_client(self.assignment.participation_id, status.state, status.detail))
            except api.Unreachable:
                self._closed.wait(delay.next())
                # Behind what was reported meanwhile, which makes it stale.
                if self._reports.empty():
                    self._reports.put(status)
            except api.ServiceError as refusal:
                self._log.warning("The service did not take a report of this client: %s", refusal)
            else:
                told = status.state
                delay.reset()
