"""The files in which a run's model data travel: what they are called, and how the service opens them.

    <run folder>/mail/<32 hex digits>

The ServerApp writes a blob once for all sites, and the gateway sends it from there; the gateway writes each site's
answer, and the ServerApp reads it from there. See `federator.parcel` for what is in them.

The ServerApp runs code of the project's owner and may do with the folder what it likes: the service follows no link
in it, reads plain files only and writes new ones only.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import BinaryIO

from hub_service.aggregators.events import is_missing, open_run_file

MAIL_FOLDER = "mail"

_NAME = re.compile(r"[0-9a-f]{32}")


class NoSuchMail(Exception):
    """The file is not there, or is none that may be opened."""


def is_mail_name(name: str) -> bool:
    """Whether the name is one that we give to files: it leads nowhere else."""
    return _NAME.fullmatch(name) is not None


def open_mail(run_folder: Path, name: str) -> BinaryIO:
    """A file of a run's mail, for reading. Raises NoSuchMail, and OSError."""
    if not is_mail_name(name):
        raise NoSuchMail(name)
    folder = _folder(run_folder)
    try:
        return open_run_file(Path(f"/proc/self/fd/{folder}"), name)
    except FileNotFoundError as error:
        raise NoSuchMail(name) from error
    finally:
        os.close(folder)


def create_mail(run_folder: Path, name: str) -> BinaryIO:
    """A new file of a run's mail, for writing. Raises NoSuchMail where there is no folder for it, and OSError."""
    folder = _folder(run_folder)
    try:
        # Readable for the ServerApp's account, which is not always the service's; the run folder is closed to others.
        return open(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644, dir_fd=folder), "wb")
    finally:
        os.close(folder)


def remove_mail(run_folder: Path, name: str) -> None:
    """Remove a file that `create_mail` has made, if it is still there. Raises OSError."""
    try:
        folder = _folder(run_folder)
    except NoSuchMail:
        return
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        return
    finally:
        os.close(folder)


def _folder(run_folder: Path) -> int:
    """A descriptor of the folder itself, which no link can stand for."""
    try:
        return os.open(run_folder / MAIL_FOLDER, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        if not is_missing(error):
            raise
        raise NoSuchMail(str(run_folder)) from error
