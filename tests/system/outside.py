"""What a deployment has secrets for: a PostgreSQL, an S3 storage, a mail server and a webhook's receiver, all real.

The mail server and the receiver refuse once, so that the service has something to complain of.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import boto3
import psycopg
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from federator.ports import free_port
from moto.server import ThreadedMotoServer
from psycopg.sql import SQL, Identifier

from spawner.deployment import (
    METRICS_TOKEN_VARIABLE,
    S3_KEY_VARIABLE,
    S3_SECRET_VARIABLE,
    SMTP_PASSWORD_VARIABLE,
    WEBHOOK_KEY_VARIABLE,
)
from tests.fakes.postgresql import Cluster

ALL_ROWS = SQL("SELECT t::text, t.* FROM {} AS t")
BUCKET, DATABASE, USER = "artifacts-of-a-journey", "journey", "traveller"


def _secrets() -> dict[str, str]:
    names = (
        SMTP_PASSWORD_VARIABLE,
        WEBHOOK_KEY_VARIABLE,
        S3_KEY_VARIABLE,
        S3_SECRET_VARIABLE,
        METRICS_TOKEN_VARIABLE,
        "PGPASSWORD",
    )
    return {name: secrets.token_hex(20) for name in names}


@dataclass
class Outside:
    """Where they are, and what was used there."""

    cluster: Cluster
    variables: Mapping[str, str] = field(default_factory=_secrets)  # of the Hub's environment
    webhook_path: str = field(default_factory=lambda: f"/{secrets.token_hex(20)}")
    logins: list[bool] = field(default_factory=list)  # at the mail server: whether it was the right password
    signed: list[bool] = field(default_factory=list)  # posts to the webhook's secret address

    def __post_init__(self) -> None:
        self._refused: object = None
        self.database = f"postgresql://{USER}@/{DATABASE}?host={self.cluster.folder}"

    def in_the_file(self, text: str) -> str:
        """A deployment file with all of them."""
        added = f'[hub]\ndatabase = "{self.database}"\nartifacts = "s3://{BUCKET}/of/a/hub"\n'
        added += f'artifacts_endpoint = "{self.storage}"\n'
        notices = '\n[notices]\naddress = "{user}@hub.example"\n' + f'webhook = "{self.webhook}"\n'
        notices += f'[notices.smtp]\nhost = "127.0.0.1"\nport = {self.mail_port}\nsecurity = "none"\n'
        notices += f'sender = "Federation <federation@hub.example>"\nuser = "{USER}"\n'
        return text.replace("[hub]\n", added, 1) + notices

    def rows(self) -> str:
        """All that the database has, in PostgreSQL's own form and in Python's."""
        with psycopg.connect(host=str(self.cluster.folder), user="tester", dbname=DATABASE) as connection:
            tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
            found = [row for (name,) in tables for row in connection.execute(ALL_ROWS.format(Identifier(name)))]
        return "\n".join(map(repr, found))

    def objects(self) -> dict[str, bytes]:
        found = self.client.list_objects_v2(Bucket=BUCKET).get("Contents", [])
        return {one["Key"]: self.client.get_object(Bucket=BUCKET, Key=one["Key"])["Body"].read() for one in found}

    @contextmanager
    def open(self) -> Iterator[Outside]:
        self.cluster.new_database(DATABASE, "ENCODING 'UTF8' LC_COLLATE 'C.UTF-8' LC_CTYPE 'C.UTF-8'")
        self.cluster.demand_password(USER, self.variables["PGPASSWORD"])
        with self._storage_open(), self._mail_open(), self._webhook_open():
            yield self

    @contextmanager
    def _storage_open(self) -> Iterator[None]:
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        self.storage = f"http://{host}:{port}"
        self.client = boto3.client(
            "s3",
            endpoint_url=self.storage,
            aws_access_key_id="tester",
            aws_secret_access_key="tester",
            region_name="us-east-1",
        )
        self.client.create_bucket(Bucket=BUCKET)
        yield
        self.client.close()
        server.stop()

    @contextmanager
    def _mail_open(self) -> Iterator[None]:
        self.mail_port = free_port()  # the controller cannot tell which one it was given
        controller = Controller(
            Postbox(), "127.0.0.1", self.mail_port, auth_require_tls=False, authenticator=self._log_in
        )
        controller.start()
        yield
        controller.stop()

    def _log_in(self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, told: object) -> AuthResult:
        assert isinstance(told, LoginPassword)
        right = told == LoginPassword(USER.encode(), self.variables[SMTP_PASSWORD_VARIABLE].encode())
        self.logins.append(right)
        self._refused = self._refused or session.peer  # in the first connection, by whatever mechanism
        return AuthResult(success=right and session.peer != self._refused, handled=False)

    @contextmanager
    def _webhook_open(self) -> Iterator[None]:
        outside = self

        class Receiving(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                outside.signed.append(self.path == outside.webhook_path and "sha256=" in str(self.headers))
                refused = len(outside.signed) == 1
                self.send_response(HTTPStatus.SERVICE_UNAVAILABLE if refused else HTTPStatus.NO_CONTENT)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Nobody reads it."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Receiving)
        self.webhook = f"http://127.0.0.1:{server.server_port}{self.webhook_path}"
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield
        server.shutdown()
        thread.join()
        server.server_close()


class Postbox:
    """Takes every mail."""

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        return "250 OK"
