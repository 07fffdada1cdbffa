"""Notices by mail. Each recipient gets a message of their own: no address is shown to others."""

from __future__ import annotations

import asyncio
import re
import smtplib
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.utils import format_datetime, parseaddr
from enum import StrEnum
from functools import partial

from federator.contract import Site

from hub_service.domain.clock import Clock
from hub_service.domain.notices import Notice
from hub_service.notices.outbox import Delivery, NotSent

_TIMEOUT_S = 10.0
_ADDRESS = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]+@[A-Za-z0-9.-]+")
_PERMANENT = 500  # SMTP: this status and above


class Security(StrEnum):
    NONE = "none"  # a relay on the same machine or network
    STARTTLS = "starttls"
    TLS = "tls"


@dataclass(frozen=True, slots=True)
class MailServer:
    """Where mail is handed in. The password is in no `repr`."""

    host: str
    port: int
    security: Security
    sender: str
    user: str = ""
    password: str = field(default="", repr=False)


Addresses = Callable[[Notice], Sequence[str]]


def addresses_by(template: str, sites: Mapping[str, Site]) -> Addresses:
    """Addresses of whom a notice is for.

    Args:
        template: makes an address of a Hub user's name, such as "{user}@hospital.example"; a name that is an address
            is taken as it is. "" for users who are told nothing.
        sites: by slug; a site's stewards are reached by the address in its `contact`.
    """

    def addresses(notice: Notice) -> Sequence[str]:
        told = [user if "@" in user else template.replace("{user}", user) for user in notice.users]
        if notice.site in sites:
            told.append(parseaddr(sites[notice.site].contact)[1])
        return tuple(dict.fromkeys(one for one in told if _ADDRESS.fullmatch(one)))

    return addresses


class Mail:
    """A `Channel`."""

    name = "mail"

    def __init__(self, server: MailServer, addresses: Addresses, clock: Clock) -> None:
        self._server = server
        self._addresses = addresses
        self._clock = clock

    def deliveries(self, notice: Notice, link: str) -> Sequence[Delivery]:
        return [partial(self._deliver, self._message(notice, link, to)) for to in self._addresses(notice)]

    def _message(self, notice: Notice, link: str, to: str) -> EmailMessage:
        message = EmailMessage()
        message["From"] = self._server.sender
        message["To"] = to
        message["Subject"] = f"[federation] {notice.subject}"
        message["Date"] = format_datetime(self._clock())
        message["Auto-Submitted"] = "auto-generated"  # RFC 3834: nobody's absence answers it
        message.set_content(f"{notice.text}\n\n{link}\n")
        return message

    async def _deliver(self, message: EmailMessage) -> None:
        await asyncio.to_thread(self._send, message)

    def _send(self, message: EmailMessage) -> None:
        try:
            with self._connection() as smtp:
                smtp.send_message(message)
        except smtplib.SMTPRecipientsRefused as error:
            codes = {code for code, _ in error.recipients.values()}
            raise NotSent(f"a recipient is refused ({_said(codes)})", again=max(codes) < _PERMANENT) from None
        except smtplib.SMTPAuthenticationError as error:
            raise NotSent(f"the mail server does not take our password ({error.smtp_code})", again=True) from None
        except smtplib.SMTPResponseException as error:
            text = f"the mail server refuses ({error.smtp_code})"
            raise NotSent(text, again=error.smtp_code < _PERMANENT) from None
        except (smtplib.SMTPException, OSError) as error:
            raise NotSent(f"the mail server does not answer ({type(error).__name__})", again=True) from None
        except ValueError:  # such as a password that SMTP has no letters for: its text may hold it
            raise NotSent(
                "our account at the mail server, or an address, cannot be written in SMTP", again=False
            ) from None

    def _connection(self) -> smtplib.SMTP:
        server = self._server
        if server.security is Security.TLS:
            smtp: smtplib.SMTP = smtplib.SMTP_SSL(
                server.host, server.port, timeout=_TIMEOUT_S, context=ssl.create_default_context()
            )
        else:
            smtp = smtplib.SMTP(server.host, server.port, timeout=_TIMEOUT_S)
        try:
            if server.security is Security.STARTTLS:
                smtp.starttls(context=ssl.create_default_context())
            if server.user:
                smtp.login(server.user, server.password)
        except (smtplib.SMTPException, OSError, ValueError):
            smtp.close()
            raise
        return smtp


def _said(codes: set[int]) -> str:
    return ", ".join(map(str, sorted(codes)))
