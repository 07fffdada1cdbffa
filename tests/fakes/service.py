"""The federation service as notebook servers see it: its API over real HTTP, with a few lines of state behind it.

`FakeService` runs a tornado server in a thread of its own, so kernels, notebook servers and synchronous clients can all
talk to it. A test changes what it holds with `assign`, `withdraw`, `approve`, ... and waits with `wait_for` for what
clients do.

    FakeService             keeps to `federator.contract`
    ├── DownService         answers 503 without a Problem, as the Hub's proxy does while the service restarts
    ├── LockedService       answers 403 without a Problem, as for a token without the scope
    └── NewerService        speaks the next API version
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any, NoReturn

from federator.contract import (
    API_VERSION,
    FLEET_PREFIX,
    FLEET_WAITING_HEADER,
    SERVICE_PREFIX,
    AppPreview,
    AppVersion,
    Assignment,
    Assignments,
    ClientState,
    Dataset,
    Home,
    MemberState,
    ModelFile,
    Participant,
    Problem,
    ProjectDetail,
    ProjectSummary,
    Round,
    RunDetail,
    RunStatus,
    RunSummary,
    Score,
    Site,
    SiteApprovals,
    SiteRound,
)
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application, RequestHandler

TOKEN = "token-of-the-server"
SITE = Site("north", "North Hospital", "embedded", False, "it@north.example", (Dataset("slides"),))
NOW = "2026-11-23T12:00:00+00:00"


class Refusal(Exception):
    def __init__(self, status: int, message: str, next_step: str = "") -> None:
        self.status = status
        self.problem = Problem("refused", message, next_step)


class FakeService:
    """Holds one user's view: assignments, approvals, projects and runs. Thread-safe."""

    api_version: str = str(API_VERSION)
    status: int | None = None  # answer everything with this status and no Problem

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.revision = 0
        self.assignments: dict[str, Assignment] = {}
        self.approved: dict[str, set[str]] = {}
        self.reports: list[tuple[str, ClientState, str]] = []
        self.public_keys: dict[str, list[str]] = {}
        self.packages: dict[str, str] = {}  # version by name, as a notebook server reported last
        self.modules: list[str] = []
        self.apps: dict[str, bytes] = {}  # by hash
        self.projects: dict[str, ProjectSummary] = {}
        self.participants: dict[str, dict[str, Participant]] = {}
        self.versions: dict[str, list[AppVersion]] = {}
        self.uploads: list[tuple[str, str, bytes]] = []
        self.runs: dict[str, tuple[str, RunDetail]] = {}
        self.refused_names: set[str] = set()
        self.requests = 0
        self.asked: list[str] = []  # the path of each request, without the prefix
        self.site = SITE
        self.url = ""

    # -- what a test does --------------------------------------------------------------------------------------------

    def assign(self, assignment: Assignment, approved: bool = True) -> None:
        with self.changed:
            self.assignments[assignment.participation_id] = assignment
            self.approved[assignment.participation_id] = {assignment.fab_hash} if approved else set()
            self._revise()

    def withdraw(self, participation_id: str) -> None:
        with self.changed:
            del self.assignments[participation_id]
            self._revise()

    def approve(self, participation_id: str) -> None:
        with self.changed:
            self.approved[participation_id].add(self.assignments[participation_id].fab_hash)
            self.changed.notify_all()

    def revoke(self, participation_id: str) -> None:
        with self.changed:
            self.approved[participation_id].clear()
            self.changed.notify_all()

    def answer_all_with(self, status: int | None) -> None:
        with self.changed:
            self.status = status
            self.changed.notify_all()

    def offer(self, *datasets: str) -> None:
        """Let the site have these datasets."""
        self.site = replace(SITE, datasets=tuple(Dataset(name) for name in datasets))

    def add_project(self, project_id: str, name: str, role: str = "member", invited: bool = False) -> None:
        state = MemberState.INVITED if invited else MemberState.JOINED
        with self.changed:
            self.projects[project_id] = ProjectSummary(project_id, name, "owner", role, state, NOW, 1)
            self.participants[project_id] = {}
            self.versions[project_id] = []

    def finish_round(self, run_id: str) -> None:
        """Let a run do its next round; after the last it is finished."""
        with self.changed:
            project_id, run = self.runs[run_id]
            number = len(run.rounds) + 1
            site = SiteRound(
                "north", evaluate={"accuracy": 0.5 + number / 100, "num-examples": 10}, evaluate_examples=10
            )
            done = number == run.summary.rounds
            status = RunStatus.FINISHED if done else RunStatus.RUNNING
            summary = replace(run.summary, status=status, round=number, phase=f"round {number} of {run.summary.rounds}")
            scores = (
                Score("federated", "north", {"accuracy": 0.8, "loss": 0.3}, 10),
                Score("federated", "", {"accuracy": 0.8, "loss": 0.3}, 10),
                Score("north", "north", {"accuracy": 0.7, "loss": 0.4}, 10),
            )
            rounds = (*run.rounds, Round(number, (site,), evaluate=site.evaluate))
            model = ModelFile("ab" * 32, 5, number)
            run = replace(run, summary=summary, rounds=rounds, model=model, scores=scores if done else ())
            self.runs[run_id] = (project_id, run)
            self.changed.notify_all()

    def fail_run(self, run_id: str, message: str) -> None:
        with self.changed:
            project_id, run = self.runs[run_id]
            self.runs[run_id] = (
                project_id,
                replace(run, summary=replace(run.summary, status=RunStatus.FAILED, message=message)),
            )
            self.changed.notify_all()

    def refuse(self, status: int, message: str) -> NoReturn:
        """For an operation that a test puts in the place of ours."""
        raise Refusal(status, message)

    def wait_for(self, holds: Callable[[FakeService], Any], timeout: float = 20.0) -> Any:
        """Wait until `holds(self)` is true; returns its value.

        Raises:
            TimeoutError: with what clients have reported so far.
        """
        with self.changed:
            value = self.changed.wait_for(lambda: holds(self), timeout)
        if not value:
            raise TimeoutError(f"not within {timeout} s; reports so far: {self.reports}")
        return value

    def wait_for_report(self, participation_id: str, state: ClientState, after: int = 0) -> int:
        """Wait for a report of this state beyond the first `after` reports; returns how many there are up to it."""

        def found(service: FakeService) -> int:
            for index, (who, what, _) in enumerate(service.reports[after:], start=after + 1):
                if (who, what) == (participation_id, state):
                    return index
            return 0

        return int(self.wait_for(found))

    def details(self, participation_id: str, state: ClientState) -> list[str]:
        with self.changed:
            return [text for who, what, text in self.reports if (who, what) == (participation_id, state)]

    def environment(self) -> dict[str, str]:
        """What the spawner would set on a notebook server."""
        return {
            "FEDERATOR_SERVICE_URL": self.url,
            "FEDERATOR_SITE": SITE.slug,
            "FEDERATOR_DATASETS": json.dumps({"slides": "/data/slides"}),
            "FEDERATOR_FLEET_ADDRESS": self.url.removeprefix("http://").partition("/")[0],
            "FEDERATOR_FLEET_TLS": "0",
            "JUPYTERHUB_API_TOKEN": TOKEN,
        }

    @contextmanager
    def running(self) -> Iterator[FakeService]:
        """Serve on a free port of the loopback interface until the block ends."""
        socket, port = bind_unused_port(address="127.0.0.1")
        self.url = f"http://127.0.0.1:{port}{SERVICE_PREFIX}"
        ready, loop = threading.Event(), asyncio.new_event_loop()
        stop = asyncio.Event()

        async def serve() -> None:
            server = HTTPServer(Application(_routes(self), log_function=lambda _: None))
            server.add_socket(socket)
            ready.set()
            await stop.wait()
            server.stop()
            await server.close_all_connections()

        def run() -> None:
            asyncio.set_event_loop(loop)
            # A poll keeps its thread to its end, also when whoever asked has gone.
            loop.set_default_executor(ThreadPoolExecutor(64))
            try:
                loop.run_until_complete(serve())
                for task in asyncio.all_tasks(loop):
                    task.cancel()
                    loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
                loop.run_until_complete(loop.shutdown_default_executor())
            finally:
                loop.close()

        thread = threading.Thread(target=run, name="fake-service")
        thread.start()
        ready.wait()
        try:
            yield self
        finally:
            with self.changed:
                self.stopped = True
                self.changed.notify_all()
            loop.call_soon_threadsafe(stop.set)
            thread.join()

    stopped = False

    # -- the API's operations ----------------------------------------------------------------------------------------

    def home(self) -> Home:
        mine = tuple(p for p in self.projects.values() if p.member_state is MemberState.JOINED)
        invited = tuple(p for p in self.projects.values() if p.member_state is MemberState.INVITED)
        return Home("me", SITE.slug, mine, invited, ())

    def create_project(self, name: str, description: str) -> ProjectSummary:
        project_id = f"p{len(self.projects) + 1}"
        self.add_project(project_id, name, role="owner")
        return self.projects[project_id]

    def project(self, project_id: str) -> ProjectDetail:
        p = self._project(project_id)
        runs = tuple(run.summary for owner, run in self.runs.values() if owner == project_id)
        return ProjectDetail(
            p.id,
            p.name,
            "about <b>cells</b>",
            p.owner,
            p.role,
            p.member_state,
            p.created_at,
            tuple(self.participants[project_id].values()),
            tuple(reversed(self.versions[project_id])),
            tuple(reversed(runs)),
            ("invite",),
        )

    def build(self, filename: str, content: bytes) -> AppPreview:
        if filename in self.refused_names:
            raise Refusal(422, "Cell 3 does not define train().", "Add it, and publish again.")
        return AppPreview("cd" * 32, filename, "notebook", len(content), (), (), (), (), (), {}, (), (), (), fab="")

    def add_app(self, project_id: str, filename: str, content: bytes) -> AppVersion:
        self._project(project_id)
        if filename in self.refused_names:
            raise Refusal(422, "Cell 3 does not define train().", "Add it, and publish again.")
        self.uploads.append((project_id, filename, content))
        number = len(self.versions[project_id]) + 1
        version = AppVersion(number, "cd" * 32, filename, "notebook", "me", NOW, len(content))
        self.versions[project_id].append(version)
        return version

    def invite(self, project_id: str, user: str) -> Participant:
        self._project(project_id)
        participant = Participant(user, "member", MemberState.INVITED)
        self.participants[project_id][user] = participant
        return participant

    def join(self, project_id: str, dataset: str) -> Participant:
        project = self._project(project_id)
        if dataset not in {d.name for d in self.site.datasets}:
            raise Refusal(404, f"Your site has no dataset '{dataset}'.", "It offers slides.")
        self.projects[project_id] = replace(project, member_state=MemberState.JOINED)
        participant = Participant(
            "me", "member", MemberState.JOINED, SITE.slug, SITE.title, dataset, f"{project_id}-me"
        )
        self.participants[project_id]["me"] = participant
        return participant

    def leave(self, project_id: str) -> None:
        self._project(project_id)
        with self.changed:
            self.participants[project_id].pop("me", None)
            for participation_id, assignment in list(self.assignments.items()):
                if assignment.project_id == project_id:
                    del self.assignments[participation_id]
            self._revise()

    def report_packages(self, distributions: dict[str, str], modules: list[str]) -> None:
        with self.changed:
            self.packages, self.modules = distributions, modules
            self.changed.notify_all()

    def remove(self, project_id: str, user: str) -> None:
        self._project(project_id)
        if self.participants[project_id].pop(user, None) is None:
            raise Refusal(404, "Not a member.")

    def decline(self, project_id: str) -> None:
        del self.projects[self._project(project_id).id]

    def start_run(self, project_id: str, rounds: int, compare: bool) -> RunSummary:
        self._project(project_id)
        with self.changed:
            run_id = f"r{len(self.runs) + 1}"
            summary = RunSummary(run_id, len(self.runs) + 1, RunStatus.STARTING, rounds, 0, "", "me", NOW)
            self.runs[run_id] = (project_id, RunDetail(summary, project_id, "cd" * 32, 1, (SITE.slug,), (), ()))
            self.changed.notify_all()
        return summary

    def stop_run(self, run_id: str) -> RunSummary:
        project_id, run = self._run(run_id)
        summary = replace(run.summary, status=RunStatus.STOPPED, message="Stopped by me.")
        self.runs[run_id] = (project_id, replace(run, summary=summary))
        return summary

    def register_node(self, participation_id: str, public_key: str) -> SiteApprovals:
        with self.changed:
            self._assigned(participation_id)
            self.public_keys.setdefault(participation_id, []).append(public_key)
            self.changed.notify_all()
        return self.site_approvals(participation_id)

    def report(self, participation_id: str, state: ClientState, detail: str) -> None:
        with self.changed:
            self._assigned(participation_id)
            self.reports.append((participation_id, state, detail))
            self.changed.notify_all()

    def site_approvals(self, participation_id: str) -> SiteApprovals:
        self._assigned(participation_id)
        return SiteApprovals(participation_id, tuple(sorted(self.approved[participation_id])))

    def approved_app(self, participation_id: str, fab_hash: str) -> bytes:
        self._assigned(participation_id)
        if fab_hash not in self.apps:
            raise Refusal(404, "No such app version is approved for your dataset.")
        return self.apps[fab_hash]

    def current_assignments(self) -> Assignments:
        return Assignments(str(self.revision), tuple(self.assignments.values()))

    def wait_for_news(self, version: str, seconds: float) -> Assignments:
        with self.changed:
            self.changed.wait_for(
                lambda: str(self.revision) != version or self.stopped or self.status is not None, seconds
            )
            return self.current_assignments()

    def wait_for_end(self, seconds: float) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.stopped, seconds)

    def count_request(self, path: str) -> None:
        with self.changed:
            self.requests += 1
            self.asked.append(path.removeprefix(SERVICE_PREFIX).removeprefix(FLEET_PREFIX))
            self.changed.notify_all()

    def _revise(self) -> None:
        """The assignments changed: questions that wait for news are answered."""
        self.revision += 1
        self.changed.notify_all()

    def _project(self, project_id: str) -> ProjectSummary:
        if project_id not in self.projects:
            raise Refusal(404, "There is no such project.", "Ask its owner to invite you.")
        return self.projects[project_id]

    def _run(self, run_id: str) -> tuple[str, RunDetail]:
        if run_id not in self.runs:
            raise Refusal(404, "There is no such run.")
        return self.runs[run_id]

    def _assigned(self, participation_id: str) -> Assignment:
        if participation_id not in self.assignments:
            raise Refusal(404, "There is no such participation.", "Join the project again.")
        return self.assignments[participation_id]


