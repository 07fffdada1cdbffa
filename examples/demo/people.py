"""Who takes part in the demonstration: three invented hospitals, their people, and a stranger."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Institution:
    """`site` is its slug in the Hub; empty for an institution that has no site there."""

    name: str
    domain: str
    site: str = ""


@dataclass(frozen=True)
class Person:
    """Someone whom the identity provider knows."""

    username: str
    name: str
    institution: Institution

    affiliation: ClassVar[str] = "member"  # in eduPerson's words
    role: ClassVar[str] = "not part of this Hub"

    @property
    def subject(self) -> str:
        """How the identity provider names them."""
        return self.username

    @property
    def site(self) -> str:
        return self.institution.site

    @property
    def site_title(self) -> str:
        return self.institution.name

    @property
    def description(self) -> str:
        return f"{self.name}, {self.institution.name}, {self.role}"

    def claims(self) -> dict[str, object]:
        """What an academic identity provider says of them beside the subject."""
        given, _, family = self.name.partition(" ")
        domain = self.institution.domain
        return {
            "preferred_username": self.username,
            "name": self.name,
            "given_name": given,
            "family_name": family,
            "email": f"{self.username}@{domain}",
            "email_verified": True,
            "schac_home_organization": domain,
            "eduperson_scoped_affiliation": [f"{self.affiliation}@{domain}", f"member@{domain}"],
        }


class Researcher(Person):
    affiliation = "faculty"
    role = "researcher"


class Steward(Person):
    affiliation = "staff"
    role = "data steward"


class Administrator(Person):
    affiliation = "staff"
    role = "Hub administrator"


class Stranger(Person):
    """Of an institution that the Hub does not know."""


ST_ANNA = Institution("St. Anna Hospital", "st-anna.example", "st-anna")
VALL_VERDE = Institution("Vall Verde Cancer Institute", "vall-verde.example", "vall-verde")
NORTHSIDE = Institution("Northside Clinic", "northside.example", "northside")
OFFICE = Institution("Federation Office", "federation.example")
LAKEVIEW = Institution("Lakeview University", "lakeview.example")

INSTITUTIONS = (ST_ANNA, VALL_VERDE, NORTHSIDE)
"""Those that have a site."""

RESEARCHERS = (
    Researcher("amara", "Amara Okafor", ST_ANNA),
    Researcher("mateu", "Mateu Ferrer", VALL_VERDE),
    Researcher("priya", "Priya Raman", NORTHSIDE),
)
"""One of each site, who run the demonstration; the first owns the project."""

COLLEAGUES = (
    Researcher("jonas", "Jonas Lind", ST_ANNA),
    Researcher("clara", "Clara Vidal", VALL_VERDE),
    Researcher("tom", "Tom Whitfield", NORTHSIDE),
)

STEWARDS = (
    Steward("ingrid", "Ingrid Solberg", ST_ANNA),
    Steward("nuria", "Núria Puig", VALL_VERDE),
    Steward("grace", "Grace Mensah", NORTHSIDE),
)
"""One of each site, in the order of `RESEARCHERS`."""

ADMINISTRATOR = Administrator("admin", "Robin Hale", OFFICE)
STRANGER = Stranger("stranger", "Sam Castle", LAKEVIEW)


def everyone() -> tuple[Person, ...]:
    """All of them, institution by institution."""
    people = (*RESEARCHERS, *COLLEAGUES, *STEWARDS, ADMINISTRATOR, STRANGER)
    order = (*INSTITUTIONS, OFFICE, LAKEVIEW)
    return tuple(sorted(people, key=lambda person: order.index(person.institution)))
