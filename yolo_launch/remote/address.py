"""Takes addresses such as ``s3://bucket/folder/file`` apart. Free of fsspec."""

from __future__ import annotations

import re
from dataclasses import dataclass

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.+)", re.DOTALL)
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
"""The extra of yolo-launch that brings what fsspec needs for a scheme."""


def is_url(text: object) -> bool:
    """Returns True for ``scheme://...``; a path never has that form."""
    return isinstance(text, str) and _URL.fullmatch(text) is not None


@dataclass(frozen=True)
class RemoteFile:
    """One file of a store, as the store lists it."""

    path: str
    """Relative to the folder that was listed, with slashes."""
    size: int
    """In bytes."""
    version: str = ""
    """Changes with the content: an ETag, a hash, a generation or a time; empty if the store has none of them."""
    md5: str = ""
    """In hexadecimal, if the store names it."""


def split_url(url: str) -> tuple[str, str]:
    """Returns the folder of a URL and the name in it."""
    folder, _, name = url.rstrip("/").rpartition("/")
    return folder, name


def join_url(folder: str, path: str) -> str:
    """Returns the URL of a path below a folder."""
    return f"{folder.rstrip('/')}/{path}"
