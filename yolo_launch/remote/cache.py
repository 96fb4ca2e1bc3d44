"""Keeps what was read from stores, once a machine, in a folder of bounded size.

A copy's name is a hash of its URL and of what the store lists there, so a copy never changes: files that changed in the
store are another copy. Whoever reads a copy holds it by a shared flock, which the kernel frees when the process dies;
only copies that nobody holds make room, the least recently used first.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

from yolo_launch.errors import ExitCode, LaunchError
from yolo_launch.remote.address import RemoteFile, join_url, split_url
from yolo_launch.remote.transfer import RemoteStore, StoreError, number_from, unreachable
from yolo_launch.words import counted

LIMIT_VARIABLE = "YOLO_LAUNCH_REMOTE_CACHE_GB"
LIMIT_GB = 100.0
"""What all copies may take together, in units of 1e9 bytes."""
_USE, _PARTIAL, _LOCK = ".use", ".partial", ".lock"

Say = Callable[[str], None]


@dataclass(frozen=True)
class CachedCopy:
    """A copy on this machine, which stays for as long as this value does."""

    path: Path
    """Of the file that was asked for."""
    url: str
    _hold: IO[bytes] = field(repr=False, compare=False)


class RemoteCache:
    """A folder of copies."""

    def __init__(self, folder: Path, *, limit_bytes: int | None = None) -> None:
        self.folder = folder
        gigabytes = number_from(os.environ, LIMIT_VARIABLE, LIMIT_GB, "units of 1e9 bytes")
        self._limit_bytes = int(gigabytes * 1e9) if limit_bytes is None else limit_bytes

    def fetch(self, url: str, option: str, say: Say, *, with_folder: bool = False) -> CachedCopy:
        """Returns a copy of a file, or of its whole folder; reads what is not here yet. Raises LaunchError."""
        root, name = split_url(url)
        store = RemoteStore(root)
        try:
            files = store.list("" if with_folder else name)
            if name not in {one.path for one in files}:
                raise StoreError(f"there is no {name} in {root}")
            return self._copy(store, url, files, option, say)
        except StoreError as error:
            raise unreachable(url, error, option) from None
        except OSError as error:
            raise LaunchError(
                f"{option} {url} cannot be kept on this machine.",
                seen=f"{error.strerror or error}: {error.filename or self.folder}",
                expected="a cache folder with space that this user may write",
                next_command="XDG_CACHE_HOME=/a/folder/with/space and the same command",
                exit_code=ExitCode.ENVIRONMENT,
            ) from None

    def _copy(self, store: RemoteStore, url: str, files: list[RemoteFile], option: str, say: Say) -> CachedCopy:
        from filelock import FileLock

        _refuse_strange_names(url, files)
        name, size = key_of(url, files), sum(one.size for one in files)
        self.folder.mkdir(parents=True, exist_ok=True)
        place, partial = self.folder / name, self.folder / (name + _PARTIAL)
        # Held before the copy is looked for, so that nobody removes it between the two.
        hold = _held(self.folder / (name + _USE))
        with FileLock(self.folder / (name + _LOCK)):
            if not place.is_dir():
                self._make_room(size, url, option, keep=name)
                say(f"reading {counted(len(files), 'file')}, {size / 1e6:.1f} MB, from {store.url}")
                store.get(files, partial, _every_tenth(size, url, say))
                os.replace(partial, place)
        return CachedCopy(place / split_url(url)[1], url, hold)

    def _make_room(self, size: int, url: str, option: str, *, keep: str) -> None:
        """Removes the least recently used copies that nobody holds. Raises LaunchError if that is not enough."""
        copies = {
            path: _bytes_in(path)
            for path in sorted(self.folder.iterdir(), key=lambda path: _last_used(self.folder, path))
            if path.is_dir() and _name_of(path) != keep
        }
        total = sum(copies.values()) + size
        for path, taken in copies.items():
            if total <= self._limit_bytes:
                break
            if size <= self._limit_bytes and _remove_unused(self.folder, path):
                total -= taken
        if total > self._limit_bytes:
            raise LaunchError(
                f"{option} {url} does not fit into the cache of this machine.",
                seen=f"{size / 1e9:.3f} GB, beside {(total - size) / 1e9:.3f} GB that stays or is in use",
                expected=f"at most {self._limit_bytes / 1e9:g} GB in all in {self.folder}",
                next_command=f"{LIMIT_VARIABLE}={max(1, round(total / 1e9 + 1))} and the same command",
                exit_code=ExitCode.ENVIRONMENT,
            )


def key_of(url: str, files: Iterable[RemoteFile]) -> str:
    """Returns the name of a copy: equal as long as the store lists the same files, sizes and versions."""
    digest = hashlib.sha256(url.encode())
    for one in files:
        digest.update(f"\0{one.path}\0{one.size}\0{one.version}".encode())
    return digest.hexdigest()[:20]


def _refuse_strange_names(url: str, files: Iterable[RemoteFile]) -> None:
    """Raises StoreError for a name that would lie outside the copy."""
    for one in files:
        parts = PurePosixPath(one.path).parts
        if one.path.startswith("/") or ".." in parts or "\0" in one.path:
            raise StoreError(f"{join_url(split_url(url)[0], one.path)} is no name of a file below that folder")


def _held(path: Path) -> IO[bytes]:
    """Returns the open file whose shared lock says that a copy is in use; its time says when it was used last."""
    while True:
        file = path.open("ab")
        fcntl.flock(file, fcntl.LOCK_SH)
        os.utime(file.fileno())
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                return file
        file.close()  # who made room has just removed it


def _remove_unused(folder: Path, path: Path) -> bool:
    """Removes a copy, or a part of one, unless somebody holds it."""
    use = folder / (_name_of(path) + _USE)
    with use.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        shutil.rmtree(path)
        use.unlink(missing_ok=True)
    return True


def _name_of(path: Path) -> str:
    return path.name.removesuffix(_PARTIAL)


def _last_used(folder: Path, path: Path) -> float:
    with contextlib.suppress(OSError):
        return (folder / (_name_of(path) + _USE)).stat().st_mtime
    return 0.0


def _bytes_in(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _every_tenth(size: int, url: str, say: Say) -> Callable[[Mapping[str, Any]], None]:
    """Returns what counts the bytes that arrived and says each further tenth of a large copy."""
    arrived = said = 0

    def see(line: Mapping[str, Any]) -> None:
        nonlocal arrived, said
        arrived += int(line.get("bytes", 0))
        if size > 1e8 and arrived * 10 // size > said:
            said = arrived * 10 // size
            say(f"{arrived / 1e6:.0f} of {size / 1e6:.0f} MB of {url}")

    return see
