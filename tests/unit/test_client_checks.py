"""The client kernel's own checks: approval of an app, and the import of its code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from federator.app_import import NameTaken, forget, import_attribute, import_for_first_use, own_line
from federator.approvals import MAX_AGE_S, ApprovalCheck, NobodyAnswers, NotApproved, RoundCheck
from federator.contract import Conditions
from federator.service_client import NotAllowed, NotFound, Refused, ServiceError, Unreachable, WrongVersion

BEGUN = "2026-11-28T12:00:00+00:00"  # when an aggregator took a run


class Service:
    """Answers what is approved; counts how often it was asked; can be away."""

    def __init__(self) -> None:
        self.approved: set[str] = set()
        self.largest_message: int | None = None
        self.asked = 0
        self.away = False

    def __call__(self) -> dict[str, Conditions]:
        self.asked += 1
        if self.away:
            raise Unreachable("The service does not answer.")
        return {fab_hash: Conditions(largest_message=self.largest_message) for fab_hash in self.approved}


@pytest.fixture
def service() -> Service:
    return Service()


def test_only_what_is_approved_may_run(service: Service) -> None:
    service.approved = {"aa"}
    check = ApprovalCheck(service, lambda: 0.0)
    check.require("aa")
    with pytest.raises(NotApproved, match="data steward has not approved"):
        check.require("bb")


def test_the_stewards_limits_come_with_the_approval(service: Service) -> None:
    service.approved, service.largest_message = {"aa"}, 70_000
    check = ApprovalCheck(service, lambda: 0.0)
    assert check.largest_message("aa") is None
    assert check.require("aa").largest_message == 70_000
    assert check.largest_message("aa") == 70_000
    assert check.largest_message("bb") is None


def test_rounds_beyond_the_stewards_limit_are_refused_at_the_site() -> None:
    rounds, two = RoundCheck(), Conditions(most_rounds=2)
    for run_id in (7, 8):
        for name in ("1", "1", "2"):  # once more where the site trains alone, too
            rounds.require(two, run_id, BEGUN, "train", name)
        rounds.require(two, run_id, BEGUN, "evaluate", "3")
    with pytest.raises(NotApproved, match="2 rounds at most"):
        rounds.require(two, 7, BEGUN, "train.other", "3")
    rounds.require(Conditions(), 9, BEGUN, "train", "1")


def test_an_app_that_names_all_its_rounds_alike_is_counted_by_messages() -> None:
    rounds, one = RoundCheck(), Conditions(most_rounds=1)
    for _ in range(2):
        rounds.require(one, 7, BEGUN, "train", "")
    with pytest.raises(NotApproved, match="1 round at most"):
        rounds.require(one, 7, BEGUN, "train", "")


def test_a_round_that_is_asked_again_after_an_aggregators_loss_counts_once() -> None:
    """Else a run of the three rounds that are allowed, with each site alone, would be refused its last one."""
    rounds, three = RoundCheck(), Conditions(most_rounds=3)
    for name in ("1", "2"):
        rounds.require(three, 7, BEGUN, "train", name)
    for name in ("2", "3", "1", "2", "3"):
        rounds.require(three, 7, "begun anew", "train", name)
    with pytest.raises(NotApproved, match="3 rounds at most"):
        rounds.require(three, 7, "begun anew", "train", "3")


def test_an_aggregator_that_goes_on_with_another_round_takes_nothing_back() -> None:
    rounds, one = RoundCheck(), Conditions(most_rounds=1)
    rounds.require(one, 7, BEGUN, "train", "1")
    with pytest.raises(NotApproved, match="1 round at most"):
        rounds.require(one, 7, "begun anew", "train", "2")


def test_counts_of_old_runs_are_forgotten() -> None:
    rounds, one = RoundCheck(), Conditions(most_rounds=1)
    for run_id in (1, 2, 3, 4, 5, 1):
        rounds.require(one, run_id, BEGUN, "train", str(run_id))


def test_an_answer_is_used_for_a_short_while(service: Service) -> None:
    now = 0.0
    service.approved = {"aa"}
    check = ApprovalCheck(service, lambda: now)
    check.require("aa")
    service.approved = set()
    now = MAX_AGE_S
    check.require("aa")
    assert service.asked == 1
    now = MAX_AGE_S + 0.1
    with pytest.raises(NotApproved):
        check.require("aa")


def test_what_was_approved_a_moment_ago_may_run_at_once(service: Service) -> None:
    check = ApprovalCheck(service, lambda: 0.0)
    with pytest.raises(NotApproved):
        check.require("aa")
    service.approved = {"aa"}
    check.require("aa")


def test_no_answer_is_no_approval_and_is_not_kept(service: Service) -> None:
    now = 0.0
    service.approved = {"aa"}
    check = ApprovalCheck(service, lambda: now)
    check.require("aa")
    now, service.away = MAX_AGE_S + 1, True
    with pytest.raises(NobodyAnswers, match="does not answer"):
        check.require("aa")
    service.away = False
    check.require("aa")


@pytest.mark.parametrize("kind", [NotAllowed, NotFound])
def test_a_service_that_refuses_to_say_is_no_approval_either(kind: type[ServiceError]) -> None:
    def refuse() -> dict[str, Conditions]:
        raise kind("This token has expired.", code="not_allowed")

    with pytest.raises(NotApproved, match="could not ask") as refused:
        ApprovalCheck(refuse, lambda: 0.0).require("aa")
    assert not isinstance(refused.value, NobodyAnswers)


@pytest.mark.parametrize(
    "answer",
    [
        NotAllowed("The Hub sends this server to its login page."),  # while its proxy restarts
        Refused("The service failed.", code="internal"),
        Refused("The service is asked too often.", code="too_often"),
        WrongVersion("The service speaks version 9 of its API."),
    ],
    ids=str,
)
def test_what_is_not_the_services_own_word_is_no_refusal(answer: ServiceError) -> None:
    """An error answer would not be taken back; who asks again may hear another word."""

    def something_else() -> dict[str, Conditions]:
        raise answer

    with pytest.raises(NobodyAnswers, match=str(answer)):
        ApprovalCheck(something_else, lambda: 0.0).require("aa")


MakeApp = Callable[[str, str], Path]


@pytest.fixture
def make_app(tmp_path: Path) -> Iterator[MakeApp]:
    """Writes a package `guestapp` with a module `part` of this text into a new folder."""
    folders = []

    def make(name: str, text: str) -> Path:
        package = tmp_path / name / "guestapp"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "part.py").write_text(text)
        folders.append(tmp_path / name)
        return tmp_path / name

    yield make
    for folder in folders:
        forget(folder)


def test_another_folder_replaces_the_code_that_was_loaded(make_app: MakeApp) -> None:
    first, second = make_app("first", "value = 1"), make_app("second", "value = 2")
    assert import_attribute("guestapp.part:value", first) == 1
    assert import_attribute("guestapp.part:value", second, first) == 2
    assert import_attribute("guestapp.part:value", first) == 1  # not named as the earlier one, and still replaced
    assert str(second) not in sys.path
    forget(first)
    assert "guestapp.part" not in sys.modules
    assert str(first) not in sys.path


def test_a_module_of_this_process_is_never_taken_for_the_app(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("app = 'mine'")
    with pytest.raises(NameTaken, match="json"):
        import_attribute("json:app", tmp_path)
    assert str(tmp_path) not in sys.path


def test_what_a_library_imports_at_its_first_use_is_imported_before(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of libraries that are here, and only of those."""
    late = {"guestapp": "guestapp.part", "guestapp.part": "guestapp.missing", "no_such_library": "no_such_library.late"}
    monkeypatch.setattr("federator.app_import._IMPORTED_AT_FIRST_USE", late)
    import_for_first_use()
    assert "guestapp" not in sys.modules
    import_attribute("guestapp:__name__", make_app("late", ""))
    assert "guestapp.part" not in sys.modules
    import_for_first_use()
    assert "guestapp.part" in sys.modules


def test_the_line_of_an_error_is_the_apps_innermost(make_app: MakeApp) -> None:
    folder = make_app("raises", "import json\n\ndef work():\n    json.loads('{')\n")
    work = import_attribute("guestapp.part:work", folder)
    assert callable(work)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - where it was raised is what counts
        work()
    assert own_line(caught.value, folder) == "guestapp/part.py:4"
    assert own_line(caught.value, folder / "elsewhere") == ""
