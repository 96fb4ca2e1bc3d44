"""Talks to one store in a process of its own, ``python -m yolo_launch.remote.child``, which can be given up.

The libraries below fsspec wait for minutes for a server that has stopped, and a thread that waits cannot be ended. The
request is one line of JSON on stdin; answers are lines of JSON on stdout. Between them a line each time that the store
has shown a sign of life, so that the launcher tells a slow store from a dead one. The process ends with its launcher.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from trainer.protocol import replacing
from yolo_launch.remote.address import RemoteFile

LOOK_S = 1.5
"""How often the store is asked for a sign of life beside the transfer."""
THREADS = 8
"""Files on their way at once; s3fs holds 10 connections."""
BLOCK_BYTES = 5 * 2**20
"""The smallest part of an upload that S3 takes."""
_VERSION_KEYS = (
    "ETag",
    "etag",
    "generation",
    "md5Hash",
    "checksum",
    "LastModified",
    "last_modified",
    "updated",
    "mtime",
)

Say = Callable[[Mapping[str, Any]], None]


class Store:
    """A folder of a store."""

    def __init__(self, url: str, say: Say) -> None:
        import fsspec

        # Listings are asked for anew: a kept one would hide what has changed, or that the server is gone.
        self.fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        self.root: str = str(root).rstrip("/")
        self._say = say
        if hasattr(self.fs, "connect"):
            self.fs.connect()  # s3fs loads its libraries here, which takes seconds of a busy machine and no server

    def look(self) -> None:
        """Says that the store is alive whenever it answers, whatever the answer."""
        while True:
            try:
                self.fs.info(self.root)
            except (FileNotFoundError, PermissionError):
                pass
            except Exception:  # whatever a library raises for a server that does not answer
                time.sleep(LOOK_S)
                continue
            self._say({"alive": True})
            time.sleep(LOOK_S)

    def list(self, name: str) -> list[RemoteFile]:
        """Returns every file of the folder, or the one of that name."""
        if name:
            found = {f"{self.root}/{name}": self.fs.info(f"{self.root}/{name}")}
        else:
            found = self.fs.find(self.root, detail=True)
        files = [remote_file(str(path)[len(self.root) :].strip("/"), info) for path, info in found.items()]
        return sorted((one for one in files if one.path), key=lambda one: one.path)

    def get(self, files: Iterable[RemoteFile], folder: Path) -> None:
        """Reads files into a folder; one that is there with its size is not read again. Raises OSError."""
        for left in folder.rglob(".*.tmp"):
            left.unlink()  # of a child that was killed; the launcher holds the folder's lock
        missing = [one for one in files if not is_whole(folder / one.path, one.size)]
        with ThreadPoolExecutor(THREADS) as pool:
            # The first failure ends the rest.
            for _ in pool.map(lambda one: self._get_one(one, folder / one.path), missing):
                pass

    def _get_one(self, one: RemoteFile, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            self.fs.get_file(f"{self.root}/{one.path}", str(temporary), callback=progress(self._say, one.path))
            size = temporary.stat().st_size
            if size != one.size:
                raise OSError(f"{one.path}: {size} of {one.size} bytes arrived")
            if one.md5 and md5_of(temporary) != one.md5:
                raise OSError(f"{one.path}: what arrived has another MD5 than the store names, {one.md5}")
        self._say({"got": one.path, "bytes": one.size})

    def put(self, files: Iterable[tuple[str, str]]) -> None:
        """Writes (local path, path below the folder) pairs; a reader sees an old file or the whole new one."""
        for local, path in files:
            target = f"{self.root}/{path}"
            if not self.fs.async_impl:
                # Object stores have no folders; the others want them first.
                self.fs.makedirs(target.rpartition("/")[0], exist_ok=True)
            with open(local, "rb") as source:
                size = os.fstat(source.fileno()).st_size
                self._write(source, target)
            if (arrived := int(self.fs.info(target)["size"])) != size:
                raise OSError(f"{path}: {arrived} of {size} bytes arrived")
            self._say({"put": path, "bytes": size})

    def _write(self, source: Any, target: str) -> None:
        # Without autocommit the file takes its name at commit, in stores with and without a rename.
        file = self.fs.open(target, "wb", block_size=BLOCK_BYTES, autocommit=False)
        try:
            while block := source.read(BLOCK_BYTES):
                file.write(block)
                self._say({"alive": True})
            file.close()
            file.commit()
        except BaseException:
            file.discard()
            raise


def progress(say: Say, path: str) -> Any:
    """Returns fsspec's callback that says each block that has arrived."""
    from fsspec.callbacks import Callback

    class Blocks(Callback):  # type: ignore[misc]
        def relative_update(self, inc: int = 1) -> None:
            say({"alive": True})

    return Blocks()


def remote_file(path: str, info: Mapping[str, Any]) -> RemoteFile:
    """Returns what a store says of a file."""
    version = next((str(info[key]) for key in _VERSION_KEYS if info.get(key)), "")
    return RemoteFile(path, int(info.get("size") or 0), version.strip('"'), md5_from(info))


def md5_from(info: Mapping[str, Any]) -> str:
    """Returns the MD5 that a store names, in hexadecimal. An ETag of S3 is none where the bucket encrypts by KMS."""
    import base64

    return base64.b64decode(info["md5Hash"]).hex() if info.get("md5Hash") else ""


def md5_of(path: Path) -> str:
    """Returns the MD5 of a file, in hexadecimal."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def is_whole(path: Path, size: int) -> bool:
    """Returns True if a file is there with this size; it took its name only when it was whole."""
    return path.is_file() and path.stat().st_size == size


def answer(request: Mapping[str, Any], say: Say) -> Mapping[str, Any]:
    """Does what was asked and returns the last line. Raises what fsspec and its stores raise."""
    store = Store(request["url"], say)
    say({"ready": True})
    threading.Thread(target=store.look, daemon=True).start()
    if request["verb"] == "list":
        return {"done": [vars_of(one) for one in store.list(request["name"])]}
    if request["verb"] == "get":
        store.get([RemoteFile(**one) for one in request["files"]], Path(request["folder"]))
    else:
        store.put([(str(local), str(path)) for local, path in request["files"]])
    return {"done": True}


def vars_of(file: RemoteFile) -> dict[str, Any]:
    """Returns a file's facts as plain values."""
    return {"path": file.path, "size": file.size, "version": file.version, "md5": file.md5}


def die_with_launcher() -> None:
    """Ends this process when its stdin closes, which the launcher holds open for as long as it lives and waits."""
    while sys.stdin.buffer.read(4096):
        pass
    os._exit(1)


def main() -> None:
    """Reads the request, answers it, and leaves without waiting for threads that a store may hold."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the launcher's to answer
    out, lock = os.fdopen(os.dup(1), "w", encoding="utf-8"), threading.Lock()
    os.dup2(2, 1)  # what a library prints is no answer

    def say(line: Mapping[str, Any]) -> None:
        with lock:
            out.write(json.dumps(line) + "\n")
            out.flush()

    request = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=die_with_launcher, daemon=True).start()
    try:
        say(answer(request, say))
    except BaseException as error:
        say({"error": type(error).__name__, "words": str(error), "missing_module": isinstance(error, ImportError)})
    os._exit(0)


if __name__ == "__main__":
    main()
