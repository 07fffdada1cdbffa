"""Docker's own sentences, as Docker Engine 20.10 wrote them, and what a person reads instead."""

from __future__ import annotations

import pytest
import requests
from docker.errors import APIError

from spawner.engine_refusals import refusal_of


def refused(said: str) -> APIError:
    return APIError("500 Server Error", response=requests.Response(), explanation=said)


@pytest.mark.parametrize(
    ("said", "text", "reason"),
    [
        ('could not select device driver "" with capabilities: [[gpu]]', "Start without a GPU", "no-gpu-runtime"),
        (
            "OCI runtime create failed: nvidia-container-cli: device error: GPU-7: unknown device: unknown",
            "is not there (GPU-7: unknown device",
            "no-such-gpu",
        ),
        (
            'invalid mount config for type "bind": bind source path does not exist: /srv/biopsies',
            "the folder /srv/biopsies of one of its datasets is not there",
            "no-dataset",
        ),
        ("get biopsies: no such volume", "its volume biopsies is not there", "no-dataset"),
        (
            "no suitable node (scheduling constraints not satisfied on 1 node)",
            "no machine of the Swarm can take it now (scheduling constraints not satisfied on 1 node)",
            "no-node",
        ),
        ('configuration network "nf" does not exist', "no isolated network: nf is missing", "no-network"),
        ("This node is not a swarm manager. Use", "is no manager of a Swarm", "no-swarm"),
        ("network federation not found", "network federation is not there; the set-up", "no-network"),
        ("No such image: notebook@sha256:12", "does not have the notebook image", "no-image"),
        ("manifest for notebook:1 not found: manifest unknown", "does not have the notebook image", "no-image"),
        ("write /var/lib/docker/x: no space left on device", "its disk is full", "disk-full"),
        ("driver failed: Bind for 10.0.0.1:80 failed: port is already allocated", "port is taken", "port-taken"),
        ("a new sentence\nof many lines", "it says: a new sentence", "engine"),
        ("", "it says: ", "engine"),
    ],
)
def test_a_sentence_of_docker_becomes_one_for_a_person(said: str, text: str, reason: str) -> None:
    refusal = refusal_of(refused(said))
    assert text in refusal.text
    assert refusal.reason == reason
    assert "\n" not in refusal.text
