"""Notices: what they say and to whom, a real mail server and a real HTTP receiver, and what a failure does not do."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.message import Message
from email.policy import default
from functools import partial
from pathlib import Path

import pytest
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, Session
from federator.contract import ApprovalState, RunStatus, Site
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application, RequestHandler

from hub_service.domain import notices
from hub_service.domain.notices import Notice, NoticeKind
from hub_service.domain.projects import Project
from hub_service.notices.endings import Endings
from hub_service.notices.mail import Mail, MailServer, Security, addresses_by
from hub_service.notices.outbox import MOST_WAITING, TRIES, Delivery, NotSent, Outbox, Undelivered
from hub_service.notices.webhook import SIGNATURE_HEADER, Receiver, Webhook
from tests.fakes.federation import ANNA, SITES, STEWARDS, Federation

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
NOTICE = Notice(
    NoticeKind.APPROVAL_ASKED,
    "p1",
    "Lungs ü",
    "Lungs ü: version 2 waits for approval",
    "bert asks to run version 2.",
    users=("anna", "bea@elsewhere.example"),
    site="a",
    page=("approvals", "p1"),
)


def link(notice: Notice) -> str:
    return "https://hub.example/services/federation/" + "/".join(notice.page)


class Postbox:
    """What a real SMTP server has taken. It refuses who is in `refused`, with that status, once or for good."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, Message]] = []
        self.refused: dict[str, list[str]] = {}
        self.arrived = asyncio.Event()

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's own name
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if self.refused.get(address):
            return self.refused[address].pop(0)
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        content = envelope.content
        assert isinstance(content, bytes)
        self.taken.append((envelope.rcpt_tos[0], message_from_bytes(content, policy=default)))
        self.arrived.set()
        return "250 OK"

    async def has(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.taken) < count:
                self.arrived.clear()
                await self.arrived.wait()


@pytest.fixture
async def postbox() -> Postbox:
    return Postbox()


@pytest.fixture
async def mail(postbox: Postbox) -> AsyncIterator[Mail]:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(postbox, hostname="mail.hub.example", loop=loop), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    told = MailServer("127.0.0.1", port, Security.NONE, "Federation <federation@hub.example>")
    yield Mail(told, addresses_by("{user}@hub.example", SITES), lambda: NOON)
    server.close()
    await server.wait_closed()


@asynccontextmanager
async def sending(outbox: Outbox) -> AsyncIterator[None]:
    tasks = [asyncio.ensure_future(run()) for run in outbox.runs().values()]
    try:
        yield
    finally:
        await outbox.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Receiving(RequestHandler):
    """A webhook's receiver: notes what it got and answers with the next status."""

    def initialize(self, got: list[tuple[dict[str, str], bytes]], statuses: list[int], news: asyncio.Event) -> None:
        self._got, self._statuses, self._news = got, statuses, news

    def post(self) -> None:
        self._got.append((dict(self.request.headers), self.request.body))
        self.set_status(self._statuses.pop(0) if self._statuses else 204)
        self.set_header("Location", "/hook")  # counts for a redirect, which nobody may follow
        self._news.set()


class HttpReceiver:
    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.statuses: list[int] = []
        self.news = asyncio.Event()
        parts = {"got": self.got, "statuses": self.statuses, "news": self.news}
        self.server = HTTPServer(Application([("/hook", Receiving, parts)], log_function=lambda _: None))
        sock, port = bind_unused_port()
        self.server.add_sockets([sock])
        self.url = f"http://127.0.0.1:{port}/hook"

    async def has(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.got) < count:
                self.news.clear()
                await self.news.wait()


@pytest.fixture
async def receiver() -> AsyncIterator[HttpReceiver]:
    receiver = HttpReceiver()
    yield receiver
    receiver.server.stop()
    await receiver.server.close_all_connections()


