"""How the notebook API shows things: text for consoles, HTML for notebooks. Everything from outside is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from federator.contract import (
    ApprovalState,
    Assignment,
    ClientState,
    MemberState,
    Participant,
    ProjectDetail,
    ProjectSummary,
    Round,
    RunDetail,
    RunStatus,
    RunSummary,
    Score,
)

Rows = Sequence[Sequence[object]]

# Colours that read on JupyterLab's light and dark themes; the text beside the dot says the same.
_COLOURS = {
    ClientState.READY: "#2e9e5b",
    ClientState.WORKING: "#1aa6a6",
    ClientState.STARTING: "#d9a21b",
    ClientState.FAILED: "#d64545",
    RunStatus.FINISHED: "#2e9e5b",
    RunStatus.RUNNING: "#1aa6a6",
    RunStatus.STARTING: "#d9a21b",
    RunStatus.WAITING: "#d9a21b",
    RunStatus.FAILED: "#d64545",
}
_QUIET = "#8a8a8a"
PREFERRED_METRICS = ("accuracy", "auc", "f1", "concordance", "loss")


def number(value: float) -> str:
    return f"{value:.4f}"


def text_table(head: Sequence[str], rows: Rows) -> str:
    """Columns aligned with spaces."""
    cells = [[*head], *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in cells)


def html_table(head: Sequence[str], rows: Rows, caption: str = "") -> str:
    """A table in the notebook's own style."""
    title = f"<caption style='text-align:left'>{escape(caption)}</caption>" if caption else ""
    return (
        f"<table>{title}<thead><tr>{_cells('th', head)}</tr></thead><tbody>"
        + "".join(f"<tr>{_cells('td', row)}</tr>" for row in rows)
        + "</tbody></table>"
    )


def _cells(tag: str, row: Iterable[object]) -> str:
    return "".join(f"<{tag} style='text-align:left'>{escape(str(cell))}</{tag}>" for cell in row)


def colour(state: ClientState | RunStatus) -> str:
    return _COLOURS.get(state, _QUIET)


def state_html(state: ClientState | RunStatus, words: str = "") -> str:
    """A coloured dot and the state's name."""
    after = f" &ndash; {escape(words)}" if words else ""
    return f"<span style='color:{colour(state)}'>&#9679;</span> {escape(state.value)}{after}"


PROJECTS_HEAD = ("project", "owner", "my part", "sites", "last run", "id")


def project_row(project: ProjectSummary) -> tuple[str, ...]:
    part = {MemberState.INVITED: "invited: .join()", MemberState.JOINED: project.role}
    return (
        project.name,
        project.owner,
        part.get(project.member_state, project.member_state.value),
        str(project.sites),
        run_words(project.last_run) if project.last_run else "",
        project.id,
    )


PARTICIPANTS_HEAD = ("researcher", "site", "dataset", "approval", "client")


def participant_row(participant: Participant) -> tuple[str, ...]:
    approval = participant.approval.value if participant.approval else ""
    if participant.approval is ApprovalState.REJECTED and participant.approval_reason:
        approval = f"{approval}: {participant.approval_reason}"
    joined = participant.state is MemberState.JOINED
    words = (participant.client.value, participant.detail) if joined else (participant.state.value,)
    client = ": ".join(word for word in words if word)
    return (participant.user, participant.site_title or "", participant.dataset or "", approval, client)


def project_text(project: ProjectDetail) -> str:
    table = text_table(PARTICIPANTS_HEAD, [participant_row(p) for p in project.participants])
    return f"{_project_title(project)}\n{table}"


def project_html(project: ProjectDetail) -> str:
    rows = [participant_row(p) for p in project.participants]
    description = f"<p>{escape(project.description)}</p>" if project.description else ""
    last = f"<p>{escape(run_words(project.runs[0]))}</p>" if project.runs else ""
    return f"<p><b>{escape(_project_title(project))}</b></p>{description}{html_table(PARTICIPANTS_HEAD, rows)}{last}"


def _project_title(project: ProjectDetail) -> str:
    version = f"app version {project.versions[0].number}" if project.versions else "no app version yet"
    return f"{project.name} (owner {project.owner}, {version})"