class DownService(FakeService):
    status = 503


class LockedService(FakeService):
    status = 403


class NewerService(FakeService):
    api_version = str(API_VERSION + 1)


class _FleetHandler(RequestHandler):
    """The gateway of a project that has no aggregator yet: every node's key is known, and told to wait."""

    def initialize(self, service: FakeService) -> None:
        self.service = service

    async def post(self, operation: str) -> None:
        self.service.count_request(self.request.path)
        wait = float(self.request.headers.get("Prefer", "wait=0").removeprefix("wait="))
        await asyncio.to_thread(self.service.wait_for_end, wait)
        self.set_status(503)
        self.set_header(FLEET_WAITING_HEADER, "1")
        self.finish()


class _Handler(RequestHandler):
    """Calls one operation with the path's parts, the query and the JSON body; answers with JSON."""

    def initialize(self, service: FakeService, operations: dict[str, Callable[..., Any]]) -> None:
        self.service = service
        self.operations = operations

    def log_exception(self, *_: Any) -> None:
        """Refusals are meant; pytest shows the rest through the client."""

    async def answer(self, **parts: str) -> None:
        self.service.count_request(self.request.path)
        if self.service.status is not None:
            self.set_status(self.service.status)
            self.finish("<html>an error page of something in between</html>")
            return
        self.set_header("X-Federation-API", self.service.api_version)
        try:
            if self.request.headers.get("Authorization") != f"token {TOKEN}":
                raise Refusal(401, "This token is not known.", "Restart your server.")
            operation = self.operations.get(self.request.method or "")
            if operation is None:
                raise Refusal(405, "Not here.")
            result = await asyncio.to_thread(operation, self, **parts)
        except Refusal as refusal:
            self.set_status(refusal.status)
            self.finish(json.dumps(asdict(refusal.problem)))
            return
        if self.service.status is not None:
            self.set_status(self.service.status)
            self.finish()
        elif result is None:
            self.set_status(204)
            self.finish()
        elif isinstance(result, bytes):
            self.finish(result)
        else:
            self.finish(json.dumps(_plain(result)))

    get = post = put = delete = answer

    @property
    def body(self) -> dict[str, Any]:
        return dict(json.loads(self.request.body))


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value if isinstance(value, dict) else asdict(value)


