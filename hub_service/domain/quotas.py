"""How much one person, project or site may have, so that one cannot take everything from all others. Pure.

The deployment says it in `[quotas]`; what is not said there is generous. A quota is asked before something is made,
never afterwards: what is there stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

from hub_service.domain.errors import Conflict, TooLarge
from hub_service.domain.projects import AppVersion
from hub_service.domain.runs import Run

NEAR = 0.8  # of a quota, from where its use is told
LARGEST_UPLOAD = 20 * 1024**2  # bytes; more is never taken


@dataclass(frozen=True, slots=True)
class Quotas:
    """The most of each.

    Attributes:
        projects_per_user: that one person owns.
        members_per_project: who are in it or invited.
        runs: in flight, of all projects.
        runs_per_user: in flight, of the projects that one person owns. One project has one run at a time.
        runs_per_site: in flight in which one site takes part.
        project_bytes: of one project's apps and kept models.
        all_bytes: of all projects' apps and kept models.
        upload_bytes: of one notebook or app that is sent.

    Raises ValueError, naming the field, for what is no whole number above 0, and for an upload of more than
    LARGEST_UPLOAD.
    """

    projects_per_user: int = 100
    members_per_project: int = 200
    runs: int = 100
    runs_per_user: int = 25
    runs_per_site: int = 50
    project_bytes: int = 50 * 1024**3
    all_bytes: int = 500 * 1024**3
    upload_bytes: int = LARGEST_UPLOAD

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{one.name} is {value!r}, not a whole number above 0")
        if self.upload_bytes > LARGEST_UPLOAD:
            raise ValueError(f"upload_bytes is {self.upload_bytes}; more than {LARGEST_UPLOAD} is never taken")


@dataclass(frozen=True, slots=True)
class Use:
    """How much of one quota is used. `of` says whose it is and of what, for a sentence: "projects of ada"."""

    of: str
    used: int
    most: int
    in_bytes: bool = False

    @property
    def near(self) -> bool:
        return self.used >= NEAR * self.most

    @property
    def text(self) -> str:
        """Such as "projects of ada: 90 of 100"."""
        if self.in_bytes:
            return f"{self.of}: {_size(self.used)} of {_size(self.most)}"
        return f"{self.of}: {self.used} of {self.most}"

    def require_room(self, admin_contact: str, instead: str, more: int = 1) -> None:
        """Raise Conflict, or TooLarge for bytes, where there is no room for more.

        Args:
            instead: what the person can do about it, as a sentence.
        """
        if self.used + more <= self.most:
            return
        refusal = TooLarge if self.in_bytes else Conflict
        raise refusal(f"This is more than is allowed here: {self.text}.", f"{instead} Or ask {admin_contact} for more.")


def stored_bytes(versions: Sequence[AppVersion], runs: Sequence[Run]) -> int:
    """Bytes of a project's apps and kept models, each file once."""
    sizes = {version.fab_hash: version.size for version in versions}
    for sha256, size in _models(runs):
        sizes[sha256] = size
    return sum(sizes.values())


def _models(runs: Sequence[Run]) -> Iterator[tuple[str, int]]:
    for run in runs:
        if run.model_sha256:
            yield run.model_sha256, run.model_size
        for model in run.models:
            yield model.sha256, model.size


def _size(count: int) -> str:
    for limit, unit in ((1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "KB")):
        if count >= limit:
            return f"{count / limit:.1f} {unit}"
    return f"{count} bytes"
