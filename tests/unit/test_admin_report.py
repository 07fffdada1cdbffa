"""The report of a site's checks, for a terminal and for programs."""

from __future__ import annotations

import json

from spawner.admin.checks import Outcome, Result
from spawner.admin.report import as_json, has_failed, summary, table

RESULTS = (
    Result("engine", Outcome.OK, "Docker 20.10"),
    Result("room", Outcome.WARNING, "3.0 GiB of disk free", "With Ingrid: free some disk."),
    Result("dataset biopsies", Outcome.FAILED, "the folder /srv/biopsies is not there", "Ask Ingrid where it is."),
    Result("GPU", Outcome.SKIPPED, "none declared"),
)


def test_a_line_for_each_part_and_what_is_next_below_it() -> None:
    assert (
        table("St. Anna Hospital (st-anna)", RESULTS, 100)
        == """\
St. Anna Hospital (st-anna)
  ok       engine            Docker 20.10
  warning  room              3.0 GiB of disk free
                          -> With Ingrid: free some disk.
  FAILED   dataset biopsies  the folder /srv/biopsies is not there
                          -> Ask Ingrid where it is.
  skipped  GPU               none declared
  1 FAILED, 1 warning, 1 ok, 1 skipped"""
    )


def test_a_narrow_terminal_breaks_lines_between_words() -> None:
    result = Result("image", Outcome.FAILED, f"name@sha256:{'0' * 64} is not at the engine", "Ask Ingrid to fetch it.")
    lines = table("St. Anna", [result], 20).splitlines()
    assert lines[1] == f"  FAILED   image  name@sha256:{'0' * 64}"
    assert lines[2] == " " * len("  FAILED   image  ") + "is not at the engine"
    assert lines[3].endswith("-> Ask Ingrid to fetch it.")


def test_a_site_fails_by_what_failed_only() -> None:
    assert has_failed(RESULTS)
    assert not has_failed([result for result in RESULTS if result.outcome is not Outcome.FAILED])


def test_a_summary_of_nothing() -> None:
    assert summary([]) == ""


def test_json_has_everything() -> None:
    told = json.loads(as_json({"st-anna": RESULTS}))
    assert told["st-anna"][1] == {
        "part": "room",
        "outcome": "warning",
        "seen": "3.0 GiB of disk free",
        "next_step": "With Ingrid: free some disk.",
    }
