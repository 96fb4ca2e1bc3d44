"""Unpacks a zip into the user's cache: names are checked, sizes are counted while they are written."""

from __future__ import annotations

import logging
import os
import shutil
import stat
import zipfile
from pathlib import Path, PurePosixPath

from trainer.data.annotations.cache import key_of
from trainer.data.formats.format import names_in, unreadable
from trainer.errors import DataError
from trainer.reading.text_file import printable

_MAX_FILES = 5_000_000
_MAX_BYTES = 2**40
_MAX_RATIO = 200
"""Bytes unpacked a byte packed, over the whole archive: text takes a tenth, pictures nothing."""
_FREE_BYTES = 10 * 2**20
"""An archive this small unpacked is no bomb, whatever its ratio."""
_CHUNK = 2**20
_IGNORED = ("__MACOSX",)

logger = logging.getLogger(__name__)


def is_zip(path: Path) -> bool:
    """Returns whether a path is a file in zip's format, by its first bytes."""
    try:
        with open(path, "rb") as file:
            return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")
    except OSError:
        return False


def unpacked(path: Path, cache_dir: Path) -> Path:
    """Returns the folder with an archive's files, unpacked if they are not there already.

    Raises DataError for an archive that is damaged, encrypted, larger than it may be, or with names that lead out.
    """
    try:
        key = key_of([os.path.abspath(path)], "zip")[:16]
        folder = cache_dir / "archives" / f"{path.stem[:40]}-{key}"
        if not os.path.isdir(folder):
            _unpack(path, folder)
    except zipfile.BadZipFile as error:
        raise _refused(path, str(error), "a whole zip", "copy or download the file again") from None
    except OSError as error:
        raise unreadable(error.filename or path, error) from None
    return _inner(folder)


def _inner(folder: Path) -> Path:
    """Returns the only folder in a folder that has nothing else: archives often hold one."""
    names = [name for name in names_in(folder) if name not in _IGNORED]
    while len(names) == 1 and os.path.isdir(folder / names[0]):
        folder = folder / names[0]
        names = names_in(folder)
    return folder


def _unpack(path: Path, folder: Path) -> None:
    """Unpacks beside the folder and renames, so that what has its name is whole."""
    logger.info("unpacking %s to %s", path, folder)
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _check(path, entries)
            left = max(_FREE_BYTES, _MAX_RATIO * os.path.getsize(path))
            for entry in entries:
                target = partial / entry.filename
                if entry.is_dir():
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                left = _write(path, archive, entry, target, left)
        partial.mkdir(parents=True, exist_ok=True)
        try:
            partial.rename(folder)
        except OSError:
            if not os.path.isdir(folder):  # else another process was sooner
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path, left: int) -> int:
    """Writes one file; returns how many bytes may still follow. What an entry says of its size is not believed."""
    with archive.open(entry) as source, target.open("xb") as file:
        while chunk := source.read(_CHUNK):
            left -= len(chunk)
            if left < 0:
                raise _too_large(path)
            file.write(chunk)
    return left


def _check(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    """Raises DataError for what can be told from the table of contents."""
    if len(entries) > _MAX_FILES:
        raise _too_large(path)
    total, seen = 0, set[str]()
    for entry in entries:
        name = entry.filename
        if entry.flag_bits & 1:
            raise _refused(path, f"{printable(name)} is encrypted", "a zip without a password", "unpack it yourself")
        parts = PurePosixPath(name.replace("\\", "/")).parts
        if not parts or ".." in parts or parts[0].startswith("/") or ":" in parts[0]:
            seen_name = f"{printable(name)}, which leads out of the folder"
            raise _refused(path, seen_name, "names below the archive's own folder", "pack the data set again")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise _refused(path, f"{printable(name)} is a link", "files and folders", "pack the files themselves")
        if not entry.is_dir() and name in seen:
            raise _refused(path, f"{printable(name)} stands twice", "one file of each name", "pack the data set again")
        seen.add(name)
        total += entry.file_size
    size = os.path.getsize(path)
    if total > _MAX_BYTES or total > max(_FREE_BYTES, _MAX_RATIO * size):
        raise _too_large(path, total)


def _too_large(path: Path, total: int = 0) -> DataError:
    seen = f"{total} bytes of {os.path.getsize(path)}" if total else "more than its table of contents says or may say"
    expected = f"at most {_MAX_RATIO} bytes unpacked for each byte"
    return _refused(path, seen, expected, "unpack it yourself if you trust it, and give the folder")


def _refused(path: Path, seen: str, expected: str, advice: str) -> DataError:
    return DataError(f"{printable(path)} cannot be unpacked", seen=seen, expected=expected, next_command=advice)
