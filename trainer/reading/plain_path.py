"""Gives a file a name that every C library takes: some end the process for bytes that are not UTF-8."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def is_plain(path: str | Path) -> bool:
    """Returns whether a path is UTF-8."""
    try:
        os.fspath(path).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def plain_path(path: Path) -> Iterator[str]:
    """Yields the path as text, or a link to it with a plain name, which exists as long as the block runs."""
    if is_plain(path):
        yield str(path)
        return
    with tempfile.TemporaryDirectory(prefix="yolo-launch-") as folder:
        suffix = path.suffix if is_plain(path.suffix) else ""
        link = os.path.join(folder, "file" + suffix)
        os.symlink(os.path.abspath(path), link)
        yield link
