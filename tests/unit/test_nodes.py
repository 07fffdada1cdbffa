"""Keys of SuperNodes at sites without notebook servers, and what those sites are shown and refused."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from federator.contract import ApprovalState, ClientState

from hub_service.audit import fault
from hub_service.changes import RUNS_TOPIC, project_topic
from hub_service.domain.errors import Conflict, Forbidden, Invalid, NotFound
from hub_service.node_keys import fingerprint, flower_form
from tests.fakes.federation import ANNA, DORA, STEWARDS, Federation, new_key

STEWARD = STEWARDS["d"]


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation(tmp_path)


def test_a_fingerprint_is_what_ssh_keygen_prints(tmp_path: Path) -> None:
    for bits in (256, 384, 521):
        path = tmp_path / f"key-{bits}"
        subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-b", str(bits), "-N", "", "-f", path], check=True)
        printed = subprocess.run(["ssh-keygen", "-l", "-f", path], check=True, capture_output=True, text=True).stdout
        assert fingerprint(flower_form(path.with_suffix(".pub").read_bytes())) == printed.split()[1]


@pytest.mark.parametrize(
    ("form", "encryption"),
    [
        (PrivateFormat.OpenSSH, NoEncryption()),
        (PrivateFormat.PKCS8, NoEncryption()),
        (PrivateFormat.PKCS8, BestAvailableEncryption(b"password")),
        (PrivateFormat.TraditionalOpenSSL, NoEncryption()),
    ],
)
def test_a_private_key_is_refused_and_nothing_of_it_is_repeated(
    form: PrivateFormat, encryption: KeySerializationEncryption
) -> None:
    private = ec.generate_private_key(ec.SECP384R1()).private_bytes(Encoding.PEM, form, encryption)
    for pasted in (private, b"  " + private.replace(b"\n", b"\r\n"), private * 20, private[:60]):
        with pytest.raises(Invalid, match="private key") as refused:
            flower_form(pasted)
        said = f"{refused.value} {refused.value.next_step} {refused.value.debug}"
        assert not any(line in said for line in private.decode().splitlines()[1:-1])


def test_a_key_is_taken_with_the_space_around_it() -> None:
    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    line = public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    assert flower_form(b"\n " + pem + b"\n\n") == flower_form(b" " + line + b" dora@hospital\n") == pem


def test_a_key_of_another_kind_is_told_how_to_make_one() -> None:
    edwards = ed25519.Ed25519PrivateKey.generate().public_key()
    with pytest.raises(Invalid, match="public key") as refused:
        flower_form(edwards.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    assert "ssh-keygen -t ecdsa" in refused.value.next_step


class TestSupernodes:
    async def test_a_steward_registers_the_key_and_the_node_is_let_in(self, federation: Federation) -> None:
        project_id, participation_id = await federation.supernode_project()
        (empty,) = federation.coordinator.site_nodes(STEWARD)
        assert (empty.fingerprint, empty.key_by, empty.key_at, empty.may_change) == ("", "", "", True)
        key = new_key()
        revision = federation.changes.revision(RUNS_TOPIC)
        approvals = federation.coordinator.register_node(STEWARD, participation_id, key)
        assert approvals.fab_hashes == (federation.newest_hash(project_id),)
        assert federation.changes.revision(RUNS_TOPIC) > revision  # a run in flight looks again
        (node,) = federation.coordinator.site_nodes(STEWARD)
        assert (node.fingerprint, node.key_by) == (fingerprint(key), STEWARD.name)
        assert node.key_at
        grant = federation.coordinator.node_grant(key)
        assert grant is not None
        assert grant.fab_hashes == frozenset({federation.newest_hash(project_id)})

    async def test_the_node_makes_its_site_ready(self, federation: Federation) -> None:
        project_id, participation_id = await federation.supernode_project()

        def shown() -> tuple[ClientState, str]:
            participant = federation.coordinator.project(ANNA, project_id).participants[1]
            return participant.client, participant.detail

        assert shown() == (
            ClientState.OFFLINE,
            "Waits for a data steward of Hospital D to register a key of its SuperNode.",
        )
        with pytest.raises(Conflict, match="No site is ready") as refused:
            federation.coordinator.start_run(ANNA, project_id, 1, False)
        assert "register a key" in refused.value.next_step
        federation.coordinator.register_node(STEWARD, participation_id, new_key())
        assert shown() == (ClientState.OFFLINE, "Its SuperNode is not connected.")
        federation.coordinator.node_seen(participation_id, working=False)
        assert shown() == (ClientState.READY, "Ready: its SuperNode waits for work.")
        federation.coordinator.node_seen(participation_id, working=True)
        assert shown() == (ClientState.WORKING, "Its SuperNode is working.")
        assert federation.coordinator.start_run(ANNA, project_id, 1, False).number == 1

    async def test_a_removed_key_opens_nothing_from_that_moment(self, federation: Federation) -> None:
        project_id, participation_id = await federation.supernode_project()
        key = new_key()
        federation.coordinator.register_node(STEWARD, participation_id, key)
        federation.coordinator.node_seen(participation_id, working=False)
        revisions = [federation.changes.revision(topic) for topic in (RUNS_TOPIC, project_topic(project_id))]
        federation.coordinator.remove_node(STEWARD, participation_id)
        assert federation.coordinator.node_grant(key) is None
        (node,) = federation.coordinator.site_nodes(STEWARD)
        assert (node.fingerprint, node.key_by, node.client) == ("", "", ClientState.OFFLINE)
        federation.coordinator.node_seen(participation_id, working=False)  # of a poll that was being answered
        assert federation.participation(participation_id).client is ClientState.OFFLINE
        assert revisions != [federation.changes.revision(topic) for topic in (RUNS_TOPIC, project_topic(project_id))]
        with pytest.raises(Conflict, match="no key"):
            federation.coordinator.remove_node(STEWARD, participation_id)

    async def test_another_key_takes_the_place_of_the_first(self, federation: Federation) -> None:
        _, participation_id = await federation.supernode_project()
        old, new = new_key(), new_key()
        federation.coordinator.register_node(STEWARD, participation_id, old)
        federation.coordinator.node_seen(participation_id, working=False)
        federation.coordinator.register_node(STEWARD, participation_id, new)
        assert federation.coordinator.node_grant(old) is None
        assert federation.coordinator.node_grant(new) is not None
        assert federation.participation(participation_id).client is ClientState.OFFLINE

    async def test_the_audit_log_says_whose_decision_and_which_key(self, federation: Federation) -> None:
        project_id, participation_id = await federation.supernode_project()
        key = new_key()
        federation.coordinator.register_node(STEWARD, participation_id, key)
        federation.coordinator.register_node(STEWARD, participation_id, key)  # again: nothing to note
        federation.coordinator.remove_node(STEWARD, participation_id)
        lines = federation.store.audit_lines()
        noted = [(one.actor, one.action, one.project_id, one.detail) for one in lines[-2:]]
        detail = {"participation": participation_id, "key": fingerprint(key)}
        assert noted == [
            (STEWARD.name, "node-registered", project_id, detail),
            (STEWARD.name, "node-removed", project_id, detail),
        ]
        assert fault(lines) is None

    async def test_nobody_else_may(self, federation: Federation) -> None:
        _, participation_id = await federation.supernode_project()
        ask = federation.coordinator
        for who, refusal in ((DORA, Forbidden), (ANNA, NotFound), (STEWARDS["b"], NotFound)):
            for call in (
                lambda who: ask.register_node(who, participation_id, new_key()),
                lambda who: ask.register_node(who, participation_id, b"no key"),  # who asks is looked at first
                lambda who: ask.remove_node(who, participation_id),
                lambda who: ask.site_node(who, participation_id),
            ):
                with pytest.raises(refusal):
                    call(who)
            assert ask.site_nodes(who) == ()
        with pytest.raises(Forbidden, match="no notebook servers"):
            ask.report_client(DORA, participation_id, ClientState.READY, "")

    async def test_a_steward_of_a_site_with_servers_is_told_that_its_client_has_a_key(
        self, federation: Federation
    ) -> None:
        _, _, participation_id = await federation.ready_project()
        before = federation.participation(participation_id).public_key
        with pytest.raises(Forbidden, match="key of its own") as refused:
            federation.coordinator.register_node(STEWARDS["b"], participation_id, new_key())
        assert "bert" in refused.value.next_step
        with pytest.raises(Forbidden, match="key of its own"):
            federation.coordinator.remove_node(STEWARDS["b"], participation_id)
        assert federation.participation(participation_id).public_key == before
        assert federation.coordinator.site_nodes(STEWARDS["b"]) == ()

    async def test_a_key_in_use_elsewhere_is_refused(self, federation: Federation) -> None:
        _, first, _ = await federation.ready_project()
        _, participation_id = await federation.supernode_project()
        taken = federation.participation(first).public_key
        assert taken is not None
        with pytest.raises(Conflict, match="uses this key"):
            federation.coordinator.register_node(STEWARD, participation_id, taken)

    async def test_the_researcher_has_nothing_to_run(self, federation: Federation) -> None:
        await federation.supernode_project()
        assert federation.coordinator.assignments(DORA).assignments == ()

    async def test_only_what_is_approved_may_be_fetched(self, federation: Federation) -> None:
        project_id, participation_id = await federation.supernode_project()
        key = new_key()
        federation.coordinator.register_node(STEWARD, participation_id, key)
        first = federation.newest_hash(project_id)
        federation.add_app(project_id, b"app 2")
        grant = federation.coordinator.node_grant(key)
        assert grant is not None
        assert grant.fab_hashes == frozenset({first})
        federation.decide(project_id, "d")
        grant = federation.coordinator.node_grant(key)
        assert grant is not None
        assert grant.fab_hashes == frozenset({first, federation.newest_hash(project_id)})

    async def test_a_client_kernel_checks_for_itself(self, federation: Federation) -> None:
        _, participation_id, _ = await federation.ready_project()
        key = federation.participation(participation_id).public_key
        assert key is not None
        grant = federation.coordinator.node_grant(key)
        assert grant is not None
        assert grant.fab_hashes is None

    async def test_without_an_approval_the_key_opens_nothing(self, federation: Federation) -> None:
        project_id, participation_id = await federation.supernode_project()
        key = new_key()
        federation.coordinator.register_node(STEWARD, participation_id, key)
        federation.decide(project_id, "d", ApprovalState.REVOKED)
        assert federation.coordinator.node_grant(key) is None

    async def test_members_see_the_key_and_cannot_change_it(self, federation: Federation) -> None:
        project_id, participation_id = await federation.supernode_project()
        key = new_key()
        federation.coordinator.register_node(STEWARD, participation_id, key)
        for member in (ANNA, DORA):
            (node,) = federation.coordinator.project_nodes(member, project_id)
            assert (node.fingerprint, node.may_change) == (fingerprint(key), False)
        with pytest.raises(NotFound):
            federation.coordinator.project_nodes(STEWARD, project_id)  # no member

    async def test_who_leaves_takes_the_node_along(self, federation: Federation) -> None:
        project_id, participation_id = await federation.supernode_project()
        key = new_key()
        federation.coordinator.register_node(STEWARD, participation_id, key)
        federation.coordinator.leave(DORA, project_id)
        assert federation.coordinator.node_grant(key) is None
        assert federation.coordinator.site_nodes(STEWARD) == ()
        with pytest.raises(NotFound):
            federation.coordinator.register_node(STEWARD, participation_id, new_key())

    async def test_those_without_a_key_are_listed_first(self, federation: Federation) -> None:
        _, first = await federation.supernode_project()
        federation.coordinator.register_node(STEWARD, first, new_key())
        _, second = await federation.supernode_project()
        assert [one.participation_id for one in federation.coordinator.site_nodes(STEWARD)] == [second, first]
