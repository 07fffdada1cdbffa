"""The client kernels of one notebook server: which must run, which do, and what the service is told of them.

Vocabulary: an *assignment* says what must run; a *client kernel* runs it, under the assignment's kernel id. A client
is *paused* once the person shuts its kernel down, until they click its launcher tile or the server restarts.

`Supervisor.run` is the extension's one long task. The kernel manager asks and tells through the other methods.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from logging import Logger
from typing import Any, Protocol

from federator import service_client as api
from federator.contract import Assignment, Assignments, ClientState
from federator.delay import Delay
from federator.tiles import Tiles, spec_name

POLL_WAIT = 50  # seconds that the service may hold our question for news
OFFLINE_REPORT_TIMEOUT = 2.0  # seconds that a stopping server gives its last report


class CannotStart(Exception):
    """A client kernel was refused or could not be launched; the text is for the person."""


class ClientKernels(Protocol):
    """What `Supervisor` needs of the kernel manager; `federator.kernels` has it."""

    def running_clients(self) -> set[str]:
        """Ids of all client kernels, alive or about to be restarted."""

    async def start_client(self, assignment: Assignment) -> None:
        """Start its kernel, or leave a running one alone.

        Raises:
            CannotStart: with the reason for the person.
        """

    async def tell_client(self, assignment: Assignment) -> bool:
        """Tell its running kernel the newest assignment; whether the kernel has answered."""

    async def stop_client(self, kernel_id: str) -> None:
        """End the kernel within about two seconds; nothing happens when it is gone already."""


class Supervisor:
    """Drives the client kernels towards the service's assignments."""

    def __init__(
        self,
        *,
        service: api.AsyncServiceClient,
        kernels: ClientKernels,
        tiles: Tiles,
        log: Logger,
        spread: Callable[[], float],
        note_activity: Callable[[], None],
    ) -> None:
        """
        Args:
            spread: random numbers from 0 to 1, for waiting times.
            note_activity: called now and then while a client kernel runs, so that the Hub does not cull the server.
        """
        self._service = service
        self._kernels = kernels
        self._tiles = tiles
        self._log = log
        self._spread = spread
        self._note_activity = note_activity
        self._assignments: dict[str, Assignment] = {}  # by kernel id
        self._told: dict[str, Assignment] = {}  # what each client kernel knows, by kernel id
        self._paused: set[str] = set()  # kernel ids
        self._starting: dict[str, asyncio.Task[None]] = {}  # by kernel id
        self._reports: dict[str, tuple[ClientState, str]] = {}  # newest unsent report, by participation
        self._report_waiting = asyncio.Event()
        self._last_trouble = ""
        self.answered = False  # whether the service has told us our assignments yet

    @property
    def assignments(self) -> tuple[Assignment, ...]:
        """What the service wants of this server, as far as it has said."""
        return tuple(self._assignments.values())

    def by_kernel(self, kernel_id: str | None) -> Assignment | None:
        return None if kernel_id is None else self._assignments.get(kernel_id)

    def by_spec(self, name: str) -> Assignment | None:
        found = (a for a in self._assignments.values() if spec_name(a.project_id) == name.lower())
        return next(found, None)

    async def run(self) -> None:
        """Follow the assignments until cancelled; then tell the service that the clients are gone."""
        sender = asyncio.create_task(self._send_reports())
        try:
            await self._follow()
        finally:
            for task in (sender, *self._starting.values()):
                task.cancel()
            await self._report_offline()

    def started(self, kernel_id: str) -> None:
        """The kernel manager has launched a client kernel, with its assignment in the environment."""
        self._paused.discard(kernel_id)
        if kernel_id in self._assignments:
            self._told[kernel_id] = self._assignments[kernel_id]
        self._report(kernel_id, ClientState.STARTING, "The client kernel is starting.")
        self._note_activity()

    def died(self, kernel_id: str, reason: str) -> None:
        """A client kernel ended by itself; the kernel manager's restarter starts it again."""
        self._log.warning("The Flower client kernel %s ended: %s", kernel_id, reason)
        self._report(kernel_id, ClientState.FAILED, reason)

    def not_restarted(self, kernel_id: str, reason: str) -> None:
        """A client kernel that ended was refused its restart; it is not in the kernel manager any more."""
        self.died(kernel_id, reason)
        assignment = self._assignments.get(kernel_id)
        if assignment is not None:
            self._ensure_started(assignment, wait_first=True)

    def paused(self, kernel_id: str) -> None:
        """The person shut the client kernel down."""
        if kernel_id in self._assignments:
            self._paused.add(kernel_id)
            self._report(
                kernel_id, ClientState.PAUSED, "Shut down by its researcher; the launcher tile starts it again."
            )

    async def _follow(self) -> None:
        """Ask for assignments for ever, waiting longer while the service has trouble."""
        version, delay = "", Delay(self._spread)
        while True:
            asked_at = time.monotonic()
            if self._kernels.running_clients():  # while the service is away, too: they may be in the middle of a round
                self._note_activity()
            try:
                answer = await self._service.call(api.get_assignments(version, POLL_WAIT))
            except api.ServiceError as trouble:
                self._log_once(trouble)
                if isinstance(trouble, api.NotAllowed) and trouble.code:
                    await self._reconcile(Assignments("", ()))  # the service's own word: nothing may run here any more
                # A service that has restarted counts anew, and may come to the same number: ask for everything.
                version = ""
                await asyncio.sleep(delay.next())
                continue
            self._log_recovery()
            delay.reset()
            if answer.version == version and time.monotonic() - asked_at < 1:
                await asyncio.sleep(1)  # a proxy that does not hold the question must not turn this into a busy loop
            version = answer.version
            await self._reconcile(answer)

    async def _reconcile(self, answer: Assignments) -> None:
        self._assignments = {assignment.kernel_id: assignment for assignment in answer.assignments}
        self._paused &= set(self._assignments)
        self._told = {k: one for k, one in self._told.items() if k in self._assignments}
        self.answered = True
        try:
            self._tiles.show(answer.assignments)
        except OSError as error:
            self._log.error("The Flower client tiles could not be written: %s. Free some space in your home.", error)
        for kernel_id in set(self._starting) - set(self._assignments):
            self._starting.pop(kernel_id).cancel()
        gone = self._kernels.running_clients() - set(self._assignments)
        await asyncio.gather(*(self._stop(kernel_id) for kernel_id in gone))
        running = self._kernels.running_clients()
        for kernel_id in set(self._assignments) - self._paused - running:
            self._ensure_started(self._assignments[kernel_id])
        await asyncio.gather(*(self._tell(one) for k, one in self._assignments.items() if k in running))

    async def _tell(self, assignment: Assignment) -> None:
        """A kernel that does not answer is told again with the service's next answer."""
        if self._told.get(assignment.kernel_id) != assignment and await self._kernels.tell_client(assignment):
            self._told[assignment.kernel_id] = assignment

    async def _stop(self, kernel_id: str) -> None:
        self._log.info("Ending the Flower client kernel %s: its assignment was withdrawn", kernel_id)
        await self._kernels.stop_client(kernel_id)

    def _ensure_started(self, assignment: Assignment, *, wait_first: bool = False) -> None:
        kernel_id = assignment.kernel_id
        running = self._starting.get(kernel_id)
        if running is None or running.done():
            self._starting[kernel_id] = asyncio.create_task(self._start(assignment, wait_first))

    async def _start(self, assignment: Assignment, wait_first: bool) -> None:
        """Try until the kernel runs. Cancelled when the assignment is withdrawn."""
        delay = Delay(self._spread)
        if wait_first:
            await asyncio.sleep(delay.next())
        while assignment.kernel_id not in self._paused:
            try:
                await self._kernels.start_client(assignment)
            except CannotStart as error:
                self.died(assignment.kernel_id, str(error))
                await asyncio.sleep(delay.next())
            else:
                return

    def _report(self, kernel_id: str, state: ClientState, detail: str) -> None:
        assignment = self._assignments.get(kernel_id)
        if assignment is not None:
            self._reports[assignment.participation_id] = (state, detail)
            self._report_waiting.set()

    async def _send_reports(self) -> None:
        """Send the newest report of each participation, in the order of need; keep it while the service is away."""
        delay = Delay(self._spread)
        while True:
            await self._report_waiting.wait()
            self._report_waiting.clear()
            for participation_id, (state, detail) in list(self._reports.items()):
                try:
                    await self._service.call(api.report_client(participation_id, state, detail))
                except api.Unreachable:
                    await asyncio.sleep(delay.next())
                    self._report_waiting.set()
                    break
                except api.ServiceError as refusal:
                    self._log.warning("The service did not take a report of this client: %s", refusal)
                delay.reset()
                if self._reports.get(participation_id) == (state, detail):
                    del self._reports[participation_id]

    async def _report_offline(self) -> None:
        gone = [self._assignments[k].participation_id for k in self._assignments if k not in self._paused]
        calls: list[Coroutine[Any, Any, None]] = [
            self._service.call(api.report_client(p, ClientState.OFFLINE, "The notebook server was stopped."))
            for p in gone
        ]
        try:
            async with asyncio.timeout(OFFLINE_REPORT_TIMEOUT):
                results = await asyncio.gather(*calls, return_exceptions=True)
        except TimeoutError:
            results = [api.Unreachable("The federation service did not answer in time.")]
        for trouble in results:
            if trouble is not None:
                self._log.warning("The service was not told that this server stops: %s", trouble)

    def _log_once(self, trouble: api.ServiceError) -> None:
        if trouble.message != self._last_trouble:
            self._last_trouble = trouble.message
            self._log.error("%s", trouble)

    def _log_recovery(self) -> None:
        if self._last_trouble:
            self._last_trouble = ""
            self._log.info("The federation service answers again")
