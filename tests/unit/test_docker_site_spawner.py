"""A server at a Docker site: what its engine is asked for, with an engine that is not there.

`tests/system/test_docker_sites.py` asks real ones.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from docker.errors import APIError, ImageNotFound, NotFound

from spawner.container_site_spawner import DockerSiteSpawner
from spawner.deployment import Deployment
from spawner.engines import EngineUnavailable
from spawner.site_spawner import StartRefused
from spawner.sites import DockerSite

IMAGE = "registry.example:5000/notebook@sha256:12"


class RecordingEngine:
    """Remembers what it was asked, and answers from `answers`: a value, or an error to raise; else None."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.asked: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    async def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        self.asked.append((method, args, kwargs))
        answer = self.answers.get(method)
        if isinstance(answer, list):
            answer = answer.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def pull(self, repository: str, tag: str) -> None:
        await self.call("pull", repository, tag)


class Spawner(DockerSiteSpawner):
    """The spawner with that engine, and without a Hub around it."""

    engine: RecordingEngine

    @property
    def _engine(self) -> Any:
        return self.engine


def server_error() -> APIError:
    response = requests.Response()
    response.status_code = 500
    return APIError("500", response=response, explanation="the disk is broken")


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    (tmp_path / "data").mkdir()
    tables = {
        "hub": {"bind_url": "http://192.0.2.1:8000", "data_dir": "state", "admin_contact": "Robin"},
        "sso": {"preset": "cilogon", "client_id": "c", "institutions": {"urn:mace:a": "st-anna"}},
        "aggregators": {"kind": "docker", "image": "aggregator@sha256:12"},
        "sites": {
            "st-anna": {
                "kind": "docker",
                "title": "St. Anna Hospital",
                "contact": "Ingrid",
                "engine": "unix:///var/run/docker.sock",
                "image": IMAGE,
                "hub_url": "https://hub.internal",
                "hub_address": "192.0.2.9",
                "cpus": 1.5,
                "memory": "2GiB",
                "gpu_wait_s": 12.5,
                "datasets": {
                    "biopsies": {"title": "Biopsies", "path": "/srv/biopsies"},
                    "reports": {"title": "Reports", "volume": "reports"},
                },
            }
        },
    }
    return Deployment.model_validate(tables, context={"folder": tmp_path})


def spawner_of(deployment: Deployment, *groups: str, **answers: Any) -> Spawner:
    user = SimpleNamespace(name="amara", groups=[SimpleNamespace(name=group) for group in groups])
    orm_spawner = SimpleNamespace(name="", server=None)
    spawner = Spawner(deployment=deployment, user=user, orm_spawner=orm_spawner)
    spawner.engine = RecordingEngine(**answers)
    return spawner


@pytest.fixture
def site(deployment: Deployment) -> DockerSite:
    site = deployment.sites["st-anna"]
    assert isinstance(site, DockerSite)
    return site


# --- what the engine is asked for


async def test_an_image_that_is_there_is_not_fetched(deployment: Deployment) -> None:
    spawner = spawner_of(deployment, "site-st-anna", inspect_image={})
    await spawner.pull_image(IMAGE)
    assert [method for method, _, _ in spawner.engine.asked] == ["inspect_image"]


@pytest.mark.parametrize(
    ("image", "repository", "tag"),
    [
        (IMAGE, "registry.example:5000/notebook", "sha256:12"),
        ("registry.example:5000/notebook:1.0", "registry.example:5000/notebook", "1.0"),
    ],
)
async def test_an_image_is_fetched_by_digest_or_tag(
    deployment: Deployment, image: str, repository: str, tag: str
) -> None:
    spawner = spawner_of(deployment, "site-st-anna", inspect_image=[ImageNotFound("no"), {}])
    await spawner.pull_image(image)
    assert ("pull", (repository, tag), {}) in spawner.engine.asked


async def test_a_fetch_that_went_wrong_halfway_is_noticed(deployment: Deployment) -> None:
    spawner = spawner_of(deployment, "site-st-anna", inspect_image=[ImageNotFound("no"), ImageNotFound("no")])
    with pytest.raises(ImageNotFound):
        await spawner.pull_image(IMAGE)


def test_data_are_mounted_read_only_and_what_lies_below_is_not_shown(deployment: Deployment, site: DockerSite) -> None:
    folder, volume = spawner_of(deployment, "site-st-anna").dataset_mounts(site)
    assert (folder["Source"], folder["Target"], folder["ReadOnly"]) == ("/srv/biopsies", "/data/biopsies", True)
    assert folder["BindOptions"] == {"Propagation": "rprivate", "NonRecursive": True}
    assert (volume["Source"], volume["Target"], volume["ReadOnly"]) == ("reports", "/data/reports", True)


def test_the_hubs_name_is_the_only_one_that_a_server_knows(deployment: Deployment, site: DockerSite) -> None:
    spawner = spawner_of(deployment, "site-st-anna")
    assert spawner.hub_hosts(site) == {"hub.internal": "192.0.2.9"}
    by_address = site.model_copy(update={"hub_url": "http://192.0.2.9:8000"})
    assert spawner.hub_hosts(by_address) == {}


