"""A client of one Docker engine, for a command that runs once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import docker
import requests
from docker.errors import APIError, DockerException
from docker.tls import TLSConfig

from spawner.sites import TLS_FILES

TIMEOUT_S = 60.0
_OLDEST_API = "1.40"  # Docker 19.03; any engine tells by it which version it speaks


class EngineError(Exception):
    """The engine cannot be used. The text says why."""


@contextlib.contextmanager
def connected(address: str, tls_dir: Path | None) -> Iterator[docker.DockerClient]:
    """A client of the engine, closed at the end of the block.

    Args:
        address: unix:///path or tcp://host:port.
        tls_dir: folder with the authority, and the certificate and key to show to the engine; None for none.

    Raises:
        EngineError: it does not answer, or will not speak with us.
    """
    try:
        with contextlib.closing(_client(address, tls_dir, _OLDEST_API)) as asking:
            version = asking.api.version(api_version=False)["ApiVersion"]
        client = _client(address, tls_dir, version)
    except APIError as error:
        raise EngineError(f"the engine at {address} refused: {error.explanation or error}") from None
    except (DockerException, requests.exceptions.RequestException) as error:
        raise EngineError(f"the engine at {address} does not answer: {_innermost(error)}") from None
    with contextlib.closing(client):
        yield client


def _client(address: str, tls_dir: Path | None, version: str) -> docker.DockerClient:
    # TLS errors of a wrong file surface here, connections only with the first call: the version is given.
    client = docker.DockerClient(base_url=address, version=version, timeout=TIMEOUT_S, tls=_tls(tls_dir))
    # Else REQUESTS_CA_BUNDLE in the environment would take the place of the engine's own authority.
    client.api.trust_env = False
    return client


def _tls(folder: Path | None) -> TLSConfig | bool:
    if folder is None:
        return False
    authority, certificate, key = (str(folder / name) for name in TLS_FILES)
    return TLSConfig(ca_cert=authority, client_cert=(certificate, key), verify=True)


def _innermost(error: BaseException) -> str:
    """The first cause: the others repeat it inside their own texts."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return str(error)
