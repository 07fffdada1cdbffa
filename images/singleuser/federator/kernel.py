"""`python -m federator.kernel -f {connection_file}`: an ordinary IPython kernel whose process also runs a Flower node.

Started by `federator.provisioner` with its assignment in the environment. Cells run as in any Python kernel; `client`
is this server's part in the project. An interrupt stops the cell that runs or, when none does, the message that the
node is working on. A shutdown stops the node first.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Mapping
from typing import Any, TextIO, cast

from cryptography.hazmat.primitives.asymmetric import ec
from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelapp import IPKernelApp
from pydantic import TypeAdapter

from federator import service_client as api
from federator import site_log
from federator.client import REASSIGN, STOP_TIMEOUT, FlowerClient, OnState, RunningNode
from federator.contract import Assignment, Env

CLIENT_NAME = "client"  # in the kernel's namespace


def read_assignment(environ: Mapping[str, str]) -> Assignment:
    """The assignment that the provisioner put into the environment.

    Raises:
        NotSetUp: the kernel was started by hand.
    """
    text = environ.get(Env.ASSIGNMENT)
    if not text:
        raise api.NotSetUp(
            f"A Flower client kernel needs an assignment ({Env.ASSIGNMENT} is not set).",
            "Start it with its launcher tile, in a server that a Hub with the federation service has started.",
        )
    assignment: Assignment = TypeAdapter(Assignment).validate_json(text)
    return assignment


def keep_site_log(project_id: str) -> None:
    """Write what the node does, and what the app prints in the node's threads, to the site's own log.

    A disk that refuses costs the log, and nothing else.
    """
    try:
        handler = site_log.open_log(project_id)
    except OSError as error:
        sys.stderr.write(f"This client keeps no log: {error.strerror}\n")
        return
    ours = logging.getLogger("federator")
    ours.setLevel(logging.INFO)
    ours.addHandler(handler)
    printed = logging.getLogger(site_log.PRINTED)
    sys.stdout = cast(TextIO, site_log.AlsoLogged(sys.stdout, printed.info))
    sys.stderr = cast(TextIO, site_log.AlsoLogged(sys.stderr, printed.info))


class ClientKernel(IPythonKernel):
    """IPython with `client` in its namespace. Its server tells it of a newer assignment on the control channel."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        assignment = read_assignment(os.environ)
        keep_site_log(assignment.project_id)
        service = api.ServiceClient(api.Access.from_env())

        def make_node(private_key: ec.EllipticCurvePrivateKey, on_state: OnState) -> RunningNode:
            # Flower takes a second to import: the kernel answers before that.
            from federator.node import node_for_assignment

            return node_for_assignment(assignment, private_key, service, on_state)

        self.client = FlowerClient(assignment, service, make_node)
        self.control_handlers[REASSIGN] = self._reassign
        # Hidden from `%whos` and not removed by `%reset`, as IPython's own names.
        self.shell.push({CLIENT_NAME: self.client}, interactive=False)  # type: ignore[union-attr]

    @property
    def banner(self) -> str:  # type: ignore[override]  # a property in ipykernel too
        """What a console shows first."""
        a = self.client.assignment
        return (
            f"Flower client of the project '{a.project_name}' at {a.site}, with the dataset '{a.dataset}'.\n"
            f"`{CLIENT_NAME}` shows what it does, `{CLIENT_NAME}.pause()` and `{CLIENT_NAME}.leave()` stop it.\n"
        )

    def start(self) -> None:
        super().start()
        self.client.start()

    def _reassign(self, stream: Any, ident: Any, parent: dict[str, Any]) -> None:
        assignment: Assignment = TypeAdapter(Assignment).validate_python(parent["content"])
        self.client.reassign(assignment)
        reply = f"{REASSIGN}_reply"
        self.session.send(stream, reply, {"status": "ok"}, parent, ident=ident)  # type: ignore[union-attr]

    async def do_shutdown(self, restart: bool) -> dict[str, Any]:
        """Stop the node, then the kernel."""
        self.client.close(STOP_TIMEOUT)
        if self.shell:
            self.shell.exit_now = True
        return {"status": "ok", "restart": restart}


class ClientKernelApp(IPKernelApp):
    """Starts a `ClientKernel`; while no cell runs, SIGINT goes to the node."""

    name = "flower-client-kernel"
    kernel_class = ClientKernel

    def init_signal(self) -> None:
        # ipykernel puts Python's own handler in place while a cell runs, and this one back afterwards.
        signal.signal(signal.SIGINT, self._interrupt_node)

    def close(self) -> None:
        """Called when the process ends: ipykernel forgets the socket whose port it could not have, and waits for it."""
        if self.iopub_socket is not None and self.iopub_thread is None:
            self.iopub_socket.close()
        super().close()

    def _interrupt_node(self, *_: object) -> None:
        if self.kernel is not None:
            self.kernel.client.interrupt()


def main() -> None:
    """Run the kernel until it is shut down; ends with a line for the person where it cannot run."""
    try:
        read_assignment(os.environ)
        api.Access.from_env()
    except api.NotSetUp as missing:
        sys.exit(str(missing))
    ClientKernelApp.launch_instance()


if __name__ == "__main__":
    main()
