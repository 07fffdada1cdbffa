"""What the Hub and the deployment tell the service, from its environment."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

from federator.contract import Dataset, Site
from federator.logs import FORMAT_VARIABLE, LogFormat

from hub_service.aggregators.base import Limits
from hub_service.artifacts import CACHE_BYTES, Artifacts
from hub_service.domain.errors import Invalid
from hub_service.domain.quotas import Quotas
from hub_service.notices.mail import MailServer, Security
from hub_service.notices.webhook import Receiver
from hub_service.object_storage import Bucket, ObjectStorage
from hub_service.results.models import KEEP_BYTES

DEFAULT_ENGINE = "unix:///var/run/docker.sock"
STATE_DIR = "FEDERATION_STATE_DIR"
DATABASE_URL = "FEDERATION_DATABASE_URL"


@dataclass(frozen=True, slots=True)
class AggregatorEngine:
    """The Docker engine that aggregators run on. It shares a file system with the service.

    Attributes:
        address: unix:///path or tcp://host:port.
        tls_dir: folder with ca.pem, cert.pem and key.pem, for an engine that asks for TLS.
        image: the aggregators' image, which is on the engine already.
        limits: what each container may use.
    """

    address: str
    tls_dir: Path | None
    image: str
    limits: Limits


@dataclass(frozen=True, slots=True)
class NoticeSettings:
    """How people are told what they do not see.

    Attributes:
        origin: scheme, host and port of the Hub, for links.
        address: makes a mail address of a Hub user's name, such as "{user}@hospital.example"; "" for none.
        ending_days: how long before its end an approval is told of.
        mail, webhook: None where that way is not set up.
    """

    origin: str = ""
    address: str = ""
    ending_days: float = 7.0
    mail: MailServer | None = None
    webhook: Receiver | None = None


@dataclass(frozen=True, slots=True)
class ArtifactSettings:
    """Where apps and models are kept.

    Attributes:
        bucket: S3-compatible storage, from FEDERATION_ARTIFACTS_URL and _ENDPOINT, _KEY and _SECRET. None: the state
            folder.
        cache_bytes: how much of what the bucket has is kept in the state folder, too, from
            FEDERATION_ARTIFACTS_CACHE_BYTES.
    """

    bucket: Bucket | None = None
    cache_bytes: int = CACHE_BYTES

    def opened(self, state_dir: Path) -> Artifacts:
        """Raises Invalid where what S3 needs is not installed."""
        bucket = None if self.bucket is None else ObjectStorage(self.bucket)
        return Artifacts(state_dir / "artifacts", bucket, cache_bytes=self.cache_bytes)


@dataclass(frozen=True, slots=True)
class StateSettings:
    """Where the service's state lies: what a command of the administrator needs to know, with no Hub around it.

    Attributes:
        state_dir, database_url, artifacts, aggregator_engine: as in `Settings`.
    """

    state_dir: Path
    database_url: str
    artifacts: ArtifactSettings = ArtifactSettings()
    aggregator_engine: AggregatorEngine | None = None

    def __repr__(self) -> str:
        return f"StateSettings(state_dir={str(self.state_dir)!r})"  # a database's address may hold its password

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> StateSettings:
        """Raises Invalid, naming the variable, for what is missing or cannot be read."""
        if not environment.get(STATE_DIR):
            raise Invalid(
                f"Which state? {STATE_DIR} is not set.",
                "Give --state-dir, or use `python -m spawner.admin service`, which reads the deployment file.",
            )
        state_dir = Path(environment[STATE_DIR])
        return cls(
            state_dir=state_dir,
            database_url=_database_url(environment, state_dir),
            artifacts=_artifacts(environment),
            aggregator_engine=_aggregator_engine(environment.get("FEDERATION_AGGREGATORS") or '{"kind": "local"}'),
        )


@dataclass(frozen=True, slots=True)
class Settings:
    """One service's settings.

    Attributes:
        host, port: where to listen, from JUPYTERHUB_SERVICE_URL. Port 0: any free one.
        prefix: the path that the Hub's proxy sends here, from JUPYTERHUB_SERVICE_PREFIX.
        state_dir: the service's own folder: database, FABs, models, aggregators. From FEDERATION_STATE_DIR.
        database_url: where projects and all that belongs to them are kept, from FEDERATION_DATABASE_URL: a SQLAlchemy
            URL of SQLite or PostgreSQL. By default SQLite in the state folder. In no `repr`: a password may be in it.
        sites: by slug, from FEDERATION_SITES.
        aggregator_engine: where aggregators run, from FEDERATION_AGGREGATORS. None: as processes of the service's
            own account, isolated from nothing.
        admin_contact: whom people can ask, in words, from FEDERATION_ADMIN_CONTACT.
        keep_model_bytes: of the models of one run's rounds that are kept, from FEDERATION_KEEP_MODEL_BYTES.
        keep_round_models: how long after a run's end these are kept, from FEDERATION_KEEP_ROUND_MODELS_DAYS; its last
            and its best one stay. None: for as long as the project.
        artifacts: where apps and models are kept.
        notices: from FEDERATION_NOTICES, with FEDERATION_SMTP_PASSWORD and FEDERATION_WEBHOOK_KEY.
        quotas: from FEDERATION_QUOTAS, JSON with the names in Quotas.
        hub_api_url, hub_api_token: from JUPYTERHUB_API_URL and JUPYTERHUB_API_TOKEN. The token is in no `repr`.
    """

    host: str
    port: int
    prefix: str
    state_dir: Path
    database_url: str
    sites: Mapping[str, Site]
    aggregator_engine: AggregatorEngine | None
    admin_contact: str
    hub_api_url: str
    hub_api_token: str
    notices: NoticeSettings = NoticeSettings()
    keep_model_bytes: int = KEEP_BYTES
    keep_round_models: timedelta | None = None
    artifacts: ArtifactSettings = ArtifactSettings()
    quotas: Quotas = field(default_factory=Quotas)

    def __repr__(self) -> str:
        return f"Settings(host={self.host!r}, port={self.port}, state_dir={str(self.state_dir)!r})"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Raises Invalid, naming the variable, for what is missing or cannot be read."""
        url = urlsplit(_required(environment, "JUPYTERHUB_SERVICE_URL"))
        state_dir = Path(_required(environment, STATE_DIR))
        days = _whole(environment, "FEDERATION_KEEP_ROUND_MODELS_DAYS", 0)
        return cls(
            host=url.hostname or "127.0.0.1",
            port=url.port or 0,
            prefix=_required(environment, "JUPYTERHUB_SERVICE_PREFIX"),
            state_dir=state_dir,
            database_url=_database_url(environment, state_dir),
            sites=_sites(_required(environment, "FEDERATION_SITES")),
            aggregator_engine=_aggregator_engine(environment.get("FEDERATION_AGGREGATORS") or '{"kind": "local"}'),
            admin_contact=environment.get("FEDERATION_ADMIN_CONTACT") or "the Hub's administrator",
            hub_api_url=_required(environment, "JUPYTERHUB_API_URL"),
            hub_api_token=_required(environment, "JUPYTERHUB_API_TOKEN"),
            notices=_notices(environment),
            keep_model_bytes=_whole(environment, "FEDERATION_KEEP_MODEL_BYTES", KEEP_BYTES),
            keep_round_models=timedelta(days=days) if days else None,
            artifacts=_artifacts(environment),
            quotas=_quotas(environment.get("FEDERATION_QUOTAS") or "{}"),
        )


