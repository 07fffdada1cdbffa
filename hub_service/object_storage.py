"""S3-compatible storage for artifacts, through fsspec and s3fs. Every call waits for the network: in threads only.

An object appears whole or not at all: a small one by one PUT, a large one by a multipart upload that is completed last
(https://docs.aws.amazon.com/AmazonS3/latest/userguide/mpuoverview.html). Files are streamed; none is held in memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import fsspec

from hub_service.domain.errors import FederationError, Invalid, NotFound, Unavailable
from hub_service.full_disk import is_full_disk

_ADDRESS = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?P<prefix>(/[\w.-]+)*)/?", re.ASCII)
_CONNECT_S, _READ_S = 5, 30
_TRIES = 2


@dataclass(frozen=True, slots=True)
class Bucket:
    """Where objects lie, and who may reach them.

    Attributes:
        url: s3://bucket or s3://bucket/prefix.
        endpoint: address of a storage that is not Amazon's; "" for theirs.
        key, secret: credentials; "" for those that the service's account has on its machine. In no `repr`.

    Raises Invalid for another kind of address.
    """

    url: str
    endpoint: str = ""
    key: str = field(default="", repr=False)
    secret: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if not _ADDRESS.fullmatch(self.url):
            raise Invalid(f"“{self.url}” is no place for artifacts.", "Write s3://bucket or s3://bucket/prefix.")

    @property
    def root(self) -> str:
        """Bucket and prefix."""
        return self.url.removeprefix("s3://").rstrip("/")

    @property
    def name(self) -> str:
        return self.root.partition("/")[0]


class ObjectStorage:
    """Objects below one prefix, by name. Every method raises Unavailable where the storage does not do it.

    Raises Invalid where s3fs is not installed.
    """

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        try:
            self._files = fsspec.filesystem(
                "s3",
                skip_instance_cache=True,
                use_listings_cache=False,
                key=bucket.key or None,
                secret=bucket.secret or None,
                endpoint_url=bucket.endpoint or None,
                config_kwargs={
                    "connect_timeout": _CONNECT_S,
                    "read_timeout": _READ_S,
                    "retries": {"max_attempts": _TRIES},
                },
            )
        except ImportError as error:
            raise Invalid(
                "Artifacts on S3 need the package s3fs, which is not installed.",
                "Install it in the checkout with: pip install ./images/singleuser '.[s3]'. The Hub's image has it. "
                "Or keep the artifacts in the state folder.",
            ) from error
        self._files.retries = _TRIES

    def check(self) -> None:
        """Raise unless the bucket is there and lets us look."""
        with self._told():
            prefix = self._bucket.root.partition("/")[2]
            self._files.call_s3("list_objects_v2", Bucket=self._bucket.name, Prefix=prefix, MaxKeys=1)

    def put(self, source: Path, name: str) -> None:
        """Copy a file there."""
        with self._told():
            self._files.put_file(str(source), self._path(name))
            kept = self._files.info(self._path(name))["size"]
        if kept != source.stat().st_size:
            raise Unavailable("The storage of apps and models keeps other bytes than it was sent.", debug=name)

    def get(self, name: str, target: Path) -> None:
        """Copy an object into a file. Raises NotFound where there is none."""
        with self._told():
            self._files.get_file(self._path(name), str(target))

    def remove(self, name: str) -> None:
        """Nothing, if there is none."""
        with self._told():
            self._files.rm_file(self._path(name))

    def names(self) -> Mapping[str, datetime]:
        """Every object, and since when it is there."""
        with self._told():
            found = self._files.find(self._bucket.root, detail=True)
        start = len(self._bucket.root) + 1
        return {path[start:]: about["LastModified"] for path, about in found.items()}

    def _path(self, name: str) -> str:
        return f"{self._bucket.root}/{name}"

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Say in our words what went wrong. Nothing of the error's own text, which may name a key."""
        from botocore.exceptions import BotoCoreError, NoCredentialsError  # with s3fs, an extra

        bucket = self._bucket.name
        try:
            yield
        except (PermissionError, NoCredentialsError) as error:
            raise _unavailable(
                f"The storage of apps and models refuses the service ({bucket}).",
                "Ask the Hub's administrator to check the storage's credentials and the bucket's policy.",
                error,
            ) from error
        except FileNotFoundError as error:
            raise self._missing(error) from error
        except (OSError, BotoCoreError) as error:
            if is_full_disk(error):  # our own
                raise
            raise _unavailable(
                f"The storage of apps and models does not answer ({bucket}).",
                "Try again in a moment. If it stays so, ask the Hub's administrator to check the storage.",
                error,
            ) from error

    def _missing(self, error: OSError) -> FederationError:
        if "bucket" in str(error).lower():
            return _unavailable(
                f"There is no bucket {self._bucket.name} for apps and models.",
                "Ask the Hub's administrator to make it, or to correct its name.",
                error,
            )
        return NotFound("The storage has no such object.", debug=type(error).__name__)


def _unavailable(message: str, next_step: str, error: Exception) -> Unavailable:
    return Unavailable(message, next_step, debug=type(error).__name__)
