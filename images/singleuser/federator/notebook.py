"""What a researcher calls in any notebook of their own server: `import federator`.

    federator.projects()                                     my projects and invitations
    p = federator.publish("train.ipynb", name="Histopathology")
    p.invite("maria")
    p = federator.project("Histopathology"); p.join(dataset="slides")
    run = p.run(rounds=10).watch()
    run.table(); run.model("global.safetensors")

Objects show what they knew when they were last asked; `refresh()` asks again. What cannot be done is raised as a
`federator.ServiceError`, which a notebook shows as two lines: what happened, what to do next.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import Any, TypeVar

from IPython.display import HTML, display

from federator import display as render
from federator import service_client as api
from federator import site_log, watching
from federator.contract import Home, OutagePolicy, ProjectDetail, ProjectSummary, RunDetail, RunStatus
from federator.delay import Delay
from federator.results import RunResults, compare_runs

REFRESH = 1.0  # seconds between looks at a run that is waited for
T = TypeVar("T")

PATIENCE = 120.0  # seconds that the service may be away before the waiting is given up


class RunFailed(api.ServiceError):
    """A run that was waited for did not finish; the message says why."""


@cache
def _service() -> api.ServiceClient:
    return api.ServiceClient(api.Access.from_env())


def projects() -> ProjectList:
    """My projects, and those I am invited to."""
    home = _service().call(api.get_home())
    return ProjectList(Project(summary) for summary in _all_projects(home))


def project(name_or_id: str) -> Project:
    """One of my projects, or one that I am invited to.

    Raises:
        NotFound: there is none of that name or id.
        Refused: several have that name.
    """
    home = _service().call(api.get_home())
    everything = _all_projects(home)
    found = [p for p in everything if p.id == name_or_id] or [p for p in everything if p.name == name_or_id]
    if not found:
        raise api.NotFound(
            f"You have no project '{name_or_id}', and no invitation to one.",
            "federator.projects() lists what you have; ask the project's owner to invite you.",
        )
    if len(found) > 1:
        ids = ", ".join(f"{p.id} (owner {p.owner})" for p in found)
        raise api.Refused(f"You have {len(found)} projects named '{name_or_id}'.", f"Use the id: {ids}.")
    return Project(found[0])


def compare(runs: Sequence[Run], metric: str = "") -> Any:
    """Mean and standard deviation over runs that differ by their seeds: a pandas DataFrame.

    Raises:
        Refused: fewer than two, or they differ by more than their seeds.
    """
    return compare_runs([run.detail for run in runs], metric)


def load_model(run: Run | str, which: str | int = "last") -> Any:
    """A run's model, or that of the run with this id, as `Run.load_model`."""
    return (Run(run) if isinstance(run, str) else run).load_model(which)


def _all_projects(home: Home) -> list[ProjectSummary]:
    """Projects and invitations, each once."""
    return list({p.id: p for p in (*home.invitations, *home.projects)}.values())


