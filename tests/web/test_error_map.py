from __future__ import annotations

from http import HTTPStatus

import pytest

from hub_service.domain.errors import Conflict, ErrorCode, Invalid
from hub_service.web.error_map import STATUS, problem_of, problem_of_status


def test_every_code_has_a_status() -> None:
    assert set(STATUS) == set(ErrorCode)
    assert all(status >= HTTPStatus.BAD_REQUEST for status in STATUS.values())
    assert HTTPStatus.INTERNAL_SERVER_ERROR not in STATUS.values()


def test_what_is_for_the_log_stays_out_of_the_answer() -> None:
    problem = problem_of(Conflict("Taken.", "Choose another.", debug="row 17"))
    assert (problem.code, problem.message, problem.next_step) == ("conflict", "Taken.", "Choose another.")


def test_what_is_quoted_can_be_sent() -> None:
    problem = problem_of(Invalid("“\ud800ö” names no package.", "Write “\udfff”."))
    assert (problem.message, problem.next_step) == ("“?ö” names no package.", "Write “?”.")


@pytest.mark.parametrize("status", [400, 403, 404, 405, 418, 500, 502])
def test_a_status_alone_has_a_text_and_a_next_step(status: int) -> None:
    problem = problem_of_status(status)
    assert problem.message
    assert problem.next_step
    assert (problem.code == "internal") == (status in (418, 500, 502))
