"""The service's API as seen by its clients: what goes out, what comes back, and every way that it can go wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import httpx
import pytest
from federator import service_client as api
from federator.contract import Assignment, ClientState, MemberState, RunStatus
from federator.delay import LONGEST, Delay

from tests.fakes.service import SITE, TOKEN, DownService, FakeService, LockedService, NewerService

ASSIGNMENT = Assignment("part1", "proj1", "Histo", "north", "slides", "0f0c4a52-6b5d-4c55-9f43-111111111111", "ab" * 32)


@pytest.fixture
def service() -> Iterator[FakeService]:
    with FakeService().running() as fake:
        yield fake


@pytest.fixture
def client(service: FakeService) -> Iterator[api.ServiceClient]:
    with api.ServiceClient(api.Access(service.url, TOKEN)) as opened:
        yield opened


def test_answers_become_the_contracts_types(service: FakeService, client: api.ServiceClient) -> None:
    service.assign(ASSIGNMENT)
    summary = client.call(api.create_project("Histo", "about"))
    assert client.call(api.get_assignments("", 0)).assignments == (ASSIGNMENT,)
    assert client.call(api.get_my_site()) == SITE
    assert client.call(api.get_home()).projects == (summary,)
    assert client.call(api.invite(summary.id, "maria")).state is MemberState.INVITED
    assert client.call(api.add_app(summary.id, "train.ipynb", b"{}")).size == 2
    run = client.call(api.start_run(summary.id, 1, compare=True))
    service.finish_round(run.id)
    detail = client.call(api.get_run(run.id))
    assert detail.summary.status is RunStatus.FINISHED
    assert detail.rounds[0].sites[0].evaluate["accuracy"] == pytest.approx(0.51)
    assert client.call(api.get_project(summary.id)).runs == (detail.summary,)
    assert client.call(api.get_model(run.id)) == b"model"
    assert client.call(api.get_record(run.id)) == {"fab_hash": "cd" * 32}
    assert client.call(api.get_approvals()) == ()
    assert client.call(api.remove_member(summary.id, "maria")) is None
    assert client.call(api.report_client("part1", ClientState.READY, "waits")) is None
    assert service.reports == [("part1", ClientState.READY, "waits")]
    assert client.call(api.register_node("part1", b"-----KEY-----\n")).fab_hashes == ("ab" * 32,)
    assert service.public_keys == {"part1": ["-----KEY-----\n"]}
    assert client.call(api.get_site_approvals("part1")).fab_hashes == ("ab" * 32,)


def test_names_with_a_slash_stay_one_part_of_the_path(service: FakeService, client: api.ServiceClient) -> None:
    summary = client.call(api.create_project("Histo", ""))
    client.call(api.invite(summary.id, "a/b@c"))
    client.call(api.remove_member(summary.id, "a/b@c"))
    assert service.participants[summary.id] == {}


async def test_the_asynchronous_client_hears_of_a_change(service: FakeService) -> None:
    async with api.AsyncServiceClient(api.Access(service.url, TOKEN)) as client:
        first = await client.call(api.get_assignments("", 0))
        service.assign(ASSIGNMENT)
        second = await client.call(api.get_assignments(first.version, 25))
        assert second.assignments == (ASSIGNMENT,)
        with pytest.raises(api.NotFound, match="no such participation"):
            await client.call(api.get_site_approvals("other"))


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, api.NotAllowed),
        (403, api.NotAllowed),
        (404, api.NotFound),
        (409, api.Refused),
        (413, api.Refused),
        (422, api.Refused),
        (503, api.Unreachable),
    ],
)
def test_a_problem_is_told_in_the_services_words(status: int, kind: type[api.ServiceError]) -> None:
    problem = {"code": "some-code", "message": "It did not work.", "next_step": "Do this."}
    with pytest.raises(kind) as caught:
        api._answer(api.get_home(), httpx.Response(status, json=problem))
    assert type(caught.value) is kind
    assert (caught.value.message, caught.value.next_step) == ("It did not work.", "Do this.")
    assert caught.value.code == "some-code"
    assert str(caught.value) == "It did not work. Do this."
    assert caught.value._render_traceback_() == ["It did not work.", "Do this."]


@pytest.mark.parametrize(
    ("bad", "kind", "words"),
    [
        (DownService, api.Unreachable, "status 503"),
        (LockedService, api.NotAllowed, "does not accept this server's token"),
        (NewerService, api.WrongVersion, "version 2"),
    ],
)
def test_what_stands_between_is_told_apart(bad: type[FakeService], kind: type[api.ServiceError], words: str) -> None:
    with bad().running() as service, api.ServiceClient(api.Access(service.url, TOKEN)) as client:  # noqa: SIM117
        with pytest.raises(kind, match=words):
            client.call(api.get_home())


def test_a_wrong_token_is_refused_and_never_shown(service: FakeService) -> None:
    access = api.Access(service.url, "wrong-secret")
    with api.ServiceClient(access) as client, pytest.raises(api.NotAllowed) as caught:
        client.call(api.get_home())
    assert "wrong-secret" not in str(caught.value) + repr(access)


async def test_nobody_there(service: FakeService) -> None:
    nowhere = api.Access("http://127.0.0.1:1/services/federation/", TOKEN)
    with api.ServiceClient(nowhere) as client, pytest.raises(api.Unreachable, match="ConnectError"):
        client.call(api.get_home())
    async with api.AsyncServiceClient(nowhere) as asynchronous:
        with pytest.raises(api.Unreachable, match="ConnectError"):
            await asynchronous.call(api.get_home())


def test_a_slow_service_is_given_up_on(service: FakeService, client: api.ServiceClient) -> None:
    version = client.call(api.get_assignments("", 0)).version
    with pytest.raises(api.Unreachable, match="ReadTimeout"):
        client.call(replace(api.get_assignments(version, 25), timeout=0.2))


def test_a_login_page_is_no_answer() -> None:
    redirect = httpx.Response(302, headers={"location": "/hub/login"})
    with pytest.raises(api.NotAllowed):
        api._answer(api.get_home(), redirect)
    page = httpx.Response(200, html="<html>", request=httpx.Request("GET", "https://hub.example/api/home?x=1"))
    with pytest.raises(api.Unreachable, match=r"https://hub\.example/api/home\."):
        api._answer(api.get_home(), page)


def test_an_answer_of_another_shape_is_named() -> None:
    odd = httpx.Response(200, json={"user": 3}, headers={api.VERSION_HEADER: "1"})
    with pytest.raises(api.WrongVersion, match="GET api/home"):
        api._answer(api.get_home(), odd)


def test_a_newer_field_is_left_aside() -> None:
    answer = {"participation_id": "p", "fab_hashes": ["aa"], "new_in_next_version": 1}
    read = api._answer(api.get_site_approvals("p"), httpx.Response(200, json=answer, headers={api.VERSION_HEADER: "1"}))
    assert read.fab_hashes == ("aa",)


def test_access_names_what_is_missing() -> None:
    with pytest.raises(api.NotSetUp, match="FEDERATOR_SERVICE_URL and JUPYTERHUB_API_TOKEN not set"):
        api.Access.from_env({})
    with pytest.raises(api.NotSetUp, match=r"\(JUPYTERHUB_API_TOKEN not set"):
        api.Access.from_env({"FEDERATOR_SERVICE_URL": "https://hub.example/services/federation"})
    access = api.Access.from_env(
        {"FEDERATOR_SERVICE_URL": "https://hub.example/services/federation", "JUPYTERHUB_API_TOKEN": "t"}
    )
    assert access.url == "https://hub.example/services/federation/"


def test_delays_double_up_to_the_longest_and_are_spread() -> None:
    longest = Delay(lambda: 1.0)
    waits = [longest.next() for _ in range(8)]
    assert waits[:4] == [0.5, 1.0, 2.0, 4.0]
    assert waits[-1] == LONGEST
    longest.reset()
    assert longest.next() == 0.5
    assert Delay(lambda: 0.0).next() == 0.25