async def test_each_recipient_gets_a_mail_of_their_own(postbox: Postbox, mail: Mail) -> None:
    mail = Mail(mail._server, addresses_by("{user}@hub.example", named_sites()), lambda: NOON)
    outbox = Outbox([mail], link)
    async with sending(outbox):
        outbox.tell(NOTICE)
        await postbox.has(3)
    assert [to for to, _ in postbox.taken] == ["anna@hub.example", "bea@elsewhere.example", "help@a.example"]
    for to, message in postbox.taken:
        assert message["To"] == to
        assert message["From"] == "Federation <federation@hub.example>"
        assert message["Subject"] == "[federation] Lungs ü: version 2 waits for approval"
        assert message["Auto-Submitted"] == "auto-generated"
        text = message.get_content()  # type: ignore[attr-defined]
        assert text.replace("\r\n", "\n") == (
            "bert asks to run version 2.\n\nhttps://hub.example/services/federation/approvals/p1\n"
        )


def named_sites() -> dict[str, Site]:
    return {"a": replace(SITES["a"], contact="Help Desk <help@a.example>")}


async def test_a_recipient_that_is_refused_keeps_nobody_waiting(
    postbox: Postbox, mail: Mail, caplog: pytest.LogCaptureFixture
) -> None:
    postbox.refused = {"anna@hub.example": ["451 later"], "bea@elsewhere.example": ["550 no such person"]}
    outbox = Outbox([mail], link, first_wait_s=0.01)
    with caplog.at_level(logging.WARNING):
        async with sending(outbox):
            outbox.tell(replace(NOTICE, site=""))
            outbox.tell(replace(NOTICE, users=("carl",), site=""))
            await postbox.has(2)
    assert sorted(to for to, _ in postbox.taken) == ["anna@hub.example", "carl@hub.example"]
    assert sorted(caplog.messages) == ["mail: a recipient is refused (451)", "mail: a recipient is refused (550)"]
    assert "anna" not in caplog.text


async def test_a_mail_server_that_is_away_is_asked_again() -> None:
    sock, port = bind_unused_port()
    sock.close()
    server = MailServer("127.0.0.1", port, Security.NONE, "f@hub.example", "robot", "the password")
    (delivery,) = Mail(server, lambda _: ["anna@hub.example"], lambda: NOON).deliveries(NOTICE, "")
    assert "the password" not in repr(server)
    with pytest.raises(NotSent, match="does not answer") as caught:
        async with asyncio.timeout(30):
            await delivery()
    assert caught.value.again


async def test_the_server_must_speak_tls_where_that_was_asked_for(postbox: Postbox, mail: Mail) -> None:
    for security in (Security.STARTTLS, Security.TLS):
        server = replace(mail._server, security=security)
        (delivery,) = Mail(server, lambda _: ["anna@hub.example"], lambda: NOON).deliveries(NOTICE, "")
        with pytest.raises(NotSent):
            await delivery()
    assert not postbox.taken


async def test_a_password_that_smtp_cannot_say_is_told_without_it(mail: Mail) -> None:
    class TakesLogins(SMTP):
        def __init__(self, handler: object, **options: object) -> None:
            super().__init__(
                handler, auth_require_tls=False, authenticator=lambda *_: AuthResult(success=True), **options
            )

    server = await asyncio.get_running_loop().create_server(lambda: TakesLogins(Postbox()), "127.0.0.1", 0)
    told = replace(mail._server, port=server.sockets[0].getsockname()[1], user="robot", password="Schlüssel")
    (delivery,) = Mail(told, lambda _: ["anna@hub.example"], lambda: NOON).deliveries(NOTICE, "")
    with pytest.raises(NotSent, match="cannot be written in SMTP") as caught:
        await delivery()
    assert not caught.value.again
    assert "Schl" not in str(caught.value)
    server.close()
    await server.wait_closed()


async def test_an_address_that_is_none_is_told() -> None:
    webhook = Webhook(Receiver("https://hooks.example:port/secret"), lambda: NOON)
    (delivery,) = webhook.deliveries(NOTICE, "")
    with pytest.raises(NotSent, match="address cannot be read") as caught:
        await delivery()
    await webhook.close()
    assert not caught.value.again
    assert "secret" not in str(caught.value)