class Project:
    """A federated project that I am in, or invited to."""

    def __init__(self, summary: ProjectSummary) -> None:
        self.summary = summary
        self._detail: ProjectDetail | None = None

    @property
    def id(self) -> str:
        return self.summary.id

    @property
    def name(self) -> str:
        return self.summary.name

    @property
    def detail(self) -> ProjectDetail:
        """Participants, app versions and runs."""
        if self._detail is None:
            self._detail = _service().call(api.get_project(self.id))
        return self._detail

    def refresh(self) -> Project:
        """Ask the service again."""
        self._detail = None
        return self

    def join(self, dataset: str = "") -> Project:
        """Take part with one of my site's datasets; accepts the invitation.

        Args:
            dataset: its name; needed where the site offers more than one.

        Raises:
            ServiceError: unknown dataset, not invited, or the dataset takes part already.
        """
        _service().call(api.join(self.id, dataset or _only_dataset()))
        return self.refresh()

    def leave(self) -> Project:
        """End my site's part; the client kernel is stopped at once."""
        _service().call(api.leave(self.id))
        return self.refresh()

    def decline(self) -> None:
        """Say no to the invitation."""
        _service().call(api.decline(self.id))

    def invite(self, user: str) -> Project:
        """Invite a user of the Hub. Owner only."""
        _service().call(api.invite(self.id, user))
        return self.refresh()

    def remove(self, user: str) -> Project:
        """Take a member out; their client kernel is stopped at once. Owner only."""
        _service().call(api.remove_member(self.id, user))
        return self.refresh()

    def on_outage(self, course: str, grace_s: float = 120.0) -> Project:
        """Say what runs do, from the next one on, when a site falls silent; for the project's owner.

        Args:
            course: "wait" until it is back, "continue" without it, or "stop".
            grace_s: for how long it is waited for before that, in seconds.

        Raises:
            ValueError: no such course.
        """
        self._detail = _service().call(api.set_outage(self.id, OutagePolicy(course), grace_s))
        return self

    def run(self, rounds: int = 10, compare: bool = True, seed: int | None = None) -> Run:
        """Start a run of the newest app version. Owner only.

        Args:
            compare: also train each site alone, for `Run.table()`.
            seed: in place of the app's own `seed`.
        """
        summary = _service().call(api.start_run(self.id, rounds, compare, seed))
        self.refresh()
        return Run(summary.id)

    def compare(self, metric: str = "") -> Any:
        """Mean and standard deviation of the finished runs of the newest app version, over their seeds: a DataFrame.

        Of runs with the same seed the newest counts; of other numbers of rounds than the newest run's, none.

        Raises:
            Refused: there are not two such runs.
        """
        newest: dict[int | None, RunDetail] = {}
        for run in self.refresh().runs:
            detail = run.detail
            first = next(iter(newest.values()), detail)
            same = (detail.fab_hash, detail.summary.rounds) == (first.fab_hash, first.summary.rounds)
            if same and detail.scores and detail.summary.status is RunStatus.FINISHED:
                newest.setdefault(detail.seed, detail)
        return compare_runs(list(newest.values()), metric)

    @property
    def runs(self) -> list[Run]:
        """Newest first."""
        return [Run(summary.id) for summary in self.detail.runs]

    def __repr__(self) -> str:
        return render.project_text(self.detail)

    def _repr_html_(self) -> str:
        return render.project_html(self.detail)


class ProjectList(list[Project]):
    """A list that shows itself as a table."""

    def __repr__(self) -> str:
        return render.text_table(render.PROJECTS_HEAD, self._rows()) if self else "No projects and no invitations yet."

    def _repr_html_(self) -> str:
        if not self:
            return "<p>No projects and no invitations yet. <code>federator.publish(...)</code> makes one.</p>"
        return render.html_table(render.PROJECTS_HEAD, self._rows())

    def _rows(self) -> list[tuple[str, ...]]:
        return [render.project_row(p.summary) for p in self]


class Run(RunResults):
    """One execution of a project's app. `RunResults` has what came out of it."""

    def __init__(self, run_id: str) -> None:
        self.id = run_id
        self._detail: RunDetail | None = None

    @property
    def detail(self) -> RunDetail:
        """Rounds, scores and the model, as last asked for."""
        return self._detail or self._ask()

    def refresh(self) -> Run:
        """Ask the service again."""
        self._ask()
        return self

    @property
    def status(self) -> RunStatus:
        return self._ask().summary.status

    def wait(self, progress: bool = True) -> Run:
        """Wait until the run is over. Interrupting the cell stops the waiting, not the run.

        Args:
            progress: show the rounds as they go.

        Raises:
            RunFailed: it failed or was stopped.
            Unreachable: the service was away for `PATIENCE` seconds.
        """
        view = _ProgressView() if progress else None
        while True:
            detail = self._ask_patiently()
            if view is not None:
                view.show(detail)
            if detail.summary.status.is_final:
                break
            time.sleep(REFRESH)
        if detail.summary.status is not RunStatus.FINISHED:
            raise RunFailed(f"Run {detail.summary.number} {detail.summary.status.value}.", detail.summary.message)
        return self

    def watch(self, metric: str = "") -> Run:
        """Show the run live until it ends: state, what each site does, time left, the curve, the logs.

        Interrupting the cell stops the watching, not the run.

        Args:
            metric: of the curve: the name of one of the app's metrics, or "train/..." for one of training; the
                accuracy, or what comes next to it, by default.

        Raises:
            Unreachable: the service was away for `PATIENCE` seconds.
        """
        screen = watching.screen(watching.ServerLog(_service(), self.id), self._site_lines)
        try:
            for now in watching.seen(_service(), self.id, metric, PATIENCE):
                self._detail = now.run
                screen.show(now)
        except KeyboardInterrupt:
            screen.stopped()
        return self

    def log(self, lines: int = 100) -> Lines:
        """The last lines that the project's own code printed on the aggregator."""
        return Lines(watching.ServerLog(_service(), self.id).lines(lines))

    def site_log(self, lines: int = 100) -> Lines:
        """The last lines of this server's own Flower client in the project. They stay at this site.

        Raises:
            Refused: no client of the project has run in this server.
        """
        found = self._site_lines(lines)
        if found is None:
            raise api.Refused(
                "This server has no log of a Flower client of this project.",
                "It has one once a client of the project has run here; other sites' logs stay there.",
            )
        return Lines(found)

    def _site_lines(self, lines: int) -> list[str] | None:
        return site_log.tail(self.detail.project_id, lines)

    def stop(self) -> Run:
        """Stop the run; the last round's model is kept."""
        _service().call(api.stop_run(self.id))
        return self.refresh()

    def table(self, metric: str = "") -> Table:
        """Each site alone and the federated model, on each site's test data and on all of it.

        Args:
            metric: one of the app's metrics; by default the accuracy, or what comes next to it.

        Raises:
            Refused: the run has no such comparison, or no such metric.
        """
        detail = self.detail
        if not detail.scores:
            raise api.Refused(
                f"Run {detail.summary.number} has no comparison.",
                "It is made at the end of a run that was started with compare=True.",
            )
        metrics = {name for score in detail.scores for name in score.metrics}
        chosen = metric or render.main_metric(sorted(metrics)) or ""
        if chosen not in metrics:
            raise api.Refused(f"The app reports no metric '{chosen}'.", f"It reports {', '.join(sorted(metrics))}.")
        return Table(chosen, render.score_rows(detail.scores, chosen))

    def __repr__(self) -> str:
        return render.run_text(self.detail)

    def _repr_html_(self) -> str:
        return render.run_html(self.detail)

    def _ask_patiently(self) -> RunDetail:
        """Sit out a restart of the service: the run goes on meanwhile."""
        delay, deadline = Delay(random.random), time.monotonic() + PATIENCE
        while True:
            try:
                return self._ask()
            except api.Unreachable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(delay.next())

    def _call(self, request: api.Request[T]) -> T:
        return _service().call(request)

    def _ask(self) -> RunDetail:
        self._detail = _service().call(api.get_run(self.id))
        return self._detail


