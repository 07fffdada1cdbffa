"""The images, in containers as restricted as people's and projects' are: what is inside, and each one's first step."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from docker import DockerClient
from docker.errors import ContainerError
from docker.models.containers import Container

from tests.fakes.engines import BuildEngine

pytestmark = pytest.mark.needs_docker

IMAGES = ("singleuser", "aggregator", "hub")
TMP = "/tmp"  # noqa: S108 - in the containers
STATE = "/var/lib/notebook-federator"
RESTRICTED: dict[str, Any] = {
    "read_only": True,
    "tmpfs": {TMP: ""},
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
    "pids_limit": 256,
    "network_mode": "none",
    "init": True,
}

# Starts a kernel as a notebook server does: it writes to the home folder, to Jupyter's folders and to caches.
START_KERNEL = """
from jupyter_client.manager import start_new_kernel
manager, client = start_new_kernel()
client.execute_interactive("import federator, pathlib; pathlib.Path.home().joinpath('kept').touch(); print('done')")
client.stop_channels()
manager.shutdown_kernel(now=True)
"""

# Starts a SuperLink as the service does, and ends once it answers.
START_SUPERLINK = """
import subprocess, sys, time, urllib.error, urllib.request
superlink = subprocess.Popen([
    sys.executable, "-m", "hub_service.aggregators.superlink_process", "--insecure", "--host", "127.0.0.1",
    "--port", "9000", "--isolation", "process", "--node-ids", "/tmp/node-ids.json",
    "--disable-runtime-dependency-installation",
])
while superlink.poll() is None:
    try:
        print("status", urllib.request.urlopen("http://127.0.0.1:9000/health").status)
        break
    except urllib.error.URLError:
        time.sleep(0.1)
superlink.terminate()
"""

DEPLOYMENT = """
[hub]
bind_url = "http://127.0.0.1:8000"
data_dir = "/var/lib/notebook-federator"
admin_contact = "Robin Hale"
[sso]
preset = "keycloak"
issuer = "https://login.federation.example/realms/research"
client_id = "notebook-federator"
[sso.institutions]
"st-anna" = "st-anna"
[sites.st-anna]
kind = "embedded"
title = "St. Anna Hospital"
contact = "Ingrid Solberg"
work_dir = "/var/lib/notebook-federator/st-anna"
"""


@pytest.fixture(scope="module")
def image_engine(build_engine: BuildEngine) -> Iterator[DockerClient]:
    client = build_engine.client()
    yield client
    client.close()


def run(engine: DockerClient, image: str, *command: str, **more: Any) -> str:
    """What a command prints in a restricted container of the image, errors included.

    Raises:
        ContainerError: the command failed.
    """
    options = RESTRICTED | more
    tag = f"notebook-federator/{image}:test"
    output: bytes = engine.containers.run(tag, command, remove=True, stderr=True, **options)
    return output.decode()


def files(engine: DockerClient, image: str, *conditions: str) -> list[str]:
    """Files of the image for which `find` holds these conditions to be true."""
    # The hub's state folder is its user's alone: root with all capabilities looks.
    found = run(engine, image, "find", "/", "-xdev", *conditions, user="0", cap_drop=[])
    return found.split()


@pytest.mark.parametrize("image", IMAGES)
def test_it_runs_as_a_user_without_rights(image_engine: DockerClient, image: str) -> None:
    assert image_engine.images.get(f"notebook-federator/{image}:test").attrs["Config"]["User"] == "1000"
    assert run(image_engine, image, "id", "-u").strip() == "1000"
    assert files(image_engine, image, "-type", "f", "-perm", "/6000") == []


@pytest.mark.parametrize("image", IMAGES)
def test_the_root_is_read_only_and_tmp_is_not(image_engine: DockerClient, image: str) -> None:
    with pytest.raises(ContainerError, match="Read-only file system"):
        run(image_engine, image, "touch", "/new", user="0")
    run(image_engine, image, "touch", f"{TMP}/new")


@pytest.mark.parametrize("image", IMAGES)
def test_nothing_is_left_of_the_build(image_engine: DockerClient, image: str) -> None:
    folders = ("*/.cache", "*/.npm", "/var/cache/pip", f"{TMP}/*", "/mnt/*", "/run/secrets", "/source")
    conditions = " -o ".join(f"-path {folder}" for folder in folders).split()
    assert files(image_engine, image, *conditions) == []


@pytest.mark.parametrize("image", IMAGES)
def test_nothing_of_the_repository_but_its_code_is_inside(image_engine: DockerClient, image: str) -> None:
    names = (".git", ".venv", ".node", "test_architecture.py", "deployment.toml", "Dockerfile")
    conditions = " -o ".join(f"-name {name}" for name in names).split()
    assert files(image_engine, image, *conditions) == []


@pytest.mark.parametrize("image", IMAGES)
def test_environment_and_history_hold_no_secret(image_engine: DockerClient, image: str) -> None:
    built = image_engine.images.get(f"notebook-federator/{image}:test")
    said = json.dumps([built.attrs["Config"]["Env"], [layer["CreatedBy"] for layer in built.history()]])
    assert not any(word in said.upper() for word in ("TOKEN", "PASSWORD", "CLIENT_SECRET", "INDEX_URL"))


def test_a_notebook_server_is_there(image_engine: DockerClient) -> None:
    assert run(image_engine, "singleuser", "jupyterhub-singleuser", "--version").startswith("6.")
    run(image_engine, "singleuser", "python", "-c", "import federator.extension, federator.kernel, jupyterlab")


def test_jupyterlab_has_the_extension_with_its_files(image_engine: DockerClient) -> None:
    listed = run(image_engine, "singleuser", "jupyter", "labextension", "list")
    assert re.search(r"notebook-federator v\S+ .*enabled.*OK", listed), listed
    folder = "/opt/venv/share/jupyter/labextensions/notebook-federator"
    entry = json.loads(run(image_engine, "singleuser", "cat", f"{folder}/package.json"))["jupyterlab"]["_build"]["load"]
    assert run(image_engine, "singleuser", "test", "-s", f"{folder}/{entry}") == ""


@pytest.mark.parametrize("image", ["singleuser", "aggregator"])
def test_a_notebooks_modules_are_there_on_both_ends(image_engine: DockerClient, image: str) -> None:
    """The ServerApp imports what the notebook imports."""
    run(image_engine, image, "python", "-c", "import pandas, sklearn.linear_model, torch, xgboost")


def test_a_kernel_starts_where_the_home_volume_is_empty(image_engine: DockerClient) -> None:
    home = image_engine.volumes.create()
    try:
        volumes = {home.name: {"bind": "/home/jovyan", "mode": "rw"}}
        printed = run(image_engine, "singleuser", "python", "-c", START_KERNEL, volumes=volumes)
        assert printed.splitlines()[-1] == "done"
    finally:
        home.remove()


def test_no_gpu_is_there_unless_it_is_asked_for(image_engine: DockerClient) -> None:
    """CUDA images say `all`, which an engine whose default runtime is NVIDIA's obeys."""
    environment = image_engine.images.get("notebook-federator/singleuser:test").attrs["Config"]["Env"]
    assert "NVIDIA_VISIBLE_DEVICES=void" in environment