def test_limits_are_the_sites(deployment: Deployment, site: DockerSite) -> None:
    spawner = spawner_of(deployment, "site-st-anna")
    spawner.settle("st-anna", site)
    assert (spawner.image, spawner.cpu_limit, spawner.mem_limit) == (IMAGE, 1.5, 2 * 1024**3)
    assert (spawner.extra_host_config["memswap_limit"], spawner.extra_host_config["shm_size"]) == (2 << 30, 1 << 30)
    assert spawner.hub_connect_url == "https://hub.internal"
    assert spawner.use_internal_ip  # the engine is on the Hub's machine
    assert spawner.start_timeout == 300 + 13  # the longest wait for a GPU is counted in


async def test_a_volume_that_is_not_there_is_not_made(deployment: Deployment, site: DockerSite) -> None:
    spawner = spawner_of(deployment, "site-st-anna", inspect_volume=NotFound("no such volume"))
    with pytest.raises(NotFound):
        await spawner._check_datasets(site)


# --- options


async def test_a_gpu_where_there_is_none_is_not_given_and_the_page_says_so(
    deployment: Deployment, site: DockerSite
) -> None:
    spawner = spawner_of(deployment, "site-st-anna")
    spawner.user_options = {"gpu": True}  # kept from a start at another site
    spawner._check_options(site)
    assert not spawner._gets_gpu(site)
    assert (await anext(spawner.progress()))["message"].startswith("St. Anna Hospital has no GPUs")


@pytest.mark.parametrize("wish", [{}, {"gpu": False}])
def test_who_wants_no_gpu_is_told_nothing_of_them(
    deployment: Deployment, site: DockerSite, wish: dict[str, bool]
) -> None:
    spawner = spawner_of(deployment, "site-st-anna")
    spawner.user_options = wish
    spawner._check_options(site)
    assert spawner._told == ()


def test_an_option_that_there_is_not_is_refused(deployment: Deployment, site: DockerSite) -> None:
    spawner = spawner_of(deployment, "site-st-anna")
    spawner.user_options = {"image": "mine"}
    with pytest.raises(StartRefused, match="A server has no option image"):
        spawner._check_options(site)


def test_there_is_no_form_where_there_is_nothing_to_choose(deployment: Deployment) -> None:
    assert spawner_of(deployment, "site-st-anna").gpu_choice() == ""
    assert spawner_of(deployment).gpu_choice() == ""  # no site: told when the server is started


# --- what is not there


async def test_who_never_had_a_server_delays_nobody(deployment: Deployment) -> None:
    spawner = spawner_of(deployment, "site-st-anna")
    assert await spawner.poll() == 0
    assert spawner.engine.asked == []


async def test_a_server_of_a_site_that_is_gone_from_the_catalogue_is_let_go(deployment: Deployment) -> None:
    spawner = spawner_of(deployment)
    spawner.load_state({"object_id": "1", "object_name": "federation-amara", "site": "gone"})
    assert await spawner.poll() == 0
    await spawner.stop()
    assert spawner.engine.asked == []
    assert spawner.get_state() == {"site": ""}


@pytest.mark.parametrize("error", [EngineUnavailable("it sleeps"), server_error()])
async def test_an_engine_that_cannot_say_ends_no_server(deployment: Deployment, error: Exception) -> None:
    spawner = spawner_of(deployment, "site-st-anna", inspect_container=error)
    spawner.load_state({"object_id": "1", "object_name": "federation-amara", "site": "st-anna"})
    assert await spawner.poll() is None


async def test_a_container_that_ended_is_removed(deployment: Deployment) -> None:
    state = {"Running": False, "ExitCode": 137, "Error": "", "FinishedAt": "now"}
    spawner = spawner_of(deployment, "site-st-anna", inspect_container={"Id": "1", "State": state})
    spawner.load_state({"object_id": "1", "object_name": "federation-amara", "site": "st-anna"})
    assert "ExitCode=137" in str(await spawner.poll())
    assert ("remove_container", ("1",), {"v": True, "force": True}) in spawner.engine.asked


async def test_one_that_cannot_be_removed_now_is_left_for_later(deployment: Deployment) -> None:
    state = {"Running": False, "ExitCode": 1, "Error": "", "FinishedAt": "now"}
    answers = {"inspect_container": {"Id": "1", "State": state}, "remove_container": EngineUnavailable("it sleeps")}
    spawner = spawner_of(deployment, "site-st-anna", **answers)
    spawner.load_state({"object_id": "1", "object_name": "federation-amara", "site": "st-anna"})
    assert "ExitCode=1" in str(await spawner.poll())


async def test_one_that_somebody_removed_is_no_error(deployment: Deployment) -> None:
    spawner = spawner_of(deployment, "site-st-anna", remove_container=NotFound("gone"))
    spawner.object_id = "1"
    await spawner.remove_object()
