"""Opening a zip file that a stranger uploaded, without trusting anything in it. Nothing is written to disk.

`hub_service.apps.build` calls `read_zip` for Flower apps and FABs.
"""

from __future__ import annotations

import re
import stat
import zipfile
import zlib
from io import BytesIO

from hub_service.domain.errors import Invalid, TooLarge

MAX_UPLOAD_BYTES = 20 * 1024 * 1024
MAX_UNPACKED_BYTES = 20 * 1024 * 1024
MAX_FILES = 1000
# Source code packs to about a fifth; what unpacks to more than this many times its size was made to fill a disk.
MAX_RATIO = 100
_RATIO_COUNTS_FROM_BYTES = 1024 * 1024

_UTF8_NAME = 0x800  # zip's flag bits
_ENCRYPTED = 0x1
# Flower lists a FAB's files as comma-separated lines, so neither commas nor line ends can be in a name.
_BAD_CHARACTERS = re.compile(r"[\x00-\x1f\x7f,\\:]")

_MAKE_AGAIN = "Zip the app's folder again, with nothing but its own files in it."


def read_zip(content: bytes) -> dict[str, bytes]:
    """Return the files of a zip archive by their relative path with forward slashes.

    Raises:
        TooLarge: the archive, its unpacked content or its number of files is over the limit.
        Invalid: it is no zip, damaged, encrypted, or an entry could land outside the folder it is unpacked to.
    """
    if len(content) > MAX_UPLOAD_BYTES:
        raise TooLarge(
            f"The file has {len(content) / 2**20:.1f} MB; at most {MAX_UPLOAD_BYTES // 2**20} MB are taken.",
            "An app holds code, not data or models.",
        )
    try:
        with zipfile.ZipFile(BytesIO(content)) as archive:
            entries = archive.infolist()
            _check_sizes(entries)
            files: dict[str, bytes] = {}
            for entry in entries:
                _check_entry(entry)
                if entry.is_dir():
                    continue
                if entry.filename in files:
                    raise Invalid(f"The zip file holds “{entry.filename}” twice.", _MAKE_AGAIN)
                files[entry.filename] = archive.read(entry)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError) as error:
        # ValueError: names that are not UTF-8. RuntimeError: a packing method that Python does not know.
        raise Invalid("The file is no zip archive, or it is damaged.", _MAKE_AGAIN, debug=str(error)) from error
    return files


def _check_sizes(entries: list[zipfile.ZipInfo]) -> None:
    if len(entries) > MAX_FILES:
        raise TooLarge(f"The zip file holds {len(entries)} files; at most {MAX_FILES} are taken.", _MAKE_AGAIN)
    unpacked = sum(entry.file_size for entry in entries)
    packed = sum(entry.compress_size for entry in entries)
    is_bomb = unpacked > _RATIO_COUNTS_FROM_BYTES and unpacked > MAX_RATIO * packed
    if unpacked > MAX_UNPACKED_BYTES or is_bomb:
        raise TooLarge(
            f"The zip file unpacks to {unpacked / 2**20:.1f} MB from {packed / 2**20:.2f} MB; at most "
            f"{MAX_UNPACKED_BYTES // 2**20} MB and {MAX_RATIO} times its size are taken.",
            "An app holds code, not data or models.",
        )


def _check_entry(entry: zipfile.ZipInfo) -> None:
    name = entry.filename
    shown = "".join(character if character.isprintable() else "?" for character in name[:100])
    if not name.isascii() and not entry.flag_bits & _UTF8_NAME:
        raise Invalid("A file name in the zip file is not UTF-8.", "Rename the files to plain letters and zip again.")
    if name != entry.orig_filename or _BAD_CHARACTERS.search(name):
        raise Invalid(f"The file name “{shown}” has a character that an app cannot have.", _MAKE_AGAIN)
    parts = name.removesuffix("/").split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise Invalid(f"The path “{shown}” leads out of the app's folder.", _MAKE_AGAIN)
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise Invalid(f"“{shown}” is a link or a device, not a plain file.", "Put the file itself into the zip file.")
    if entry.flag_bits & _ENCRYPTED:
        raise Invalid("The zip file is encrypted.", "Zip the app's folder again without a password.")
