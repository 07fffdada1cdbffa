"""The notebook server's kernel manager, with client kernels among the ordinary ones.

A client kernel has the kernel id of its assignment, whoever starts it and however: the extension, the launcher tile
(which asks for the kernelspec and no id), or a notebook opened again. So there is one node for each participation, and
the tile attaches to the running client. Without the extension's supervisor this is Jupyter's own kernel manager.
"""

from __future__ import annotations

import asyncio
import queue
import random
import time
from collections import defaultdict
from dataclasses import asdict
from typing import Any

from jupyter_client.ioloop.restarter import AsyncIOLoopKernelRestarter
from jupyter_client.kernelspec import NoSuchKernel
from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from traitlets import Float, Instance

from federator.client import REASSIGN
from federator.contract import Assignment
from federator.delay import Delay
from federator.provisioner import StartRefused, refusal
from federator.supervisor import CannotStart, Supervisor
from federator.tiles import is_client_spec, spec_name

CHECK_EVERY = 1.0  # seconds between looks at a client kernel's process
ANSWER_WITHIN = 5.0  # seconds that a client kernel, which may be starting, has to answer a message of ours
STABLE_AFTER = 30.0  # seconds of life after which an end counts as the first again


class FederatorKernelManager(AsyncMappingKernelManager):
    """One client kernel for each assignment, kept alive until it is shut down or withdrawn."""

    supervisor = Instance(Supervisor, allow_none=True, help="Set by federator.extension once the server has started.")

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._client_locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def start_kernel(  # type: ignore[override]  # jupyter_server made these asynchronous
        self, *, kernel_id: str | None = None, kernel_name: str | None = None, **kwargs: Any
    ) -> str:
        """Start a kernel for Jupyter's REST API; see the base class.

        Raises:
            StartRefused: a client kernel must not start; the text is for the person.
        """
        assignment = self._assignment(kernel_id, kernel_name)
        if assignment is not None:
            return await self._start_client(assignment, **kwargs)
        started: str = await super().start_kernel(kernel_id=kernel_id, kernel_name=kernel_name, **kwargs)
        return started

    async def shutdown_kernel(  # type: ignore[override]
        self, kernel_id: str, now: bool = False, restart: bool = False
    ) -> None:
        """Shut a kernel down because a person asked for it; for a client kernel this is a pause."""
        await super().shutdown_kernel(kernel_id, now=now, restart=restart)
        if self.supervisor is not None and not restart:
            self.supervisor.paused(kernel_id)

    async def cull_kernel_if_idle(self, kernel_id: str) -> None:
        """Cull ordinary kernels only: a client kernel that waits for work is in use."""
        if kernel_id not in self.running_clients():
            await super().cull_kernel_if_idle(kernel_id)

    def pre_start_kernel(self, kernel_name: str | None, kwargs: Any) -> tuple[Any, str, str]:
        """Give client kernels their own restarter."""
        manager, name, kernel_id = super().pre_start_kernel(kernel_name, kwargs)
        if is_client_spec(name):
            manager.restarter_class = ClientRestarter  # type: ignore[attr-defined]  # a trait of its subclass
        return manager, name, kernel_id

    def running_clients(self) -> set[str]:
        return {k for k in self.list_kernel_ids() if is_client_spec(self.get_kernel(k).kernel_name)}

    async def start_client(self, assignment: Assignment) -> None:
        """For `Supervisor`: start an assignment's kernel unless it runs.

        Raises:
            CannotStart: the provisioner refused it, or the process could not be launched.
        """
        try:
            await self._start_client(assignment)
        except StartRefused as error:
            raise CannotStart(str(error)) from error
        except NoSuchKernel as error:
            raise CannotStart("The client's launcher tile could not be written: free some space.") from error
        except OSError as error:
            raise CannotStart(f"The client kernel could not be launched: {error}.") from error

    async def stop_client(self, kernel_id: str) -> None:
        """For `Supervisor`: end a kernel whose assignment was withdrawn."""
        async with self._client_locks[kernel_id]:
            if kernel_id in self:
                await self._async_shutdown_kernel(kernel_id)

    async def tell_client(self, assignment: Assignment) -> bool:
        """For `Supervisor`: tell a running kernel its newest assignment; whether it has answered.

        A cell that runs in the kernel does not keep it from answering.
        """
        if assignment.kernel_id not in self:
            return False
        client = self.get_kernel(assignment.kernel_id).client()
        client.start_channels(shell=False, iopub=False, stdin=False, hb=False, control=True)
        try:
            client.control_channel.send(client.session.msg(REASSIGN, asdict(assignment)))
            await client.control_channel.get_msg(timeout=ANSWER_WITHIN)
        except queue.Empty:
            return False
        finally:
            client.stop_channels()
        return True

    async def _start_client(self, assignment: Assignment, **launch: Any) -> str:
        kernel_id = assignment.kernel_id
        # The tile and the extension may ask at the same time.
        async with self._client_locks[kernel_id]:
            if kernel_id in self:
                return kernel_id
            try:
                await super().start_kernel(kernel_id=kernel_id, kernel_name=spec_name(assignment.project_id), **launch)
            finally:
                if kernel_id not in self:
                    # Jupyter keeps the failed attempt here, and then cannot shut the server's kernels down.
                    self._pending_kernels.pop(kernel_id, None)
            if self.supervisor is not None:
                self.supervisor.started(kernel_id)
        return kernel_id

    def _assignment(self, kernel_id: str | None, kernel_name: str | None) -> Assignment | None:
        """The assignment that a start is about; None for an ordinary kernel.

        Raises:
            StartRefused: a client kernelspec without an assignment.
        """
        known = self.supervisor.by_kernel(kernel_id) if self.supervisor is not None else None
        if known is not None or kernel_name is None or not is_client_spec(kernel_name):
            return known
        if self.supervisor is None or not self.supervisor.answered:
            raise refusal(
                503,
                "The federation service has not answered this server yet.",
                "Try again in a minute; if it stays so, tell the Hub's administrators.",
            )
        assignment = self.supervisor.by_spec(kernel_name)
        if assignment is None:
            raise refusal(
                403,
                "This server is not asked to run this Flower client.",
                "Join the project, or ask its owner whether you were removed from it.",
            )
        return assignment