async def test_the_webhook_gets_signed_json(receiver: HttpReceiver) -> None:
    webhook = Webhook(Receiver(receiver.url, "shared key"), lambda: NOON)
    outbox = Outbox([webhook], link)
    async with sending(outbox):
        outbox.tell(NOTICE)
        await receiver.has(1)
    await webhook.close()
    headers, body = receiver.got[0]
    assert headers[SIGNATURE_HEADER] == "sha256=" + hmac.new(b"shared key", body, hashlib.sha256).hexdigest()
    assert json.loads(body) == {
        "kind": "approval-asked",
        "project_id": "p1",
        "project": "Lungs ü",
        "site": "a",
        "users": ["anna", "bea@elsewhere.example"],
        "subject": "Lungs ü: version 2 waits for approval",
        "text": "bert asks to run version 2.",
        "link": "https://hub.example/services/federation/approvals/p1",
        "at": "2026-11-23T12:00:00+00:00",
    }
    assert receiver.url not in repr(webhook._receiver)


@pytest.mark.parametrize(("statuses", "posts"), [([503, 429], 3), ([400], 1), ([302], 1), ([307], 1)])
async def test_only_what_may_work_later_is_tried_again(
    receiver: HttpReceiver, caplog: pytest.LogCaptureFixture, statuses: list[int], posts: int
) -> None:
    receiver.statuses += statuses
    webhook = Webhook(Receiver(receiver.url), lambda: NOON)
    outbox = Outbox([webhook], link, first_wait_s=0.01)
    async with sending(outbox):
        outbox.tell(NOTICE)
        await receiver.has(posts)
    await webhook.close()
    assert len(receiver.got) == posts
    assert SIGNATURE_HEADER not in receiver.got[0][0]
    assert f"webhook: the receiver refuses (status {statuses[0]})" in caplog.messages


class Broken:
    """A channel that never works."""

    name = "broken"

    def __init__(self) -> None:
        self.tried = 0
        self.worn_out = asyncio.Event()

    def deliveries(self, notice: Notice, link: str) -> Sequence[Delivery]:
        return [self._fail]

    async def _fail(self) -> None:
        self.tried += 1
        if self.tried == TRIES:
            self.worn_out.set()
        raise NotSent("it is broken", again=True)


async def test_what_never_works_is_logged_once_and_given_up(caplog: pytest.LogCaptureFixture) -> None:
    channel = Broken()
    outbox = Outbox([channel], link, first_wait_s=0.0001)
    async with sending(outbox):
        outbox.tell(NOTICE)
        async with asyncio.timeout(10):
            await channel.worn_out.wait()
    assert channel.tried == TRIES
    assert caplog.messages == ["broken: it is broken"]


class Mistaken(Broken):
    """A mistake of ours, in the notice of run 1."""

    name = "mistaken"

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[str] = []
        self.news = asyncio.Event()

    def deliveries(self, notice: Notice, link: str) -> Sequence[Delivery]:
        return [partial(self._send, notice.subject)]

    async def _send(self, subject: str) -> None:
        if subject == "run 1":
            self.tried += 1
            raise RuntimeError("a mistake")
        self.sent.append(subject)
        self.news.set()


async def test_a_mistake_of_ours_in_one_notice_holds_up_no_other() -> None:
    channel = Mistaken()
    outbox = Outbox([channel], link, first_wait_s=0.0)
    for subject in ("run 1", "run 2"):
        outbox.tell(replace(NOTICE, subject=subject))
    run = outbox.runs()["mistaken"]
    with pytest.raises(RuntimeError):
        await run()
    for _ in range(TRIES - 1):  # as the service does with a task that broke
        with pytest.raises(RuntimeError):
            await run()
    async with sending(outbox):
        pass
    assert channel.sent == ["run 2"]
    assert channel.tried == TRIES
    assert outbox.undelivered() == [Undelivered("mistaken", 1, "the service made a mistake")]


async def test_a_recipient_who_is_refused_for_now_keeps_nobody_waiting_at_all(postbox: Postbox, mail: Mail) -> None:
    postbox.refused = {"anna@hub.example": ["451 later"]}
    outbox = Outbox([mail], link, first_wait_s=3600.0)
    async with sending(outbox):
        outbox.tell(replace(NOTICE, users=("anna", "bert"), site=""))
        await postbox.has(1)
        outbox.tell(replace(NOTICE, users=("carl",), site=""))
        await postbox.has(2)
    assert outbox.waiting == 1
    assert [to for to, _ in postbox.taken] == ["bert@hub.example", "carl@hub.example"]


