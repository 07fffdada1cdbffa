"""What an engine's refusal means for the person whose server it was. Pure.

Docker says what it could not do in its own words, which name its parts and not the hospital's. Each entry knows one of
its sentences; what no entry knows is told as it is, to be passed on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from docker.errors import APIError


@dataclass(frozen=True, slots=True)
class Refusal:
    """What happened, for the person, and a short word for the Hub's metrics."""

    text: str
    reason: str


_KNOWN: Sequence[tuple[re.Pattern[str], str, str]] = (
    (
        re.compile(r"could not select device driver .*gpu", re.I),
        "its machine cannot give GPUs to containers: the NVIDIA container runtime is not installed there. "
        "Start without a GPU, or ask for it",
        "no-gpu-runtime",
    ),
    (
        re.compile(
            r"nvidia-container-cli: (device error: )?(?P<what>[^\n\"]*(unknown device|not found)[^\n\"]*)", re.I
        ),
        "a GPU that the Hub's administrator declared for it is not there ({what})",
        "no-such-gpu",
    ),
    (
        re.compile(r"bind source path does not exist: (?P<what>\S+)", re.I),
        "the folder {what} of one of its datasets is not there",
        "no-dataset",
    ),
    (re.compile(r"get (?P<what>\S+): no such volume", re.I), "its volume {what} is not there", "no-dataset"),
    (
        re.compile(r"no suitable node(?P<what> \([^)]*\))?", re.I),
        "no machine of the Swarm can take it now{what}",
        "no-node",
    ),
    (
        re.compile(r'configuration network "(?P<what>[^"]+)" does not exist', re.I),
        "its machine has no isolated network: {what} is missing there",
        "no-network",
    ),
    (
        re.compile(r"not a swarm manager", re.I),
        "the engine that the Hub was told of is no manager of a Swarm",
        "no-swarm",
    ),
    (
        re.compile(r"network (?P<what>\S+) not found", re.I),
        "its isolated network {what} is not there; the set-up of the site makes it",
        "no-network",
    ),
    (
        re.compile(
            r"no such image: (?P<what>\S+)"
            r"|(?P<what2>(manifest|repository)\b[^\n]*(unknown|not found|denied|exist)[^\n]*)",
            re.I,
        ),
        "it does not have the notebook image, and could not fetch it ({what}{what2})",
        "no-image",
    ),
    (re.compile(r"no space left on device", re.I), "its disk is full", "disk-full"),
    (re.compile(r"port is already allocated|address already in use", re.I), "the port is taken there", "port-taken"),
)


def refusal_of(error: APIError) -> Refusal:
    """Say in the site's terms why its engine refused. The text has no full stop and begins in lower case."""
    said = str(error.explanation or error)
    for pattern, text, reason in _KNOWN:
        match = pattern.search(said)
        if match:
            parts = {name: value or "" for name, value in match.groupdict().items()}
            return Refusal(text.format(**{"what": "", "what2": "", **parts}), reason)
    return Refusal(f"it says: {said.strip().splitlines()[0] if said.strip() else 'nothing'}", "engine")
