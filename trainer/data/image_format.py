"""Reads from an image file's bytes, without a decoder: size, orientation, depth, further frames, a missing end."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
HEAD_BYTES = 32 * 1024
"""Holds what a file says of itself, unless a camera put a large preview before it."""
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_LONE_MARKERS = frozenset((0x01, 0xFF, *range(0xD0, 0xD9)))
_TURNED = frozenset((5, 6, 7, 8))
"""EXIF orientations that show the image on its side."""
_ORIENTATION, _BITS_PER_SAMPLE, _SAMPLE_FORMAT = 0x0112, 0x0102, 0x0153
_UNSIGNED = 1
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_MAX_PNG_BYTES = 2**30


class FormatError(Exception):
    """Bytes that are no whole image of their format; the text is the reason."""


@dataclass(frozen=True)
class TiffTags:
    """What the first directory of a TIFF file says."""

    orientation: int = 1
    bits: int = 8
    is_unsigned: bool = True
    has_more: bool = False
    """Another directory follows: further pages."""


def parse_jpeg(data: bytes) -> tuple[int, int, int]:
    """Returns (height, width as shown, offset of the pixel data), of ITU T.81, annex B.

    Raises IndexError or struct.error if ``data`` ends too early, and FormatError.
    """
    at, orientation = 2, 1
    frame: tuple[int, int] | None = None
    while True:
        if data[at] != 0xFF:
            raise FormatError("a JPEG with a damaged header")
        marker = data[at + 1]
        if marker in _LONE_MARKERS:
            at += 1 if marker == 0xFF else 2
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        if marker in _FRAME_MARKERS:
            frame = struct.unpack_from(">HH", data, at + 5)
        elif marker == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            orientation = parse_tiff(data[at + 10 : at + 2 + length]).orientation
        elif marker == 0xDA:
            if frame is None or 0 in frame:
                raise FormatError("a JPEG without a size")
            height, width = reversed(frame) if orientation in _TURNED else frame
            return height, width, at + 2 + length
        at += 2 + length


def mended_jpeg(data: bytes) -> tuple[bytes, ...]:
    """Returns a JPEG without its end with three ends added: all three decode alike exactly if no pixel is missing.

    A decoder reads what follows the last pixel's code as nothing, and what follows an earlier one's as pixels.
    """
    data = data[:-1] if data.endswith(b"\xff") else data
    return tuple(data + filler * 64 + JPEG_END for filler in (b"", b"\x55", b"\xaa"))


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yields (name, offset, length) of each chunk's content, the last one cut at the end of ``data``."""
    at = len(PNG_START)
    while at + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        yield name, at + 8, min(length, len(data) - at - 8)
        at += 12 + length


def mended_png(data: bytes) -> bytes | None:
    """Returns a PNG whose end is missing with one added; None if pixels are missing (W3C PNG, sections 5 and 10)."""
    head, packed, first_pixels_at = None, [], 0
    for name, at, length in png_chunks(data):
        if name == b"IHDR" and length == 13:
            head = struct.unpack_from(">IIBBBBB", data, at)
        elif name == b"IDAT":
            first_pixels_at = first_pixels_at or at - 8
            packed.append(data[at : at + length])
    if head is None or not packed or head[3] not in _PNG_CHANNELS or head[6]:
        return None
    width, height, depth, color = head[:4]
    size = height * (1 + -(-width * depth * _PNG_CHANNELS[color] // 8))
    if size > _MAX_PNG_BYTES:
        return None
    try:
        pixels = zlib.decompressobj().decompress(b"".join(packed), size)
    except zlib.error:
        return None
    if len(pixels) < size:
        return None
    body = b"IDAT" + zlib.compress(pixels, 1)
    return (
        data[:first_pixels_at] + struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)) + PNG_END
    )


def parse_tiff(data: bytes) -> TiffTags:
    """Reads the first directory of a TIFF file or of EXIF data; what is missing or wrong in it gets the default.

    TIFF 6.0, section 2.
    """
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        return TiffTags()
    if b"+" in data[2:4]:  # BigTIFF, whose directories have another form
        return TiffTags(bits=64)
    found: dict[int, int] = {}
    next_directory = 0
    try:
        (directory,) = struct.unpack_from(order + "I", data, 4)
        (entries,) = struct.unpack_from(order + "H", data, directory)
        for index in range(entries):
            at = directory + 2 + 12 * index
            tag, kind, count = struct.unpack_from(order + "HHI", data, at)
            if tag in (_ORIENTATION, _BITS_PER_SAMPLE, _SAMPLE_FORMAT) and kind == 3:
                if count > 2:
                    (at,) = struct.unpack_from(order + "I", data, at + 8)
                    at -= 8
                (found[tag],) = struct.unpack_from(order + "H", data, at + 8)
        (next_directory,) = struct.unpack_from(order + "I", data, directory + 2 + 12 * entries)
    except struct.error:
        pass
    orientation = found.get(_ORIENTATION, 1)
    return TiffTags(
        orientation=orientation if 1 <= orientation <= 8 else 1,
        bits=found.get(_BITS_PER_SAMPLE, 1),
        is_unsigned=found.get(_SAMPLE_FORMAT, _UNSIGNED) == _UNSIGNED,
        has_more=next_directory != 0,
    )


def is_tiff(data: bytes) -> bool:
    """Returns whether these are the bytes of a TIFF file, BigTIFF included."""
    return data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def bits_per_sample(data: bytes) -> int:
    """Returns the bits of each value of a PNG or TIFF, 8 of anything else."""
    if data.startswith(PNG_START) and len(data) > 24:
        return data[24]
    return parse_tiff(data).bits if is_tiff(data) else 8


def is_avif(data: bytes) -> bool:
    """Returns whether these are the bytes of an AVIF file."""
    return (data[4:8] == b"ftyp" and b"avif" in data[8:64]) or data[4:12] == b"ftypavis"


def avif_transforms(head: bytes) -> tuple[int, int | None]:
    """Returns (quarter turns to the left, mirror axis) of an AVIF (ISO 23008-12, 6.5.10).

    The axis is 0 for upside down, 1 for left to right, None without a mirror.
    """
    turn, mirror = head.find(b"\0\0\0\x09irot"), head.find(b"\0\0\0\x09imir")
    quarter_turns = head[turn + 8] & 3 if 0 <= turn < len(head) - 8 else 0
    return quarter_turns, head[mirror + 8] & 1 if 0 <= mirror < len(head) - 8 else None


def has_more_frames(data: bytes) -> bool:
    """Returns whether a file holds several pictures, of which a detector sees the first."""
    if data.startswith(b"GIF8"):
        return _has_second_gif_frame(data)
    if data.startswith(PNG_START):
        return b"acTL" in data[:HEAD_BYTES]
    if data[:4] == b"RIFF" and data[8:16] == b"WEBPVP8X":
        return bool(data[20] & 0x02) if len(data) > 20 else False
    if data[4:12] == b"ftypavis":
        return True
    return is_tiff(data) and parse_tiff(data).has_more


def _has_second_gif_frame(data: bytes) -> bool:
    """Walks the blocks of a GIF (GIF89a, section 12)."""
    try:
        at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
        frames = 0
        while data[at] in (0x21, 0x2C):
            if data[at] == 0x2C:
                frames += 1
                if frames > 1:
                    return True
                at += 11 + (3 << (data[at + 9] & 7) + 1 if data[at + 9] & 0x80 else 0)
            else:
                at += 2
            while data[at]:
                at += 1 + data[at]
            at += 1
    except IndexError:
        pass
    return False
