"""The form that adds a site in the Hub: its fields, what they become, and which one a problem is about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from spawner.admin.adding import NewSite, named_dataset
from spawner.tables import Problem


@dataclass(frozen=True, slots=True)
class Field:
    """One field.

    Attributes:
        keys: the beginnings of the keys in the deployment file that it fills, after `sites.<slug>.`, or whole.
        many: one value a line.
    """

    name: str
    label: str
    help: str
    keys: tuple[str, ...]
    required: bool = True
    many: bool = False
    example: str = ""


FIELDS = (
    Field(
        "slug",
        "Short name",
        "For group names, folders and URLs: lower-case letters, digits and hyphens. It stays.",
        ("site",),
        example="st-anna",
    ),
    Field("title", "Title", "The institution's name, as people read it.", ("title",), example="St. Anna Hospital"),
    Field(
        "contact",
        "Contact",
        "Who looks after the site's machine. Error messages tell people to ask them.",
        ("contact",),
        example="Ingrid Solberg <ingrid@st-anna.example>",
    ),
    Field(
        "institutions",
        "Institution claim",
        "What the login says of the site's people. One value a line.",
        ("sso.institutions",),
        many=True,
        example="st-anna",
    ),
    Field(
        "stewards",
        "Data stewards",
        "User names of who decides what runs on the site's data. One a line.",
        ("sso.stewards",),
        many=True,
        example="ingrid.solberg",
    ),
    Field(
        "engine",
        "Docker engine",
        "Where this Hub reaches it. Certificates are made for this address.",
        ("engine", "tls_dir"),
        example="tcp://10.77.2.2:2376",
    ),
    Field(
        "image",
        "Image of the notebook servers",
        "Best by digest: then it is the one that the site has read.",
        ("image",),
        example="notebook-federator/singleuser@sha256:...",
    ),
    Field(
        "datasets",
        "Datasets",
        "Name and folder on the site's machine. One a line.",
        ("datasets",),
        required=False,
        many=True,
        example="biopsies=/srv/biopsies",
    ),
    Field(
        "gpus",
        "GPUs",
        "Ids, as nvidia-smi -L lists them. One a line; none for a site without.",
        ("gpus",),
        required=False,
        many=True,
        example="GPU-5fd4f61c-...",
    ),
    Field(
        "hub_address",
        "Address of this Hub",
        "IPv4, as the site reaches it. Needed where the Hub's URL has a name: servers have no DNS.",
        ("hub_address",),
        required=False,
        example="203.0.113.10",
    ),
    Field(
        "hub_url",
        "URL of this Hub",
        "Only where the site reaches it by another than everybody.",
        ("hub_url",),
        required=False,
        example="https://hub.vpn.example",
    ),
)


@dataclass(frozen=True, slots=True)
class Filled:
    """A form that came back.

    Attributes:
        values: what was typed, by field.
        problems: what is wrong with it, by field; "" is about no field.
        command: what adds the same site, where only the Hub's account could not; empty otherwise.
    """

    values: Mapping[str, str]
    problems: Mapping[str, Sequence[str]]
    command: str = ""

    @property
    def first_wrong(self) -> str:
        """Name of the first field to correct; empty where there is none."""
        return next((field.name for field in FIELDS if field.name in self.problems), "")


EMPTY = Filled({}, {})


def new_site(values: Mapping[str, str]) -> NewSite:
    """What was typed, as a site. Raises ValueError, where a dataset's line cannot be read."""

    def lines(name: str) -> list[str]:
        return [line.strip() for line in values.get(name, "").splitlines() if line.strip()]

    def word(name: str) -> str:
        return values.get(name, "").strip()

    return NewSite(
        slug=word("slug"),
        title=word("title"),
        contact=word("contact"),
        engine=word("engine"),
        image=word("image"),
        institutions=lines("institutions"),
        stewards=lines("stewards"),
        datasets=dict(map(named_dataset, lines("datasets"))),
        gpus=lines("gpus"),
        hub_url=word("hub_url"),
        hub_address=word("hub_address"),
    )


def refused(values: Mapping[str, str], problems: Iterable[Problem], command: str = "") -> Filled:
    """The form to show again."""
    by_field: dict[str, list[str]] = {}
    for problem in problems:
        name = _field_of(problem.key, values.get("slug", ""))
        by_field.setdefault(name, []).append(problem.text if name else str(problem))
    return Filled(values, by_field, command)


def _field_of(key: str, slug: str) -> str:
    own = key.removeprefix(f"sites.{slug}.")
    for field in FIELDS:
        if any(own == start or own.startswith(f"{start}.") for start in field.keys):
            return field.name
    return ""
