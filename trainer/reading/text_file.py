"""Reads the text of a user's file in one guarded way: nothing is read before it is known to be a regular file."""

from __future__ import annotations

import codecs
import os
import stat
from pathlib import Path

from trainer.errors import UserError

HEAD_BYTES = 64 * 1024
"""What is looked at to tell a file's kind."""

_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"PK\x03\x04", "a zip archive, as weights files and spreadsheets are"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"\x89HDF", "an HDF5 file"),
    (b"%PDF", "a PDF"),
    (b"\x7fELF", "a program"),
    (b"SQLite format 3\0", "a database"),
    (b"\x80\x02", "a pickle"),
    (b"\x80\x04", "a pickle"),
)
_MARKS: tuple[tuple[bytes, str], ...] = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it starts with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_COCO_KEYS = (b'"annotations"', b'"categories"', b'"images"')


class TextFileError(Exception):
    """A file that is not the text it should be; ``seen`` and ``expected`` are parts of a message for its user."""

    def __init__(self, seen: str, expected: str, advice: str) -> None:
        super().__init__(seen)
        self.seen = seen
        self.expected = expected
        self.advice = advice

    def as_error(self, kind: type[UserError], what: str) -> UserError:
        """Returns the user's error, with ``what`` as its first part."""
        return kind(what, seen=self.seen, expected=self.expected, next_command=self.advice)


def printable(text: str | os.PathLike[str]) -> str:
    """Returns ``text`` as any terminal and file takes it: bytes of a name that are not UTF-8 as ``\\udce9``."""
    return os.fspath(text).encode("utf-8", "backslashreplace").decode("utf-8")


def read_text(path: str | Path, *, limit_bytes: int, keep_bytes: bool = False) -> str:
    """Returns the text of a file: UTF-8, with a byte-order mark or without, UTF-16 or UTF-32.

    ``keep_bytes`` keeps bytes that are not UTF-8 as surrogates, as Python does with file names, for lists of them.
    Raises TextFileError for what is no such file, more than ``limit_bytes`` or another kind, and OSError if the file
    cannot be read.
    """
    with open(_regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(min(HEAD_BYTES, limit_bytes + 1))
        _check_kind(head, size)
        if size > limit_bytes:
            seen = f"{_amount(size)} that start with {_start_of(head)}"
            raise TextFileError(seen, f"at most {_amount(limit_bytes)}", "give the path of the file that was meant")
        # A file can grow while it is read.
        content = head + file.read(max(0, limit_bytes - len(head)))
    return _decode(content, keep_bytes)


def _regular(path: str | Path) -> str:
    """Returns the path if it leads to a file: reading a pipe or a device may never end."""
    name = os.fspath(path)
    try:
        mode = os.stat(name).st_mode
    except ValueError:  # a zero byte, or half of a character
        raise TextFileError(
            f"{printable(name)!r}, a name that no file can have", "a file", "correct the path"
        ) from None
    if stat.S_ISREG(mode):
        return name
    kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
    raise TextFileError(f"{printable(name)} is {kind}", "a file", "give the path of a file")


def _check_kind(head: bytes, size: int) -> None:
    """Raises TextFileError for a file whose first bytes are those of another kind."""
    kind = next((kind for start, kind in _SIGNATURES if head.startswith(start)), "")
    start = head.lstrip()[:256].lower()
    if start.startswith((b"<!doctype html", b"<html")):
        kind = "a web page, as a download gone wrong leaves it"
    elif start.startswith((b"<?xml", b"<annotation")):
        kind = "an XML file"
    elif start.startswith(b"{") and sum(key in head for key in _COCO_KEYS) + (size > len(head)) >= 2:
        advice = "convert its boxes to one text file an image (docs/data.md), and name the folders in a YAML file"
        raise TextFileError(f"{_amount(size)} of JSON, as COCO's annotations are", "a text file", advice)
    elif not kind and b"\0" in head and _encoding(head) is None:
        kind = "binary data"
    if kind:
        raise TextFileError(f"{_amount(size)}: {kind}", "a text file", "give the path of the text file that was meant")


def _encoding(head: bytes) -> str | None:
    """Returns the encoding that a mark or the place of zero bytes shows; None for what should be UTF-8."""
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    pairs = head[:512]
    even, odd = pairs[::2], pairs[1::2]
    if len(odd) > 1 and even.count(0) == 0 and odd.count(0) * 4 > len(odd) * 3:
        return "utf-16-le"
    if len(odd) > 1 and odd.count(0) == 0 and even.count(0) * 4 > len(even) * 3:
        return "utf-16-be"
    return None


def _decode(content: bytes, keep_bytes: bool) -> str:
    encoding = _encoding(content[:HEAD_BYTES]) or "utf-8"
    try:
        text = content.decode(encoding, "surrogateescape" if keep_bytes and encoding == "utf-8" else "strict")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        seen = f"bytes in line {line} that are not {encoding.upper()}: {content[error.start : error.start + 8]!r}"
        raise TextFileError(seen, "text in UTF-8", "save the file as UTF-8 in your editor") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        advice = "write the file again; a crash or a full disk leaves zero bytes"
        raise TextFileError(f"a zero byte in line {line}", "text in UTF-8", advice)
    return text


def _start_of(head: bytes) -> str:
    return ascii(head[:24].decode("utf-8", "replace"))


def _amount(size: int) -> str:
    """Formats a size as '450 MB' or '12 bytes'."""
    for factor, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size} bytes"