class Table(list[dict[str, float | str]]):
    """Rows of a result: a plain list of dictionaries that shows itself as a table."""

    def __init__(self, metric: str, rows: list[dict[str, float | str]]) -> None:
        super().__init__(rows)
        self.metric = metric

    @property
    def columns(self) -> list[str]:
        names = {name for row in self for name in row} - {"model", "all"}
        return ["model", *sorted(names), "all"]

    def to_pandas(self) -> Any:
        """A pandas DataFrame with the models as its index.

        Raises:
            Refused: pandas is not installed.
        """
        try:
            pandas = import_module("pandas")
        except ImportError as error:
            raise api.Refused("pandas is not installed in this server.", "Use the list itself.") from error
        return pandas.DataFrame(list(self), columns=self.columns).set_index("model")

    def __repr__(self) -> str:
        return f"{self.metric}\n{render.text_table(self.columns, self._cells())}"

    def _repr_html_(self) -> str:
        return render.html_table(self.columns, self._cells(), caption=self.metric)

    def _cells(self) -> list[list[str]]:
        return [[_cell(row.get(column, "")) for column in self.columns] for row in self]


def _cell(value: float | str) -> str:
    return value if isinstance(value, str) else render.number(value)


class Lines(list[str]):
    """Lines of a log: a plain list that shows itself as text."""

    def __repr__(self) -> str:
        return "\n".join(self)


class _ProgressView:
    """One output of the cell, brought up to date in place."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._shown = ""

    def show(self, detail: RunDetail) -> None:
        html = render.run_html(detail)
        if html == self._shown:
            return
        self._shown = html
        output = _Both(html, render.run_text(detail))
        if self._handle is None:
            self._handle = display(output, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._handle.update(output)


class _Both(HTML):
    """HTML with a plain text for consoles."""

    def __init__(self, html: str, text: str) -> None:
        super().__init__(html)  # type: ignore[no-untyped-call]
        self._text = text

    def __repr__(self) -> str:
        return self._text


def _only_dataset() -> str:
    """The one dataset of my site.

    Raises:
        Refused: it has none, or several.
    """
    site = _service().call(api.get_my_site())
    names = [dataset.name for dataset in site.datasets]
    if len(names) != 1:
        raise api.Refused(
            f"{site.title} offers {len(names)} datasets.",
            f"Name one: .join(dataset=...). There is {', '.join(names)}." if names else f"Ask {site.contact}.",
        )
    return names[0]
