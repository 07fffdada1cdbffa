"""From claims to groups. The claims have the shape that each provider sends; the people are invented."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from spawner.sso import PRESETS, Admission, ClaimForm, Refusal, Source, Sso, admit, institutions_in

CILOGON = {
    "sub": "http://cilogon.org/serverA/users/534",
    "idp_name": "St. Anna Hospital",
    "idp": "https://idp.st-anna.example/shibboleth",
    "eppn": "aokafor@st-anna.example",
    "eptid": "https://idp.st-anna.example/shibboleth!https://cilogon.org/shibboleth!cyXC3O5fi0t1NBsW1NsOxZ=",
    "affiliation": "employee@st-anna.example;member@st-anna.example;staff@st-anna.example",
    "name": "Amara Okafor",
    "given_name": "Amara",
    "family_name": "Okafor",
    "email": "amara.okafor@st-anna.example",
    "acr": "https://refeds.org/profile/mfa",
    "iss": "https://cilogon.org",
    "aud": "cilogon:/client_id/123456789",
}

KEYCLOAK = {
    "sub": "7ff7a1f4-7f5d-4b1c-9b3f-0d6f4f2f0a11",
    "email_verified": True,
    "name": "Amara Okafor",
    "organization": ["st-anna"],
    "preferred_username": "aokafor",
    "given_name": "Amara",
    "family_name": "Okafor",
    "email": "amara.okafor@st-anna.example",
}

EGI_CHECK_IN = {
    "sub": "d7a53cbe3e966c53ac64fde7355956560282158ecac8f3d2c770b474862f4756@egi.eu",
    "voperson_id": "d7a53cbe3e966c53ac64fde7355956560282158ecac8f3d2c770b474862f4756@egi.eu",
    "preferred_username": "aokafor",
    "name": "Amara Okafor",
    "given_name": "Amara",
    "family_name": "Okafor",
    "email": "amara.okafor@st-anna.example",
    "email_verified": True,
    "voperson_verified_email": ["amara.okafor@st-anna.example"],
    "voperson_external_affiliation": ["employee@St-Anna.example", "member@St-Anna.example"],
    "eduperson_assurance": ["https://refeds.org/assurance/IAP/medium", "https://refeds.org/assurance"],
    "entitlements": ["urn:mace:egi.eu:group:vo.example.eu:role=member#aai.egi.eu"],
}

MYACCESSID = {
    "sub": "28c5353b8bb34984a8bd4169ba94c606@myaccessid.org",
    "name": "Amara Okafor",
    "given_name": "Amara",
    "family_name": "Okafor",
    "email": "amara.okafor@st-anna.example",
    "schac_home_organization": "st-anna.example",
    "voperson_external_affiliation": ["faculty@st-anna.example"],
    "eduperson_assurance": ["https://refeds.org/assurance/ID/unique"],
}

ENTRA_ID = {  # an ID token, version 2.0
    "aud": "6cb04018-a3f5-46a7-b995-940c78f5aef3",
    "iss": "https://login.microsoftonline.com/9122040d-6c67-4c5b-b112-36a304b66dad/v2.0",
    "iat": 1536361411,
    "nbf": 1536361411,
    "exp": 1536365311,
    "name": "Amara Okafor",
    "oid": "00000000-0000-0000-66f3-3332eca7ea81",
    "preferred_username": "AOkafor@st-anna.example",
    "rh": "0.AXoA",
    "sub": "AAAAAAAAAAAAAAAAAAAAAIkzqFVrSaSaFHy782bbtaQ",
    "tid": "9122040d-6c67-4c5b-b112-36a304b66dad",
    "uti": "fqiBqXLPj0eQa82S-IYFAA",
    "ver": "2.0",
}


def sso(**changes: Any) -> Sso:
    keys: dict[str, Any] = {
        "preset": "myaccessid",
        "client_id": "c",
        "institutions": {"st-anna.example": "st-anna", "vall-verde.example": "vall-verde"},
    }
    return Sso.model_validate(keys | changes)


@pytest.mark.parametrize(
    ("preset", "claims", "institution", "username"),
    [
        ("cilogon", CILOGON, "https://idp.st-anna.example/shibboleth", "aokafor@st-anna.example"),
        ("keycloak", KEYCLOAK, "st-anna", "aokafor"),
        ("egi-check-in", EGI_CHECK_IN, "st-anna.example", EGI_CHECK_IN["voperson_id"]),
        ("myaccessid", MYACCESSID, "st-anna.example", MYACCESSID["sub"]),
        ("entra-id", ENTRA_ID, "9122040d-6c67-4c5b-b112-36a304b66dad", "AOkafor@st-anna.example"),
    ],
)
def test_a_preset_reads_what_its_provider_sends(
    preset: str, claims: dict[str, Any], institution: str, username: str
) -> None:
    table = sso(preset=preset, issuer="https://login.example/realms/r", institutions={institution: "st-anna"})
    assert claims[table.provider.username_claim] == username
    assert admit(table, "amara", claims) == Admission(frozenset({"site-st-anna"}))


def test_every_preset_is_tested_with_claims() -> None:
    assert set(PRESETS) == {"cilogon", "keycloak", "egi-check-in", "myaccessid", "entra-id", "generic"}


@pytest.mark.parametrize(
    ("preset", "issuer", "token_url"),
    [
        ("cilogon", None, "https://cilogon.org/oauth2/token"),
        ("egi-check-in", None, "https://aai.egi.eu/auth/realms/egi/protocol/openid-connect/token"),
        (
            "egi-check-in",
            "https://aai-demo.egi.eu/auth/realms/egi",
            "https://aai-demo.egi.eu/auth/realms/egi/protocol/openid-connect/token",
        ),
        ("myaccessid", None, "https://proxy.myaccessid.org/OIDC/token"),
        ("myaccessid", "https://proxy.acc.myaccessid.org/", "https://proxy.acc.myaccessid.org/OIDC/token"),
        ("keycloak", "https://k.example/realms/r", "https://k.example/realms/r/protocol/openid-connect/token"),
        ("entra-id", None, "https://login.microsoftonline.com/organizations/oauth2/v2.0/token"),
    ],
)
def test_endpoints_follow_the_issuer(preset: str, issuer: str | None, token_url: str) -> None:
    assert sso(preset=preset, issuer=issuer).provider.token_url == token_url


def test_entra_id_is_read_from_the_id_token() -> None:
    assert sso(preset="entra-id").provider.source is Source.ID_TOKEN


def test_a_table_writes_over_its_preset() -> None:
    table = sso(username_claim="email", institution_claim="hd", institution_form="domain", scopes=["openid"])
    provider = table.provider
    assert (provider.username_claim, provider.institution_claim, provider.scopes) == ("email", "hd", ("openid",))
    google = {"email": "a@st-anna.example", "hd": "st-anna.example"}
    assert admit(table, "a@st-anna.example", google) == Admission(frozenset({"site-st-anna"}))


def test_the_issuer_can_be_the_institution() -> None:
    table = sso(
        institution_claim="iss", institution_form="value", institutions={"https://idp.st-anna.example": "st-anna"}
    )
    assert isinstance(admit(table, "amara", {"iss": "https://idp.st-anna.example"}), Admission)


def test_an_unknown_institution_is_refused_with_what_was_seen() -> None:
    refusal = admit(sso(), "sam", {"schac_home_organization": "lakeview.example"})
    assert refusal == Refusal(
        "Your institution is not part of this Hub.", "schac_home_organization", ("lakeview.example",)
    )


@pytest.mark.parametrize("claim", [None, "", [], 7, {"st-anna.example": {}, "lakeview.example": {}}])
def test_a_claim_of_any_shape_is_survived(claim: object) -> None:
    decision = admit(sso(), "sam", {"schac_home_organization": claim})
    if isinstance(claim, dict):
        assert isinstance(decision, Admission)
    else:
        assert isinstance(decision, Refusal)
        assert decision.reason == "Your login does not name your institution."
        assert decision.values == ()


def test_a_person_of_two_sites_is_refused() -> None:
    refusal = admit(sso(), "sam", {"schac_home_organization": ["vall-verde.example", "st-anna.example"]})
    assert isinstance(refusal, Refusal)
    assert "st-anna, vall-verde" in refusal.reason
    assert refusal.values == ("vall-verde.example", "st-anna.example")


def test_two_institutions_of_one_site_are_one_site() -> None:
    table = sso(institutions={"a.example": "st-anna", "b.example": "st-anna"})
    decision = admit(table, "sam", {"schac_home_organization": ["a.example", "b.example"]})
    assert decision == Admission(frozenset({"site-st-anna"}))


@pytest.mark.parametrize("institution", ["ST-ANNA.example", "st-anna.example"])
def test_domains_have_no_case(institution: str) -> None:
    table = sso(institutions={"St-Anna.Example": "st-anna"})
    assert isinstance(admit(table, "amara", {"schac_home_organization": institution}), Admission)


@pytest.mark.parametrize(
    ("claim", "institutions"),
    [
        ("member@a.example", ("a.example",)),
        ("employee@a.example;member@a.example; staff@B.example", ("a.example", "b.example")),
        (["alum@a.example", "affiliate@b.example", "library-walk-in@c.example"], ()),
        (["alum@a.example", "Faculty@b.example"], ("b.example",)),
        (["member@a.example@evil.example"], ()),
        (["member", "@a.example", "member@"], ()),
    ],
)
def test_only_members_belong(claim: object, institutions: tuple[str, ...]) -> None:
    assert institutions_in(claim, ClaimForm.SCOPED_AFFILIATION) == institutions


def test_stewards_are_named() -> None:
    table = sso(stewards={"st-anna": {"users": ["Ingrid"]}})
    ingrid = admit(table, "ingrid", {"schac_home_organization": "st-anna.example"})
    amara = admit(table, "amara", {"schac_home_organization": "st-anna.example"})
    assert ingrid == Admission(frozenset({"site-st-anna", "steward-st-anna"}))
    assert amara == Admission(frozenset({"site-st-anna"}))


def test_a_steward_may_be_named_for_another_site() -> None:
    table = sso(stewards={"vall-verde": {"users": ["ingrid"]}})
    decision = admit(table, "ingrid", {"schac_home_organization": "st-anna.example"})
    assert decision == Admission(frozenset({"site-st-anna", "steward-vall-verde"}))


def test_a_claim_makes_stewards_at_home_only() -> None:
    steward = {"claim": "entitlement", "values": ["urn:steward"]}
    table = sso(stewards={"st-anna": steward, "vall-verde": steward})
    claims = {"schac_home_organization": "st-anna.example", "entitlement": ["urn:other", "urn:steward"]}
    decision = admit(table, "ingrid", claims)
    assert decision == Admission(frozenset({"site-st-anna", "steward-st-anna"}))
    assert isinstance(other := admit(table, "amara", claims | {"entitlement": "urn:other"}), Admission)
    assert other.groups == {"site-st-anna"}


def test_an_admin_needs_no_site() -> None:
    table = sso(admins=["Robin"])
    decision = admit(table, "robin", {"schac_home_organization": "lakeview.example"})
    assert decision == Admission(frozenset({"federation-admins"}))


def test_an_admin_of_two_sites_is_refused_too() -> None:
    claims = {"schac_home_organization": ["st-anna.example", "vall-verde.example"]}
    assert isinstance(admit(sso(admins=["robin"]), "robin", claims), Refusal)


def test_no_institutions_is_an_error() -> None:
    with pytest.raises(ValidationError, match="institutions"):
        sso(institutions={})
