"""Reads an image file's size as shown and checks that it is whole, without decoding most JPEG and PNG."""

from __future__ import annotations

import hashlib
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from trainer.data import image_format
from trainer.data.images import ImageReadError, MissingImageError, NoContrastError, decode_bytes, has_no_end

_ENDS_BYTES = 4096
"""How much of either end goes into the digest that finds equal files."""
_PLAIN_BYTES, _PLAIN_BYTES_PER_PIXEL = 2048, 1 / 40
"""A file that is smaller than this may be of one color; pictures of anything take more."""
_ONE_COLOR = 2
"""Levels that JPEG's rounding may put between pixels of one color."""


@dataclass(frozen=True)
class ImageHeader:
    """An image file as far as a scan needs to know it."""

    height: int
    """Rows as shown, after EXIF orientation."""
    width: int
    digest: bytes
    """Of the file's size and both ends: different files almost always differ here, equal ones never."""
    lacks_end: bool = False
    """Its end marker is missing, and no pixel."""
    has_more_frames: bool = False
    """It holds further frames or pages, which no detector sees."""


def read_header(path: Path) -> ImageHeader:
    """Returns size and digest of an image file that has all its pixels.

    JPEG and PNG are judged by their markers, at a tenth of the cost of a decode: damage in the middle is found only
    when they are decoded. Other formats, deep ones, those without an end and those that may be of one color are
    decoded. Raises ImageReadError, with the reason, for the rest.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(image_format.HEAD_BYTES)
            size = os.fstat(file.fileno()).st_size
            digest = _digest_ends(file, head, size)
            shape_hw = _marked_shape(file, head, size)
            content = b""
            if shape_hw is None or size < _PLAIN_BYTES + shape_hw[0] * shape_hw[1] * _PLAIN_BYTES_PER_PIXEL:
                file.seek(0)
                content = file.read()
    except OSError as error:
        raise MissingImageError(error.strerror or str(error)) from error
    except image_format.FormatError as error:
        raise ImageReadError(str(error)) from None
    if not head:
        raise ImageReadError("an empty file")
    if head.lstrip().startswith((b"<!", b"<html", b"<HTML", b"<?xml")):
        raise ImageReadError("a web page, not an image")
    lacks_end = False
    if content:
        lacks_end = has_no_end(content)
        shape_hw = _decoded_shape(content)
    assert shape_hw is not None
    return ImageHeader(*shape_hw, digest, lacks_end, image_format.has_more_frames(content or head))


def _decoded_shape(content: bytes) -> tuple[int, int]:
    """Returns (height, width) of an image. Raises NoContrastError if it is of one color."""
    image = decode_bytes(content)
    if int(np.ptp(image.reshape(-1, 3), axis=0).max()) <= _ONE_COLOR and image.shape[0] * image.shape[1] > 1:
        raise NoContrastError(f"every pixel is {tuple(image[0, 0].tolist())}")
    return image.shape[0], image.shape[1]


def _marked_shape(file: BinaryIO, head: bytes, size: int) -> tuple[int, int] | None:
    """Returns (height, width) by the markers of a whole JPEG or PNG of 8 bits; None for what has to be decoded."""
    if head.startswith(image_format.JPEG_START):
        return _check_jpeg(file, head, size)
    if head.startswith(image_format.PNG_START):
        return _check_png(file, head, size)
    return None


def _digest_ends(file: BinaryIO, head: bytes, size: int) -> bytes:
    tail = head[-_ENDS_BYTES:] if len(head) == size else _read_tail(file, size)
    return hashlib.blake2b(struct.pack("<Q", size) + head[:_ENDS_BYTES] + tail, digest_size=16).digest()


def _read_tail(file: BinaryIO, size: int) -> bytes:
    file.seek(max(0, size - _ENDS_BYTES))
    return file.read(_ENDS_BYTES)


def _check_jpeg(file: BinaryIO, head: bytes, size: int) -> tuple[int, int] | None:
    """Returns (height, width) of a JPEG that has an end marker after its pixels; None if it has none."""
    try:
        height, width, pixels_at = image_format.parse_jpeg(head)
    except (IndexError, struct.error):
        file.seek(0)
        head = file.read()
        try:
            height, width, pixels_at = image_format.parse_jpeg(head)
        except (IndexError, struct.error):
            raise ImageReadError("a JPEG cut off within its header") from None
    if not _read_tail(file, size).endswith(image_format.JPEG_END):
        # Phones append films and maps after the end. Inside pixel data 0xFF is always followed by 0 or a restart.
        file.seek(pixels_at)
        if image_format.JPEG_END not in file.read():
            return None
    return height, width


def _check_png(file: BinaryIO, head: bytes, size: int) -> tuple[int, int] | None:
    """Returns (height, width) of a PNG of 8 bits that has its end chunk; None if it has to be decoded.

    Whether such an image is turned depends on where its eXIf chunk stands and on OpenCV's version.
    """
    if len(head) < 33:
        raise ImageReadError("a PNG cut off within its header")
    tail = _read_tail(file, size)
    is_plain = head[24] <= 8 and b"eXIf" not in head and b"eXIf" not in tail
    if not is_plain or not tail.endswith(image_format.PNG_END):
        return None
    width, height = struct.unpack_from(">II", head, 16)
    return height, width
