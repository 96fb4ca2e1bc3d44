"""Asks a store in a child process that is given up when the store shows no sign of life."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from yolo_launch.errors import ExitCode, LaunchError
from yolo_launch.remote.address import EXTRAS, RemoteFile

TIMEOUT_VARIABLE = "YOLO_LAUNCH_REMOTE_TIMEOUT"
TIMEOUT_S = 8.0
"""Seconds without a sign of life of a store after which it is given up."""
START_S = 60.0
"""Seconds for the imports of a store's library, which may come from a slow network disk."""

See = Callable[[Mapping[str, Any]], None]


class StoreError(Exception):
    """What a store refused or failed to do, in one line of words."""


class RemoteStore:
    """A folder of a store, at a URL of fsspec."""

    def __init__(self, url: str, *, timeout_s: float | None = None) -> None:
        self.url = url
        self._timeout_s = timeout_s if timeout_s is not None else timeout_from(os.environ)

    def list(self, name: str = "") -> list[RemoteFile]:
        """Returns every file of the folder, or the one of that name. Raises StoreError."""
        return [RemoteFile(**one) for one in self._ask({"verb": "list", "name": name}, _ignore)]

    def get(self, files: Sequence[RemoteFile], folder: Path, see: See) -> None:
        """Reads files into a folder; a file has its name only when it is whole. Raises StoreError.

        ``see`` gets ``{"got": path, "bytes": size}`` for each file that has arrived.
        """
        wanted = [{"path": one.path, "size": one.size, "version": one.version, "md5": one.md5} for one in files]
        self._ask({"verb": "get", "files": wanted, "folder": str(folder)}, see)

    def put(self, files: Sequence[tuple[Path, str]], see: See | None = None) -> None:
        """Writes (local file, path below the folder) pairs in this order. Raises StoreError."""
        self._ask({"verb": "put", "files": [(str(local), path) for local, path in files]}, see or _ignore)

    def _ask(self, request: Mapping[str, Any], see: See) -> Any:
        """Returns what the child says last. Raises StoreError for its failure and its silence."""
        child = subprocess.Popen(
            [sys.executable, "-m", "yolo_launch.remote.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # its one cause comes as a line
        )
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            # The request of a large data set exceeds a pipe's buffer; the child reads it before anything else.
            with contextlib.suppress(BrokenPipeError):
                child.stdin.write(json.dumps({**request, "url": self.url}).encode() + b"\n")
                child.stdin.flush()
            return self._hear(child.stdout.fileno(), see)
        finally:
            child.kill()
            child.wait()
            child.stdout.close()
            with contextlib.suppress(BrokenPipeError):
                child.stdin.close()

    def _hear(self, descriptor: int, see: See) -> Any:
        heard, limit_s, rest = time.monotonic(), START_S, b""
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while True:
                if not selector.select(max(0.0, heard + limit_s - time.monotonic())):
                    raise StoreError(f"{self.url} has not answered for {limit_s:g} s")
                block = os.read(descriptor, 65536)
                if not block:
                    raise StoreError(f"the process that talks to {self.url} was ended")
                *lines, rest = (rest + block).split(b"\n")
                for line in map(json.loads, lines):
                    if "done" in line:
                        return line["done"]
                    if "error" in line:
                        raise StoreError(self._words(line))
                    see(line)
                heard, limit_s = time.monotonic(), self._timeout_s

    def _words(self, line: Mapping[str, Any]) -> str:
        scheme = self.url.partition("://")[0]
        if line["missing_module"] and scheme in EXTRAS:
            return f"{scheme}:// needs another package: pip install 'yolo-launch[{EXTRAS[scheme]}]'"
        words = " ".join(str(line["words"]).split()) or line["error"]
        return f"{words} ({line['error']})"


def timeout_from(environ: Mapping[str, str]) -> float:
    """Returns the seconds that a store may be silent. Raises LaunchError for what is no number above 0."""
    return number_from(environ, TIMEOUT_VARIABLE, TIMEOUT_S, "seconds")


def number_from(environ: Mapping[str, str], name: str, default: float, unit: str) -> float:
    """Returns a number above 0 from the environment. Raises LaunchError for anything else."""
    text = environ.get(name, "")
    with contextlib.suppress(ValueError):
        if not text or float(text) > 0:
            return float(text) if text else default
    raise LaunchError(f"{name} cannot be used.", seen=f"{name}={text}", expected=f"{unit}, more than 0")


def unreachable(url: str, error: StoreError, option: str) -> LaunchError:
    """Returns the error of a start that needs what a store did not give."""
    return LaunchError(
        f"{option} {url} cannot be read.",
        seen=str(error),
        expected="an address that answers, and credentials that may read it",
        next_command=f"{option} with a path on this machine, or the same command once the store answers",
        exit_code=ExitCode.ENVIRONMENT,
    )


def _ignore(line: Mapping[str, Any]) -> None:
    pass
