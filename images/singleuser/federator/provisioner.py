"""Launches a client kernel, after the last checks at the site.

Chosen by the client kernelspecs (`federator.tiles`). A kernel starts only for an assignment that the service gives this
person's server now, on a dataset that this site offers, with an app version that the site's steward approved.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jupyter_client.connect import KernelConnectionInfo, LocalPortCache, port_names
from jupyter_client.provisioning.local_provisioner import LocalProvisioner
from jupyter_core.paths import jupyter_runtime_dir
from tornado.web import HTTPError

from federator import allocator
from federator import service_client as api
from federator.contract import Assignment, Env
from federator.cpu import THREADS_VARIABLE, usable_cores
from federator.ports import free_port

SHUTDOWN_TIME = 2.0  # seconds from a polite request to the end; a withdrawn assignment ends at once
PORT_TAKEN = "Address already in use"  # ZeroMQ's words for it, a kernel's last
ERROR_TAIL = 4096  # bytes of the kernel's error output read to find its last line


class StartRefused(HTTPError):
    """A client kernel must not start; the text is for the person who asked for it.

    Jupyter's kernels API answers with the status, the text as `message` and in the reason phrase. Its sessions API,
    which a launcher tile calls, answers 500 to every start that fails, with `str()` of the exception as `message`.
    """

    def __str__(self) -> str:
        return self.get_message() or ""


def refusal(status: int, message: str, next_step: str = "") -> StartRefused:
    """Make a `StartRefused` whose reason phrase HTTP allows."""
    text = f"{message} {next_step}".strip()
    # tornado replaces a reason phrase that HTTP does not allow by "Unknown".
    reason = "".join(c if c.isascii() and c.isprintable() and c != "<" else "?" for c in text)
    return StartRefused(status, text, reason=reason)


class FederatorProvisioner(LocalProvisioner):
    """A local process whose environment carries its assignment and whose error output is kept for the report."""

    def __init__(self, **kwargs: Any) -> None:
        unknown = sorted(set(kwargs) - {"kernel_id", "kernel_spec", "parent"})
        if unknown:
            raise refusal(
                409,
                f"The kernel's kernel.json sets what the Flower client does not know: {', '.join(unknown)}.",
                "Delete that kernelspec's folder; the right one is written again within a minute.",
            )
        super().__init__(**kwargs)

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Check, and add the assignment, the number of threads and the ways of memory to the kernel's environment.

        Raises:
            StartRefused: 403, 409 or 503.
        """
        assignment = await self._find_assignment()
        check_site(assignment, os.environ)
        await self._check_approved(assignment)
        if PORT_TAKEN in self._last_error_line():
            self._forget_ports()
        self._choose_ports()
        launch: dict[str, Any] = await super().pre_launch(**kwargs)
        launch["env"][Env.ASSIGNMENT.value] = json.dumps(asdict(assignment))
        # The site's word, or the person's, goes first.
        launch["env"].setdefault(THREADS_VARIABLE, str(usable_cores(launch["env"])))
        launch["env"] |= allocator.settings(launch["env"])
        return launch

    def _choose_ports(self) -> None:
        """As Jupyter, but none that the system gives: it may be a connection's when the kernel comes to bind it."""
        manager: Any = self.parent
        if not manager.cache_ports or self.ports_cached:
            return
        cache = LocalPortCache.instance()
        for name in port_names:
            while (port := free_port()) in cache.currently_used_ports:
                pass
            cache.currently_used_ports.add(port)
            setattr(manager, name, port)
        self.ports_cached = True

    def _forget_ports(self) -> None:
        """Let the next attempt have other ports: those that were free when they were chosen are another program's now.

        Jupyter keeps a kernel's ports over all its restarts: its `newports` changes none that it took from its cache.
        """
        manager: Any = self.parent
        cache = LocalPortCache.instance()
        for name in port_names:
            cache.return_port(getattr(manager, name))
        manager.cleanup_connection_file()
        self.ports_cached = False

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        # Readable by the person alone, and from the start of this attempt only.
        descriptor = os.open(self._error_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            return await super().launch_kernel(cmd, **kwargs, stderr=descriptor)
        finally:
            os.close(descriptor)

    async def send_signal(self, signum: int) -> None:
        """An interrupt is for the kernel alone, every other signal for its process group: a training's worker processes
        go on while their researcher interrupts a cell."""
        if signum != signal.SIGINT:
            await super().send_signal(signum)
        elif self.process:
            self.process.send_signal(signum)

    async def cleanup(self, restart: bool = False) -> None:
        await super().cleanup(restart=restart)
        if not restart:
            self._error_file.unlink(missing_ok=True)

    def get_shutdown_wait_time(self, recommended: float = 5.0) -> float:
        return SHUTDOWN_TIME

    def why_it_ended(self) -> str:
        """For the person: how the process ended, with its last line of error output where there is one."""
        code = self.process.poll() if self.process else None
        how = _how_it_ended(code)
        last = self._last_error_line()
        return f"{how} Its last words: {last}" if last else how

    @property
    def _error_file(self) -> Path:
        return Path(jupyter_runtime_dir()) / f"flower-client-{self.kernel_id}.log"

    def _last_error_line(self) -> str:
        try:
            with self._error_file.open("rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(0, file.tell() - ERROR_TAIL))
                tail = file.read()
        except OSError:
            return ""
        lines = tail.decode("utf-8", "replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    async def _find_assignment(self) -> Assignment:
        """From the server extension where this kernel belongs to a notebook server, else from the service."""
        supervisor = getattr(getattr(self.parent, "parent", None), "supervisor", None)
        if supervisor is not None:
            assignment: Assignment | None = supervisor.by_kernel(self.kernel_id)
        else:
            answer = await _ask(api.get_assignments("", wait=0))
            assignment = next((a for a in answer.assignments if a.kernel_id == self.kernel_id), None)
        if assignment is None:
            raise refusal(
                403,
                "This server is not asked to run this Flower client.",
                "Join the project, or ask its owner whether you were removed from it.",
            )
        return assignment

    async def _check_approved(self, assignment: Assignment) -> None:
        approvals = await _ask(api.get_site_approvals(assignment.participation_id))
        if assignment.fab_hash not in approvals.fab_hashes:
            raise refusal(
                403,
                f"The app of '{assignment.project_name}' is not approved for the dataset '{assignment.dataset}'.",
                "Ask a data steward of your site to approve it.",
            )


def check_site(assignment: Assignment, environ: Mapping[str, str]) -> None:
    """Hold an assignment against what this server's spawner said of the site.

    Raises:
        StartRefused: 403 for another site's assignment, 409 for a dataset that the site does not offer.
    """
    site = environ.get(Env.SITE, "")
    if assignment.site != site:
        raise refusal(
            403,
            f"This server runs at the site '{site}', the assignment is for '{assignment.site}'.",
            "Tell the Hub's administrators.",
        )
    if assignment.dataset not in offered_datasets(environ):
        raise refusal(
            409,
            f"This server has no dataset '{assignment.dataset}'.",
            "Restart your server; if the dataset is still missing, ask a data steward of your site.",
        )


def offered_datasets(environ: Mapping[str, str]) -> Mapping[str, str]:
    """Dataset names and folders, as the spawner set them; none where the variable cannot be read."""
    try:
        datasets = json.loads(environ.get(Env.DATASETS, "{}"))
    except ValueError:
        return {}
    return datasets if isinstance(datasets, dict) else {}


async def _ask(request: api.Request[api.T]) -> api.T:
    """Ask the service, with its refusals as HTTP errors for the person."""
    try:
        async with api.AsyncServiceClient(api.Access.from_env()) as service:
            return await service.call(request)
    except api.Unreachable as trouble:
        raise refusal(503, trouble.message, trouble.next_step) from trouble
    except api.ServiceError as trouble:
        raise refusal(403, trouble.message, trouble.next_step) from trouble


def _how_it_ended(code: int | None) -> str:
    if code == -9:
        return "The client kernel was killed (signal 9): the server may have run out of memory."
    if code is not None and code < 0:
        return f"The client kernel was ended by signal {-code}."
    return "The client kernel ended by itself." if code is None else f"The client kernel ended with status {code}."