def log_format(environment: Mapping[str, str]) -> LogFormat:
    """From FEDERATOR_LOG_FORMAT. Raises Invalid."""
    text = environment.get(FORMAT_VARIABLE) or LogFormat.TEXT
    if text not in list(LogFormat):
        raise Invalid(f"{FORMAT_VARIABLE} is {text!r}.", f"Write one of: {', '.join(LogFormat)}.")
    return LogFormat(text)


def _quotas(text: str) -> Quotas:
    try:
        return Quotas(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise Invalid(
            f"FEDERATION_QUOTAS cannot be used: {error}.", "jupyterhub_config.py writes it from the deployment's TOML."
        ) from error


def _database_url(environment: Mapping[str, str], state_dir: Path) -> str:
    return environment.get(DATABASE_URL) or f"sqlite:///{state_dir.absolute() / 'federation.db'}"


def _required(environment: Mapping[str, str], name: str) -> str:
    value = environment.get(name, "")
    if not value:
        raise Invalid(f"{name} is not set.", "The service is started by the Hub, with jupyterhub_config.py.")
    return value


def _artifacts(environment: Mapping[str, str]) -> ArtifactSettings:
    def said(name: str) -> str:
        return environment.get(f"FEDERATION_ARTIFACTS_{name}", "")

    bucket = Bucket(said("URL"), said("ENDPOINT"), said("KEY"), said("SECRET")) if said("URL") else None
    return ArtifactSettings(bucket, _whole(environment, "FEDERATION_ARTIFACTS_CACHE_BYTES", CACHE_BYTES))


def _whole(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name) or str(default)
    if not text.isdecimal():
        raise Invalid(
            f"{name} is no whole number: {text!r}.", "jupyterhub_config.py writes it from the deployment's TOML."
        )
    return int(text)


def _sites(text: str) -> dict[str, Site]:
    try:
        sites = [
            Site(**{**site, "datasets": tuple(Dataset(**dataset) for dataset in site["datasets"])})
            for site in json.loads(text)
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise Invalid(
            f"FEDERATION_SITES is not a list of sites: {error}.", "jupyterhub_config.py writes it from the sites' TOML."
        ) from error
    return {site.slug: site for site in sites}


def _notices(environment: Mapping[str, str]) -> NoticeSettings:
    """`{"origin", "address", "ending_days", "smtp": {"host", "port", "security", "sender", "user"}, "webhook"}`."""
    try:
        told = json.loads(environment.get("FEDERATION_NOTICES") or "{}")
        smtp, url = told.pop("smtp", None), told.pop("webhook", None)
        mail = None
        if smtp is not None:
            password = environment.get("FEDERATION_SMTP_PASSWORD", "")
            mail = MailServer(**{**smtp, "security": Security(smtp["security"]), "password": password})
        webhook = None if url is None else Receiver(url, environment.get("FEDERATION_WEBHOOK_KEY", ""))
        return NoticeSettings(**told, mail=mail, webhook=webhook)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise Invalid(
            f"FEDERATION_NOTICES does not say how to tell people: {reason}.",
            "jupyterhub_config.py writes it from the deployment's TOML.",
        ) from error


def _aggregator_engine(text: str) -> AggregatorEngine | None:
    """`{"kind": "local"}`, or `{"kind": "docker", "image": ...}` with `engine`, `tls_dir` and the names in Limits."""
    try:
        told = json.loads(text)
        match told.pop("kind"):
            case "local":
                engine = None
            case "docker":
                limits = {one.name: told.pop(one.name) for one in fields(Limits) if one.name in told}
                tls_dir = told.pop("tls_dir", None)
                engine = AggregatorEngine(
                    address=told.pop("engine", DEFAULT_ENGINE),
                    tls_dir=None if tls_dir is None else Path(tls_dir),
                    image=told.pop("image"),
                    limits=Limits(**limits),
                )
            case kind:
                raise ValueError(f"kind is {kind!r}, neither local nor docker")
        if told:
            raise ValueError(f"nothing is known by {', '.join(map(repr, told))}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise Invalid(
            f"FEDERATION_AGGREGATORS does not say where aggregators run: {reason}.",
            "jupyterhub_config.py writes it from the deployment's TOML.",
        ) from error
    return engine
