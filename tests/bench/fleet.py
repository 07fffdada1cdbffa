"""Many sites' clients without their notebook servers: each is a process with the client that a kernel runs."""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from multiprocessing.synchronize import Event

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from federator.client import FlowerClient, OnState
from federator.contract import SERVICE_PREFIX, Assignment, Env
from federator.node import Node, node_for_assignment
from federator.service_client import Access, ServiceClient

from hub_service.aggregators.processes import lower_priority
from tests.bench.hub import DATASET, Hub, Project

_STOP_S = 10.0
_NICENESS = 10


async def assignments(hub: Hub, project: Project) -> list[tuple[Assignment, Access]]:
    """What each participant's notebook server would be told to run, and a token of their own for it."""
    url = hub.origin + SERVICE_PREFIX
    found = []
    for one, part in zip(project.people, project.parts, strict=True):
        answer = await one.hub("POST", f"/hub/api/users/{one.username}/tokens", {"expires_in": 3600})
        answer.raise_for_status()
        site = one.username.replace("user", "site")
        assignment = Assignment(part, project.id, "", site, DATASET, "", project.fab_hash)
        found.append((assignment, Access(url, answer.json()["token"])))
    return found


@contextlib.contextmanager
def clients(hub: Hub, parts: Sequence[tuple[Assignment, Access]]) -> Iterator[None]:
    """Run a client for each of these; nothing outlives the block."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    over = context.Event()
    address = httpx.URL(hub.origin).netloc.decode()
    together = context.Process(target=_clients, args=(parts, address, over))
    together.start()
    try:
        yield
    finally:
        over.set()
        together.join(2 * _STOP_S)
        if together.is_alive():
            os.killpg(together.pid or 0, signal.SIGKILL)
            together.join()


def _clients(parts: Sequence[tuple[Assignment, Access]], address: str, over: Event) -> None:
    """All sites' processes. Sites have machines of their own: here they come after the Hub and the service."""
    os.setsid()
    lower_priority(_NICENESS)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_client, args=(*part, address, over)) for part in parts]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


def _client(assignment: Assignment, access: Access, address: str, over: Event) -> None:
    """One site's process."""
    logging.disable(logging.INFO)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())  # Flower tells there of each app that it unpacks
    environ = {str(Env.FLEET_ADDRESS): address, str(Env.FLEET_TLS): "0", str(Env.DATASETS): json.dumps({DATASET: ""})}
    with ServiceClient(access) as service:

        def make_node(private_key: ec.EllipticCurvePrivateKey, on_state: OnState) -> Node:
            return node_for_assignment(assignment, private_key, service, on_state, environ)

        client = FlowerClient(assignment, service, make_node)
        client.start()
        over.wait()
        client.close(1.0)