def _routes(s: FakeService) -> list[Any]:
    project, run, participation = (
        r"projects/(?P<project_id>[^/]+)",
        r"runs/(?P<run_id>[^/]+)",
        r"participations/(?P<p>[^/]+)",
    )
    table: dict[str, dict[str, Callable[..., Any]]] = {
        "home": {"GET": lambda h: s.home()},
        "site": {"GET": lambda h: s.site},
        "site/packages": {"PUT": lambda h: s.report_packages(h.body["distributions"], h.body["modules"])},
        "build": {"POST": lambda h: s.build(h.get_query_argument("filename"), h.request.body)},
        "projects": {"POST": lambda h: s.create_project(h.body["name"], h.body["description"])},
        project: {"GET": lambda h, project_id: s.project(project_id)},
        f"{project}/decline": {"POST": lambda h, project_id: s.decline(project_id)},
        f"{project}/apps": {
            "POST": lambda h, project_id: s.add_app(project_id, h.get_query_argument("filename"), h.request.body)
        },
        f"{project}/invitations": {"POST": lambda h, project_id: s.invite(project_id, h.body["user"])},
        f"{project}/participation": {
            "POST": lambda h, project_id: s.join(project_id, h.body["dataset"]),
            "DELETE": lambda h, project_id: s.leave(project_id),
        },
        f"{project}/members/(?P<user>[^/]+)": {"DELETE": lambda h, project_id, user: s.remove(project_id, user)},
        f"{project}/runs": {"POST": lambda h, project_id: s.start_run(project_id, h.body["rounds"], h.body["compare"])},
        run: {"GET": lambda h, run_id: s._run(run_id)[1]},
        f"{run}/stop": {"POST": lambda h, run_id: s.stop_run(run_id)},
        f"{run}/model": {"GET": lambda h, run_id: s._run(run_id) and b"model"},
        f"{run}/record": {"GET": lambda h, run_id: {"fab_hash": s._run(run_id)[1].fab_hash}},
        "approvals": {"GET": lambda h: ()},
        "assignments": {
            "GET": lambda h: s.wait_for_news(h.get_query_argument("version"), float(h.get_query_argument("wait")))
        },
        f"{participation}/node": {"PUT": lambda h, p: s.register_node(p, h.body["public_key"])},
        f"{participation}/client": {"PUT": lambda h, p: s.report(p, ClientState(h.body["state"]), h.body["detail"])},
        f"{participation}/approvals": {"GET": lambda h, p: s.site_approvals(p)},
        f"{participation}/apps/(?P<fab_hash>[^/]+)": {"GET": lambda h, p, fab_hash: s.approved_app(p, fab_hash)},
    }
    return [
        (f"{FLEET_PREFIX}(.*)", _FleetHandler, {"service": s}),
        *(
            (f"{SERVICE_PREFIX}api/{path}", _Handler, {"service": s, "operations": operations})
            for path, operations in table.items()
        ),
    ]