@pytest.mark.parametrize("user", ["1000", "4711:4711"])
def test_a_superlink_answers(image_engine: DockerClient, user: str) -> None:
    """Also as another user: the service's own, whose folder is mounted."""
    assert "status 200" in run(image_engine, "aggregator", "python", "-c", START_SUPERLINK, user=user)


def test_a_serverapp_is_there_and_can_build_models(image_engine: DockerClient) -> None:
    assert "--run-folder" in run(
        image_engine, "aggregator", "python", "-m", "hub_service.aggregators.serverapp", "--help"
    )
    run(image_engine, "aggregator", "python", "-c", "import torch; torch.nn.Linear(2, 1)(torch.ones(1, 2))")


def test_an_aggregator_has_neither_hub_nor_jupyter_nor_docker(image_engine: DockerClient) -> None:
    installed = run(image_engine, "aggregator", "pip", "list", "--format", "freeze")
    names = {line.partition("==")[0].lower() for line in installed.splitlines()}
    assert "flwr" in names
    assert not names & {
        "jupyterhub",
        "jupyter-server",
        "jupyter_server",
        "jupyterlab",
        "ipykernel",
        "docker",
        "aiohttp",
    }


def test_the_hub_and_its_proxy_are_there(image_engine: DockerClient) -> None:
    assert run(image_engine, "hub", "jupyterhub", "--version").startswith("6.")
    assert run(image_engine, "hub", "configurable-http-proxy", "--version").startswith("5.")


def test_the_hub_says_what_it_lacks(image_engine: DockerClient) -> None:
    with pytest.raises(ContainerError, match="NOTEBOOK_FEDERATOR_SSO_CLIENT_SECRET is not set"):
        run(image_engine, "hub", "jupyterhub", "-f", "/opt/notebook-federator/jupyterhub_config.py")


def test_the_hub_starts_and_is_healthy(image_engine: DockerClient, tmp_path: Path) -> None:
    deployment = tmp_path / "deployment.toml"
    deployment.write_text(DEPLOYMENT)
    container: Container = image_engine.containers.run(
        "notebook-federator/hub:test",
        detach=True,
        environment={"NOTEBOOK_FEDERATOR_SSO_CLIENT_SECRET": "for tests"},
        volumes={str(deployment): {"bind": "/etc/notebook-federator/deployment.toml", "mode": "ro"}},
        healthcheck={"Interval": 10**9},
        **RESTRICTED | {"tmpfs": {TMP: "", STATE: "uid=1000,mode=700"}},
    )
    try:
        wanted = {"container": container.id, "event": ["health_status", "die"]}
        event = next(image_engine.events(decode=True, filters=wanted, since=0))
        assert event["status"] == "health_status: healthy", container.logs().decode()
    finally:
        container.remove(force=True)
