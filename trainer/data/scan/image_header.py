"""What an image file says of itself: its size as shown, and whether it is whole, without decoding JPEG and PNG."""

from __future__ import annotations

import hashlib
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from trainer.data.images import ImageReadError, decode_image

_HEAD_BYTES = 32 * 1024
"""Read first; holds the size unless a camera put a large preview before it."""
_ENDS_BYTES = 4096
"""How much of either end goes into the digest that finds equal files."""
_TURNED = frozenset((5, 6, 7, 8))
"""EXIF orientations that show the image on its side."""
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_LONE_MARKERS = frozenset((0x01, 0xFF, *range(0xD0, 0xD9)))
_ORIENTATION_TAG = 0x0112


@dataclass(frozen=True)
class ImageHeader:
    """An image file as far as a scan needs to know it."""

    height: int
    """Rows as shown, after EXIF orientation."""
    width: int
    digest: bytes
    """Of the file's size and both ends: different files almost always differ here, equal ones never."""


def read_header(path: Path) -> ImageHeader:
    """Size and digest of an image file whose end is there.

    JPEG and PNG are judged by their markers, at a tenth of the cost of a decode: damage in the middle is found only
    when they are decoded. Other formats are decoded. Raises ImageReadError, with the reason, for the rest.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD_BYTES)
            size = os.fstat(file.fileno()).st_size
            digest = _digest_ends(file, head, size)
            shape_hw: tuple[int, int] | None = None
            if head.startswith(b"\xff\xd8"):
                shape_hw = _check_jpeg(file, head, size)
            elif head.startswith(b"\x89PNG\r\n\x1a\n"):
                shape_hw = _check_png(file, head, size)
    except OSError as error:
        raise ImageReadError(error.strerror or str(error)) from error
    if not head:
        raise ImageReadError("an empty file")
    if head.lstrip().startswith((b"<!", b"<html", b"<HTML", b"<?xml")):
        raise ImageReadError("a web page, not an image")
    height, width = shape_hw or decode_image(path).shape[:2]
    return ImageHeader(height, width, digest)


def _digest_ends(file: BinaryIO, head: bytes, size: int) -> bytes:
    tail = head[-_ENDS_BYTES:] if len(head) == size else _read_tail(file, size)
    return hashlib.blake2b(struct.pack("<Q", size) + head[:_ENDS_BYTES] + tail, digest_size=16).digest()


def _read_tail(file: BinaryIO, size: int) -> bytes:
    file.seek(max(0, size - _ENDS_BYTES))
    return file.read(_ENDS_BYTES)


def _check_jpeg(file: BinaryIO, head: bytes, size: int) -> tuple[int, int]:
    """(height, width) of a JPEG that has an end marker after its pixels (ITU T.81, annex B)."""
    try:
        height, width, pixels_at = _parse_jpeg(head)
    except (IndexError, struct.error):
        file.seek(0)
        head = file.read()
        try:
            height, width, pixels_at = _parse_jpeg(head)
        except (IndexError, struct.error):
            raise ImageReadError("a JPEG cut off within its header") from None
    if not _read_tail(file, size).endswith(b"\xff\xd9"):
        # Phones append films and maps after the end. Inside pixel data 0xFF is always followed by 0 or a restart.
        file.seek(pixels_at)
        if b"\xff\xd9" not in file.read():
            raise ImageReadError("a truncated JPEG: its end marker is missing")
    return height, width


def _parse_jpeg(data: bytes) -> tuple[int, int, int]:
    """(height, width, offset of the pixel data); IndexError or struct.error where ``data`` ends too early."""
    at, orientation = 2, 1
    frame: tuple[int, int] | None = None
    while True:
        if data[at] != 0xFF:
            raise ImageReadError("a JPEG with a damaged header")
        marker = data[at + 1]
        if marker in _LONE_MARKERS:
            at += 1 if marker == 0xFF else 2
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        if marker in _FRAME_MARKERS:
            frame = struct.unpack_from(">HH", data, at + 5)
        elif marker == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            orientation = _exif_orientation(data[at + 10 : at + 2 + length])
        elif marker == 0xDA:
            if frame is None or 0 in frame:
                raise ImageReadError("a JPEG without a size")
            height, width = reversed(frame) if orientation in _TURNED else frame
            return height, width, at + 2 + length
        at += 2 + length


def _check_png(file: BinaryIO, head: bytes, size: int) -> tuple[int, int] | None:
    """(height, width) of a PNG that has its end chunk (W3C PNG, sections 5 and 11); None if it may have to be turned.

    Whether it is turned depends on where its eXIf chunk stands and on OpenCV's version.
    """
    if len(head) < 33:
        raise ImageReadError("a PNG cut off within its header")
    tail = _read_tail(file, size)
    if b"IEND" not in tail:
        raise ImageReadError("a truncated PNG: its end chunk is missing")
    width, height = struct.unpack_from(">II", head, 16)
    return None if b"eXIf" in head or b"eXIf" in tail else (height, width)


def _exif_orientation(tiff: bytes) -> int:
    """The orientation of EXIF data, 1 to 8; 1 where it says nothing or is damaged (TIFF 6.0, section 2)."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, directory)
        for index in range(entries):
            tag, _, _, value = struct.unpack_from(order + "HHIH", tiff, directory + 2 + 12 * index)
            if tag == _ORIENTATION_TAG:
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1
