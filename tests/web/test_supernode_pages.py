"""Where a data steward of a site without notebook servers meets its SuperNode, and what its people read."""

from __future__ import annotations

import logging
import re

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from federator.contract import ApprovalState

from hub_service.node_keys import fingerprint
from tests.fakes.web_world import CELL, World, public_key
from tests.web.test_page_forms import alerts, logged_in, token


def plain_text(page: httpx.Response) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", page.text))


async def test_the_empty_state_says_what_to_run_at_the_site(world: World) -> None:
    _, participation_id = await world.supernode_project()
    async with logged_in(world, "stan") as browser:
        text = plain_text(await browser.get(f"participations/{participation_id}/node"))
    assert "SuperNode: no key yet." in text
    assert "ssh-keygen -t ecdsa -b 384" in text
    assert f"--superlink {httpx.URL(world.url).netloc.decode()} " in text
    assert "/data/slides" in text
    assert "came without TLS" in text
    assert "Remove the key" not in text


@pytest.mark.parametrize(
    ("headers", "dialled"),
    [
        ({"Host": "hub.example", "X-Forwarded-Proto": "https,http"}, "hub.example:443"),
        ({"Host": "hub.example:8443", "X-Forwarded-Proto": "https"}, "hub.example:8443"),
        ({"Host": "hub.example"}, "hub.example:80"),
        ({"Host": "[2001:db8::1]", "X-Scheme": "https"}, "[2001:db8::1]:443"),
    ],
)
async def test_a_supernode_dials_where_the_browser_found_the_hub(
    world: World, headers: dict[str, str], dialled: str
) -> None:
    _, participation_id = await world.supernode_project()
    async with logged_in(world, "stan") as browser:
        text = plain_text(await browser.get(f"participations/{participation_id}/node", headers=headers))
    assert f"--superlink {dialled} " in text
    assert ("came without TLS" in text) is dialled.endswith(":80")


async def test_a_key_is_registered_replaced_and_removed_by_forms(world: World) -> None:
    _, participation_id = await world.supernode_project()
    page = f"participations/{participation_id}/node"
    async with logged_in(world, "stan") as browser:
        waiting = await browser.get("approvals")
        assert f'href="/services/federation/{page}"' in waiting.text
        assert "no key yet" in waiting.text
        for key in (public_key(), public_key()):
            registered = await browser.post(page, data={"public_key": f"\r\n{key}\r\n", **token(browser)})
            assert registered.history[0].status_code == 303
            assert "The key is registered." in alerts(registered)
            assert f"{fingerprint(key.encode())} registered by stan" in plain_text(registered)
        assert "registered by stan" in (await browser.get("approvals")).text
        removed = await browser.post(f"{page}/remove", data=token(browser))
        assert "The key is removed." in alerts(removed)
        assert "no key yet" in removed.text
        again = await browser.post(f"{page}/remove", data=token(browser))
        assert again.status_code == 409
        assert "no key to remove" in alerts(again)


async def test_a_private_key_is_neither_shown_again_nor_logged_nor_kept(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    _, participation_id = await world.supernode_project()
    key = ec.generate_private_key(ec.SECP384R1())
    pasted = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()
    secret = pasted.splitlines()[2]
    with caplog.at_level(logging.DEBUG):
        async with logged_in(world, "stan") as browser:
            data = {"public_key": pasted, **token(browser)}
            answer = await browser.post(f"participations/{participation_id}/node", data=data)
        async with world.api("stan") as api:
            sent = await api.put(f"api/participations/{participation_id}/node", json={"public_key": pasted})
    assert answer.status_code == sent.status_code == 400
    assert "This is a private key." in alerts(answer)
    assert "private key" in sent.json()["message"]
    assert secret not in answer.text + sent.text + caplog.text
    assert secret not in repr(world.store.audit_lines()) + repr(world.store.participation(participation_id))


@pytest.mark.parametrize("pasted", ["", "schlüssel", "ssh-ed25519 AAAAC3Nz", "x" * 3000])
async def test_what_is_no_key_is_refused_at_the_form(world: World, pasted: str) -> None:
    _, participation_id = await world.supernode_project()
    async with logged_in(world, "stan") as browser:
        data = {"public_key": pasted, **token(browser)}
        answer = await browser.post(f"participations/{participation_id}/node", data=data)
    assert answer.status_code == 400
    assert "key" in alerts(answer)


async def test_the_review_page_leads_on_to_the_key(world: World) -> None:
    project_id, participation_id = await world.supernode_project()
    fab_hash = world.add_app(project_id, source=CELL + "# newer")
    review = f"approvals/{project_id}/{fab_hash}/harbour/slides"
    form = f'action="/services/federation/participations/{participation_id}/node"'
    async with logged_in(world, "stan") as browser:
        assert form in (await browser.get(review)).text
        approved = await browser.post(review, data={"state": "approved", **token(browser)})
        assert "Now register the key of your site's SuperNode." in alerts(approved)
        world.coordinator.register_node(world.principal("stan"), participation_id, public_key().encode())
        revoked = await browser.post(review, data={"state": "revoked", **token(browser)})
        assert "SuperNode" not in alerts(revoked)


async def test_a_review_at_a_site_with_servers_speaks_of_no_supernode(world: World) -> None:
    project_id, fab_hash = await world.shared_project()
    async with logged_in(world, "sue") as browser:
        assert "SuperNode" not in (await browser.get(f"approvals/{project_id}/{fab_hash}/south/slides")).text
        assert "SuperNode" not in (await browser.get("approvals")).text


async def test_members_see_the_key_and_only_the_steward_its_form(world: World) -> None:
    project_id, participation_id = await world.supernode_project()
    key = public_key()
    world.coordinator.register_node(world.principal("stan"), participation_id, key.encode())
    await world.coordinator.invite(world.principal("ada"), project_id, "stan")
    for name, may in (("ada", False), ("hana", False), ("stan", True)):
        async with logged_in(world, name) as browser:
            page = await browser.get(f"projects/{project_id}")
        assert f"{fingerprint(key.encode())} registered by stan" in plain_text(page)
        assert ("Replace or remove its key" in page.text) is may, name


async def test_nobody_is_told_to_start_a_server_that_they_do_not_have(world: World) -> None:
    project_id, _ = await world.supernode_project()
    world.coordinator.join(world.principal("ada"), project_id, "slides")
    fab_hash = world.store.app_versions(project_id)[-1].fab_hash
    world.coordinator.decide(world.principal("norma"), project_id, fab_hash, "slides", "north", ApprovalState.APPROVED)
    for name, has_server in (("ada", True), ("hana", False)):
        async with logged_in(world, name) as browser:
            text = plain_text(await browser.get(f"projects/{project_id}"))
            assert ("start yours" in text) is has_server, name
            assert "its data steward registers the key" in text
            for page in ("", "projects/new", "approvals"):
                assert "start your" not in (await browser.get(page)).text.lower()
