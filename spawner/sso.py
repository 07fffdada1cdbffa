"""From what an identity provider says of a person to the Hub's groups. Pure: no network, no Hub.

    claims      what the provider sends: a JSON object
    institution one value of the institution claim, brought into the form that the `institutions` table uses
    site        the slug that the table gives for it; exactly one for a person who may log in

`spawner.authenticator` calls `admit` at each login and keeps nothing of an earlier one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from federator.contract import SITE_GROUP_PREFIX, STEWARD_GROUP_PREFIX
from pydantic import Field, model_validator

from spawner.tables import Slug, Table, Text

ADMIN_GROUP = "federation-admins"

BELONGING = frozenset({"member", "employee", "faculty", "staff", "student"})
"""eduPerson affiliations that make one a member. "alum", "affiliate" and "library-walk-in" do not."""


class ClaimForm(StrEnum):
    """How the institution claim is written."""

    VALUE = "value"  # as it stands: an entity id, a tenant id, an organization's alias
    DOMAIN = "domain"  # a DNS domain, in any case
    SCOPED_AFFILIATION = "scoped-affiliation"  # "employee@hospital.example", one or several, maybe joined by ";"


class Source(StrEnum):
    """Where the claims come from."""

    USERINFO = "userinfo"
    ID_TOKEN = "id_token"


PresetName = Literal["cilogon", "keycloak", "egi-check-in", "myaccessid", "entra-id", "generic"]


@dataclass(frozen=True, slots=True)
class Provider:
    """How to speak to one identity provider. URLs may begin with "{issuer}"."""

    authorize_url: str
    token_url: str
    userdata_url: str
    scopes: tuple[str, ...]
    username_claim: str
    institution_claim: str
    institution_form: ClaimForm
    issuer: str = ""
    source: Source = Source.USERINFO


PRESETS: Mapping[PresetName, Provider] = {
    # https://www.cilogon.org/oidc: `idp` is the entity id of the person's own identity provider.
    "cilogon": Provider(
        issuer="https://cilogon.org",
        authorize_url="{issuer}/authorize",
        token_url="{issuer}/oauth2/token",
        userdata_url="{issuer}/oauth2/userinfo",
        scopes=("openid", "email", "profile", "org.cilogon.userinfo"),
        username_claim="eppn",
        institution_claim="idp",
        institution_form=ClaimForm.VALUE,
    ),
    # The issuer is the realm, https://keycloak.example/realms/<realm>. `organization` comes with Keycloak's
    # organizations (26 and later) and its client scope of the same name.
    "keycloak": Provider(
        authorize_url="{issuer}/protocol/openid-connect/auth",
        token_url="{issuer}/protocol/openid-connect/token",
        userdata_url="{issuer}/protocol/openid-connect/userinfo",
        scopes=("openid", "email", "profile", "organization"),
        username_claim="preferred_username",
        institution_claim="organization",
        institution_form=ClaimForm.VALUE,
    ),
    # https://docs.egi.eu/providers/check-in: a Keycloak realm. `voperson_external_affiliation` is the affiliation at
    # the person's home organization (AARC-G025); `voperson_id` never changes hands.
    "egi-check-in": Provider(
        issuer="https://aai.egi.eu/auth/realms/egi",
        authorize_url="{issuer}/protocol/openid-connect/auth",
        token_url="{issuer}/protocol/openid-connect/token",
        userdata_url="{issuer}/protocol/openid-connect/userinfo",
        scopes=("openid", "email", "profile", "voperson_id", "voperson_external_affiliation"),
        username_claim="voperson_id",
        institution_claim="voperson_external_affiliation",
        institution_form=ClaimForm.SCOPED_AFFILIATION,
    ),
    # GÉANT's eduTEAMS proxy. `schac_home_organization` is the home organization's domain.
    "myaccessid": Provider(
        issuer="https://proxy.myaccessid.org",
        authorize_url="{issuer}/saml2sp/OIDC/authorization",
        token_url="{issuer}/OIDC/token",
        userdata_url="{issuer}/OIDC/userinfo",
        scopes=("openid", "email", "profile", "schac_home_organization"),
        username_claim="sub",
        institution_claim="schac_home_organization",
        institution_form=ClaimForm.DOMAIN,
    ),
    # Microsoft's userinfo endpoint has no `tid` (the tenant), the ID token has. `preferred_username` is the user
    # principal name, whose domain the tenant has proved to own; `email` is not proved and must not name a user.
    "entra-id": Provider(
        issuer="https://login.microsoftonline.com/organizations",
        authorize_url="{issuer}/oauth2/v2.0/authorize",
        token_url="{issuer}/oauth2/v2.0/token",
        userdata_url="https://graph.microsoft.com/oidc/userinfo",
        scopes=("openid", "email", "profile"),
        username_claim="preferred_username",
        institution_claim="tid",
        institution_form=ClaimForm.VALUE,
        source=Source.ID_TOKEN,
    ),
    "generic": Provider(
        authorize_url="",
        token_url="",
        userdata_url="",
        scopes=("openid", "email", "profile"),
        username_claim="preferred_username",
        institution_claim="schac_home_organization",
        institution_form=ClaimForm.DOMAIN,
    ),
}


class Stewards(Table):
    """`[sso.stewards.<slug>]`: who decides for a site's data.

    Attributes:
        users: Hub user names.
        claim, values: or whoever of the site's own people has one of these values in this claim.
    """

    users: tuple[Text, ...] = ()
    claim: Text | None = None
    values: tuple[Text, ...] = ()

    @model_validator(mode="after")
    def _claim_with_values(self) -> Stewards:
        if (self.claim is None) != (not self.values):
            raise ValueError("`claim` and `values` go together; write both or neither")
        return self


class Sso(Table):
    """`[sso]`: the identity provider and what its claims mean here. What a preset gives may be written over."""

    preset: PresetName
    client_id: Text
    label: Text = "your institution"
    issuer: Text | None = None
    authorize_url: Text | None = None
    token_url: Text | None = None
    userdata_url: Text | None = None
    scopes: tuple[Text, ...] | None = None
    username_claim: Text | None = None
    institution_claim: Text | None = None
    institution_form: ClaimForm | None = None
    source: Source | None = None
    institutions: dict[Text, Slug] = Field(min_length=1)
    stewards: dict[Slug, Stewards] = Field(default_factory=dict)
    admins: tuple[Text, ...] = ()

    @model_validator(mode="after")
    def _provider_is_complete(self) -> Sso:
        provider = self.provider
        for key in ("authorize_url", "token_url", "userdata_url"):
            if not getattr(provider, key).startswith(("https://", "http://")):
                raise ValueError(
                    f"the preset {self.preset!r} needs `issuer`, or all of `authorize_url`, `token_url`, `userdata_url`"
                )
        return self

    @property
    def provider(self) -> Provider:
        """The preset, with what this table writes over it and the issuer filled in."""
        preset = PRESETS[self.preset]
        issuer = (self.issuer or preset.issuer).rstrip("/")

        def url(own: str | None, of_preset: str) -> str:
            return own or of_preset.replace("{issuer}", issuer)

        return Provider(
            issuer=issuer,
            authorize_url=url(self.authorize_url, preset.authorize_url),
            token_url=url(self.token_url, preset.token_url),
            userdata_url=url(self.userdata_url, preset.userdata_url),
            scopes=self.scopes or preset.scopes,
            username_claim=self.username_claim or preset.username_claim,
            institution_claim=self.institution_claim or preset.institution_claim,
            institution_form=self.institution_form or preset.institution_form,
            source=self.source or preset.source,
        )


@dataclass(frozen=True, slots=True)
class Admission:
    """A person who may log in. `groups` replaces all groups they had."""

    groups: frozenset[str]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A person who may not log in: what was seen, for them to pass on."""

    reason: str
    claim: str
    values: tuple[str, ...]