def run_words(run: RunSummary) -> str:
    """One line: "run 3: running, round 2 of 10"."""
    where = run.phase or (f"round {run.round} of {run.rounds}" if run.round else "")
    words = ", ".join(part for part in (f"run {run.number}: {run.status.value}", where) if part)
    return f"{words}. {run.message}" if run.message else words


def main_metric(metrics: Iterable[str]) -> str | None:
    """The metric to show where there is room for one: a well-known name, else the first that is not a count."""
    names = [name for name in metrics if name != "num-examples"]
    return next((name for name in PREFERRED_METRICS if name in names), names[0] if names else None)


def rounds_table(run: RunDetail) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and rows: for each round the chosen metric of each site and of all sites together."""
    metric = main_metric(name for r in run.rounds for name in (r.evaluate or r.train))
    head = ("round", *run.sites, f"all sites ({metric})" if metric else "all sites")
    return head, [_round_row(r, run.sites, metric) for r in run.rounds]


def _round_row(r: Round, sites: Sequence[str], metric: str | None) -> tuple[str, ...]:
    at = {site.site: site for site in r.sites}
    cells = []
    for name in sites:
        site = at.get(name)
        if site is None:
            cells.append("")
        elif site.error:
            cells.append(f"error: {site.error}")
        else:
            cells.append(_metric_cell(site.evaluate or site.train, metric))
    return (str(r.number), *cells, _metric_cell(r.evaluate or r.train, metric))


def _metric_cell(metrics: dict[str, float], metric: str | None) -> str:
    return number(metrics[metric]) if metric in metrics else ""


def run_text(run: RunDetail) -> str:
    head, rows = rounds_table(run)
    return f"{run_words(run.summary)}\n{text_table(head, rows)}" if rows else run_words(run.summary)


def run_html(run: RunDetail) -> str:
    head, rows = rounds_table(run)
    dot = f"<span style='color:{colour(run.summary.status)}'>&#9679;</span>"
    title = f"<p>{dot} <b>{escape(run_words(run.summary))}</b></p>"
    return title + (html_table(head, rows) if rows else "")


def score_rows(scores: Sequence[Score], metric: str) -> list[dict[str, float | str]]:
    """The result table: one row a model, one column for each site's test data and "all"."""
    rows: dict[str, dict[str, float | str]] = {}
    for score in scores:
        row = rows.setdefault(score.model, {"model": score.model})
        if metric in score.metrics:
            row[score.on_site or "all"] = score.metrics[metric]
    # Each site alone first, the federated model last, as in the paper's table.
    return sorted(rows.values(), key=lambda row: (row["model"] == "federated", row["model"]))


def client_text(assignment: Assignment, state: ClientState, detail: str, run: RunDetail | None) -> str:
    lines = [
        f"Flower client of '{assignment.project_name}' at {assignment.site}, dataset '{assignment.dataset}'",
        f"{state.value}. {detail}".strip(),
        *_last_run_words(run, assignment.site),
    ]
    return "\n".join(lines)


def client_html(assignment: Assignment, state: ClientState, detail: str, run: RunDetail | None) -> str:
    rows = [
        ("Project", escape(assignment.project_name)),
        ("Site", escape(assignment.site)),
        ("Dataset", escape(assignment.dataset)),
        ("State", state_html(state, detail)),
        ("Last run", "<br>".join(escape(line) for line in _last_run_words(run, assignment.site)) or "none yet"),
    ]
    body = "".join(
        f"<tr><th style='text-align:left'>{name}</th><td style='text-align:left'>{cell}</td></tr>"
        for name, cell in rows
    )
    return f"<table>{body}</table>"


def _last_run_words(run: RunDetail | None, site: str) -> list[str]:
    """Where the newest run stands, and this site's metrics of its last round."""
    if run is None:
        return []
    here = [s for r in run.rounds for s in r.sites if s.site == site]
    metrics = {**here[-1].train, **here[-1].evaluate} if here else {}
    shown = ", ".join(f"{name} {number(value)}" for name, value in metrics.items() if name != "num-examples")
    return [run_words(run.summary), *([f"here in its last round: {shown}"] if shown else [])]