class ClientRestarter(AsyncIOLoopKernelRestarter):
    """Restarts a client kernel under its id for as long as it is assigned, waiting longer after each failure.

    Jupyter's own restarter gives up after five quick attempts, and tells nobody why a kernel died.
    """

    time_to_dead = Float(CHECK_EVERY, config=True, help="Seconds between looks at the process.")

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._delay = Delay(random.random)
        self._restart_at: float | None = None  # by time.monotonic()
        self._alive_since = time.monotonic()

    async def poll(self) -> None:  # type: ignore[override]
        """Look at the process; called every `CHECK_EVERY` seconds."""
        manager = self.kernel_manager
        if manager.shutting_down or manager.kernel_id not in manager.parent:
            return
        now = time.monotonic()
        if await manager.is_alive():
            if now - self._alive_since > STABLE_AFTER:
                self._delay.reset()
        elif self._restart_at is None:
            self._restart_at = now + self._delay.next()
            manager.parent.supervisor.died(manager.kernel_id, manager.provisioner.why_it_ended())
        elif now >= self._restart_at:
            self._restart_at = None
            self._alive_since = now
            await self._restart()

    async def _restart(self) -> None:
        manager = self.kernel_manager
        # Those who have the kernel open are told by these callbacks that it restarts.
        self._fire_callbacks("restart")
        try:
            await manager.restart_kernel(now=True)
        except (StartRefused, OSError) as error:
            self._fire_callbacks("dead")
            manager.parent.remove_kernel(manager.kernel_id)
            manager.parent.supervisor.not_restarted(manager.kernel_id, str(error))
        else:
            manager.parent.supervisor.started(manager.kernel_id)