class Mended(Broken):
    """A channel that works again once it was given up."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = asyncio.Event()

    async def _fail(self) -> None:
        if self.worn_out.is_set():
            self.sent.set()
            return
        await super()._fail()


async def test_what_was_given_up_is_sent_again_when_an_administrator_asks() -> None:
    channel = Mended()
    outbox = Outbox([channel], link, first_wait_s=0.0001)
    assert (outbox.waiting, outbox.undelivered(), outbox.send_again()) == (0, [], 0)
    async with sending(outbox):
        outbox.tell(NOTICE)
        assert outbox.waiting == 1
        async with asyncio.timeout(10):
            await channel.worn_out.wait()
            assert outbox.undelivered() == [Undelivered("broken", 1, "it is broken")]
            assert outbox.send_again() == 1
            await channel.sent.wait()
    assert (outbox.waiting, outbox.undelivered(), outbox.send_again()) == (0, [], 0)


async def test_the_queue_has_an_end(caplog: pytest.LogCaptureFixture) -> None:
    outbox = Outbox([Broken()], link)
    for _ in range(MOST_WAITING + 5):
        outbox.tell(NOTICE)
    assert caplog.messages == ["broken: too many wait; the oldest are given up"]


async def test_with_no_channel_nothing_waits() -> None:
    outbox = Outbox([], link)
    async with sending(outbox):
        outbox.tell(NOTICE)


def test_whom_there_is_no_address_for_is_told_nothing() -> None:
    assert addresses_by("", {})(replace(NOTICE, users=("anna", "bert"))) == ()
    by_template = addresses_by("{user}@hub.example", {})
    assert by_template(replace(NOTICE, users=("a b", "x\nBcc: y@z.example", "ü", "<c@d.example>"), site="a")) == ()


class TestEndings:
    async def test_each_is_told_once_before_its_end(self, tmp_path: Path) -> None:
        told: list[Notice] = []
        federation = Federation(tmp_path)
        project_id, _, _ = await federation.ready_project()
        fab_hash = federation.newest_hash(project_id)
        endings = Endings(federation.coordinator.approvals_ending, told.append, timedelta(days=7))

        def approve(days: int) -> None:
            ends = federation.clock.now + timedelta(days=days)
            federation.coordinator.decide(
                STEWARDS["a"], project_id, fab_hash, "scans", "a", ApprovalState.APPROVED, "", ends
            )

        approve(10)
        endings.look()
        assert not told
        federation.clock.advance(days=4)
        endings.look()
        endings.look()
        (notice,) = told
        assert (notice.kind, notice.users, notice.site) == (NoticeKind.APPROVAL_ENDING, ("anna",), "a")
        approve(5)
        endings.look()
        assert len(told) == 2
        federation.clock.advance(days=6)
        endings.look()
        assert len(told) == 2
        federation.coordinator.leave(ANNA, project_id)
        assert federation.coordinator.approvals_ending(timedelta(days=7)) == {}


async def test_no_notice_holds_code_or_what_somebody_typed(tmp_path: Path) -> None:
    told: list[Notice] = []
    federation = Federation(tmp_path, tell=told.append)
    project_id, _, _ = await federation.ready_project()
    fab_hash = federation.newest_hash(project_id)
    federation.coordinator.decide(
        STEWARDS["a"], project_id, fab_hash, "scans", "a", ApprovalState.REVOKED, "patient 4711 asked"
    )
    federation.decide(project_id, "a")
    run_id = federation.coordinator.start_run(ANNA, project_id, 2, False).id
    run = federation.store.run(run_id)
    project = federation.store.project(project_id)
    assert isinstance(project, Project)
    assert run is not None
    failed = replace(run, status=RunStatus.FAILED, message="KeyError: 4711", round=1, started_by="bert")
    ended = notices.run_ended(project, failed)
    assert (ended.users, ended.subject) == (("bert", "anna"), "Lungs: run 1 has failed")
    text = "".join(one.subject + one.text for one in [*told, ended])
    for forbidden in ("4711", "build_model", "import torch", "for a test"):
        assert forbidden not in text
    assert {one.kind for one in told} >= {
        NoticeKind.APPROVAL_ASKED,
        NoticeKind.APPROVAL_DECIDED,
        NoticeKind.INVITED,
    }