def admit(sso: Sso, username: str, claims: Mapping[str, Any]) -> Admission | Refusal:
    """Decide on a person who has proved to the identity provider who they are.

    Args:
        username: the Hub's user name, as the authenticator normalized it.
        claims: what the provider sent about them.
    """
    provider = sso.provider
    seen = institutions_in(claims.get(provider.institution_claim), provider.institution_form)
    known = {_in_form(value, provider.institution_form): slug for value, slug in sso.institutions.items()}
    sites = sorted({known[value] for value in seen if value in known})
    is_admin = username in _names(sso.admins)
    if len(sites) > 1:
        return Refusal(
            f"Your login names more than one institution of this Hub: {', '.join(sites)}. "
            "A server runs at one site, so a person belongs to one.",
            provider.institution_claim,
            seen,
        )
    if not sites and not is_admin:
        reason = "Your institution is not part of this Hub." if seen else "Your login does not name your institution."
        return Refusal(reason, provider.institution_claim, seen)
    groups = {SITE_GROUP_PREFIX + slug for slug in sites}
    groups |= {STEWARD_GROUP_PREFIX + slug for slug in _stewarded(sso, username, claims, sites)}
    groups |= {ADMIN_GROUP} if is_admin else set()
    return Admission(frozenset(groups))


def institutions_in(claim: object, form: ClaimForm) -> tuple[str, ...]:
    """The institutions that a claim names, without doubles, in their order."""
    values = strings_in(claim)
    if form is ClaimForm.SCOPED_AFFILIATION:
        pairs = (part.strip().rpartition("@") for value in values for part in value.split(";"))
        values = [domain for affiliation, _, domain in pairs if affiliation.casefold() in BELONGING]
    return tuple(dict.fromkeys(_in_form(value, form) for value in values if value))


def strings_in(claim: object) -> list[str]:
    """A claim's values: one string, a list of them, or an object whose keys are the values (Keycloak)."""
    if isinstance(claim, str):
        return [claim]
    if isinstance(claim, list | dict):
        return [value for value in claim if isinstance(value, str)]
    return []


def _in_form(value: str, form: ClaimForm) -> str:
    return value if form is ClaimForm.VALUE else value.casefold()


def _names(names: Iterable[str]) -> frozenset[str]:
    """User names as the authenticator normalizes them."""
    return frozenset(name.lower() for name in names)


def _stewarded(sso: Sso, username: str, claims: Mapping[str, Any], sites: Iterable[str]) -> frozenset[str]:
    """Sites that this person decides for.

    A claim counts for the person's own site only: what one institution says of its people binds no other.
    """
    named = {slug for slug, stewards in sso.stewards.items() if username in _names(stewards.users)}
    claimed = {
        slug
        for slug in sites
        if (stewards := sso.stewards.get(slug)) is not None
        and stewards.claim is not None
        and not set(stewards.values).isdisjoint(strings_in(claims.get(stewards.claim)))
    }
    return frozenset(named | claimed)
