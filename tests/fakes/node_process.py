"""One site's node in a process of its own, which a test can kill, stop and start again: what a client kernel is.

    python -m tests.fakes.node_process ADDRESS FOLDER NAME TARGET KEY STATES

Approves what lies in FOLDER/approved, and writes each state as a line "<state> <text>" to the file STATES.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from federator.contract import ClientState, Conditions
from federator.node import Node
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from hub_service.aggregators.superlink import SuperLink
from hub_service.domain.projects import NodeGrant
from tests.fakes.fleet import PROJECT, Fleet

MODULE = "tests.fakes.node_process"


class Site:
    """A site whose node is such a process. Each start has a new key, as a client kernel's has.

    Args:
        within: a command that the node is started by, such as one that enters a network namespace.
        address: of the gateway, as the site sees it.
    """

    def __init__(
        self, it: Fleet, name: str, target: float, *, within: Sequence[str] = (), address: str | None = None
    ) -> None:
        self._it = it
        self.name = name
        self.target = target
        self.node_id = 0
        self._within = within
        self._address = address or it.address
        self.processes: list[asyncio.subprocess.Process] = []
        self.public_key = b""
        self.key = Path()

    async def start(self, *, same_key: bool = False) -> None:
        """Start its client. The service lets the newest key in, and no other."""
        if not same_key:
            private_key = ec.generate_private_key(ec.SECP256R1())
            self.key = self._it.folder / f"{self.name}.{len(self.processes)}.pem"
            self.key.write_bytes(private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
            await self._register(public_key_to_bytes(private_key.public_key()))
        states = self._states(len(self.processes))
        arguments = (self._address, str(self._it.folder), self.name, str(self.target), str(self.key), str(states))
        command = (*self._within, sys.executable, "-m", MODULE, *arguments)
        self.processes.append(await asyncio.create_subprocess_exec(*command, env=dict(os.environ)))

    async def _register(self, key: bytes) -> None:
        self._it.grants.pop(self.public_key, None)
        self.public_key = key
        self._it.grants[key] = NodeGrant(self.name, PROJECT, None)
        superlink = SuperLink(await self._it.backend.start(PROJECT))
        if self.node_id:
            await superlink.give_key(self.node_id, key)
        else:
            self.node_id = await superlink.register_node(key)

    async def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        self.processes[-1].send_signal(number)
        if number is signal.SIGKILL:
            await self.processes[-1].wait()

    def _states(self, client: int) -> Path:
        return self._it.folder / f"{self.name}.{client}.states"

    async def says(self, state: ClientState, text: str = "", within: float = 150.0, client: int = -1) -> str:
        """Wait until the newest line of one of its clients is of this state and has this text; return the line.

        Args:
            client: which one, in the order of their starts.
        """
        path = self._states(range(len(self.processes))[client])
        async with asyncio.timeout(within):
            while True:
                newest = ["", *(path.read_text().splitlines() if path.exists() else ())][-1]
                if newest.startswith(state) and text in newest:
                    return newest
                await asyncio.sleep(0.05)

    async def end(self) -> None:
        for process in self.processes:
            if process.returncode is None:
                process.kill()
                await process.wait()


def approve(it: Fleet, app: bytes) -> None:
    """As the stewards of all such sites."""
    folder = it.folder / "approved"
    folder.mkdir(exist_ok=True)
    (folder / hashlib.sha256(app).hexdigest()).write_bytes(app)


def main(address: str, folder: Path, name: str, target: float, key: Path, states: Path) -> None:
    """Run the node until SIGTERM."""
    told = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told.set())
    private_key = load_pem_private_key(key.read_bytes(), None)
    assert isinstance(private_key, ec.EllipticCurvePrivateKey)

    def on_state(state: ClientState, detail: str) -> None:
        with states.open("a") as file:
            file.write(f"{state} {detail}\n")

    node = Node(
        address,
        tls=False,
        root_certificates=None,
        private_key=private_key,
        approvals=lambda: {path.name: Conditions() for path in (folder / "approved").iterdir()},
        fetch_app=lambda fab_hash: (folder / "approved" / fab_hash).read_bytes(),
        node_config={"target": target, "site": name},
        on_state=on_state,
        work_folder=folder,
    )
    node.start()
    told.wait()
    node.stop(2.0)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], float(sys.argv[4]), Path(sys.argv[5]), Path(sys.argv[6]))
