"""Turns an image file into uint8 BGR pixels, upright, at the size that a detector sees.

Torch-free. Everything here is a function of the file and the arguments alone.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import cv2
import numpy as np

from trainer.data import image_format

JPEG_SUFFIXES = frozenset((".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"))

_LEAST_CONTRAST = 16
"""Of 256 levels: a deep image that uses fewer was not written for the range that it is read in."""
_FEW = 0.01
FILL = 114
"""Gray level of what no image covers."""

logger = logging.getLogger(__name__)

_REDUCED_MODES = ((8, cv2.IMREAD_REDUCED_COLOR_8), (4, cv2.IMREAD_REDUCED_COLOR_4), (2, cv2.IMREAD_REDUCED_COLOR_2))


class ImageReadError(Exception):
    """A file that is not a readable image; the text is the reason, without the path."""


class MissingImageError(ImageReadError):
    """A file that the system does not give: not there, locked, or on a disk that fails."""


class NoContrastError(ImageReadError):
    """An image that decodes to nearly one value: saturated, or of a depth that does not say its range."""


def read_image_bytes(path: Path) -> bytes:
    """Reads the bytes of an image file: no path of a user's reaches a C library. Raises ImageReadError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise MissingImageError(error.strerror or str(error)) from None


def decode_image(path: Path, mode: int = cv2.IMREAD_COLOR) -> np.ndarray:
    """Returns the pixels of an image file; see ``decode_bytes``."""
    return decode_bytes(read_image_bytes(path), mode)


def decode_bytes(content: bytes, mode: int = cv2.IMREAD_COLOR, *, is_checked: bool = False) -> np.ndarray:
    """Returns the pixels of an encoded image, uint8 BGR (height, width, 3), turned as the file asks for.

    Gray becomes three equal channels, alpha is dropped, 16-bit values keep their high byte; see ``_as_bgr`` for floats
    and other depths. An end that is missing does not matter if no pixel is; ``is_checked`` means that a scan found none
    missing. Raises ImageReadError.
    """
    if not content:
        raise ImageReadError("an empty file")
    if has_no_end(content):
        return _decode_without_end(content, mode, is_checked)
    if image_format.is_avif(content):
        return _turn_avif(_as_bgr(_decode(content, mode | cv2.IMREAD_IGNORE_ORIENTATION)), content)
    if _is_deep(content):
        # OpenCV would cut or scale these by rules that differ between formats and modes.
        return _as_bgr(_decode(content, cv2.IMREAD_UNCHANGED))
    image = _as_bgr(_decode(content, mode))
    if image_format.bits_per_sample(content) > 8:
        _check_contrast(image)
    return image


def _is_deep(content: bytes) -> bool:
    """Returns whether samples may be floats, signed, or of more than 16 bits."""
    if image_format.is_tiff(content):
        return image_format.bits_per_sample(content) > 16 or not image_format.parse_tiff(content).is_unsigned
    return content.startswith((b"PF\n", b"Pf\n", b"#?RADIANCE", b"#?RGBE", b"v/1\x01"))


def _decode(content: bytes, mode: int) -> np.ndarray:
    """Returns the image that OpenCV makes of the bytes. Raises ImageReadError."""
    encoded = np.frombuffer(content, np.uint8)
    try:
        image = cv2.imdecode(encoded, mode)
        if image is None and mode != cv2.IMREAD_UNCHANGED:
            # OpenCV converts no 32-bit samples itself, but returns them as they are.
            image = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
    except cv2.error as error:  # more pixels than it takes, or a header that says so
        raise ImageReadError(" ".join(str(error.err or error).split())) from None
    if image is None or image.size == 0:
        raise ImageReadError(f"not an image that OpenCV can decode ({len(content)} bytes)")
    return image


def has_no_end(content: bytes) -> bool:
    """Returns whether a JPEG or PNG lacks its end marker; what phones and writers append after it does not count.

    Raises ImageReadError for a JPEG with a damaged header.
    """
    if content.startswith(image_format.JPEG_START):
        if content.endswith(image_format.JPEG_END):
            return False
        try:
            pixels_at = image_format.parse_jpeg(content)[2]
        except (IndexError, struct.error):
            return False  # cut off within its header, which OpenCV says
        except image_format.FormatError as error:
            raise ImageReadError(str(error)) from None
        # Inside pixel data 0xFF is always followed by 0 or a restart.
        return content.find(image_format.JPEG_END, pixels_at) < 0
    if content.startswith(image_format.PNG_START) and not content.endswith(image_format.PNG_END):
        chunks = image_format.png_chunks(content)
        return not any(name == b"IEND" and at + 4 <= len(content) for name, at, _ in chunks)
    return False


def _decode_without_end(content: bytes, mode: int, is_checked: bool) -> np.ndarray:
    """Decodes a JPEG or PNG that lacks nothing but its end. Raises ImageReadError if pixels are missing."""
    if content.startswith(image_format.PNG_START):
        whole = image_format.mended_png(content)
        if whole is None:
            raise ImageReadError("a truncated PNG: pixels are missing")
        return _as_bgr(_decode(whole, mode))
    ends = image_format.mended_jpeg(content)
    images = [_decode(whole, mode) for whole in (ends[:1] if is_checked else ends)]
    if not all(np.array_equal(images[0], other) for other in images[1:]):
        raise ImageReadError("a truncated JPEG: pixels are missing")
    return _as_bgr(images[0])


def _turn_avif(image: np.ndarray, content: bytes) -> np.ndarray:
    """Turns the image as its file asks for; the decoder leaves that to its caller."""
    quarter_turns, mirror = image_format.avif_transforms(content[: image_format.HEAD_BYTES])
    image = np.rot90(image, quarter_turns)
    return np.ascontiguousarray(image if mirror is None else np.flip(image, mirror))


def load_resized(
    path: Path, image_size: int, *, training: bool, shape_hw: Sequence[int] | None = None
) -> tuple[np.ndarray, tuple[int, int]]:
    """Returns an image whose long side is ``image_size``, uint8 BGR, and its size (height, width) before that.

    Training resizes linearly and lets a JPEG be decoded at 1/2, 1/4 or 1/8 scale if that leaves the long side at
    ``image_size`` or more; ``shape_hw``, the size from the scan, is needed for it. Validation always decodes whole
    and shrinks by area. Raises ImageReadError, also for an image whose size is no longer ``shape_hw``.
    """
    mode, scale = cv2.IMREAD_COLOR, 1
    if training and shape_hw is not None and path.suffix.lower() in JPEG_SUFFIXES:
        fitting = ((m, by) for by, m in _REDUCED_MODES if max(shape_hw) >= image_size * by)
        mode, scale = next(fitting, (mode, scale))
    image = decode_bytes(read_image_bytes(path), mode, is_checked=shape_hw is not None)
    original_hw = image.shape[:2]
    if shape_hw is not None:
        if any(abs(a - b / scale) > 1 for a, b in zip(original_hw, shape_hw, strict=True)):
            raise ImageReadError(f"its size changed after the scan, from {tuple(map(int, shape_hw))} (height, width)")
        original_hw = (int(shape_hw[0]), int(shape_hw[1]))
    height, width = resized_shape(original_hw, image_size)
    if image.shape[:2] != (height, width):
        shrink_by_area = not training and image_size < max(original_hw)
        method = cv2.INTER_AREA if shrink_by_area else cv2.INTER_LINEAR
        image = cv2.resize(image, (width, height), interpolation=method)
    return image, (int(original_hw[0]), int(original_hw[1]))


def resized_shape(shape_hw: Sequence[int], image_size: int) -> tuple[int, int]:
    """Returns (height, width) after scaling the long side to ``image_size``; fractions round up."""
    height, width = int(shape_hw[0]), int(shape_hw[1])
    longest = max(height, width)
    # In whole numbers: 87 * (640 / 116) is a little more than 480, which it should be.
    return -(-height * image_size // longest), -(-width * image_size // longest)


def _as_bgr(image: np.ndarray) -> np.ndarray:
    """Returns three uint8 channels from what OpenCV decoded.

    16-bit values keep their high byte. Floats are taken as 0 to 1, or as 0 to 255 if they exceed 1, and other integers
    as 0 to 255. Raises NoContrastError for values that fit neither, and for a deep image that is nearly of one value.
    """
    is_deep = image.dtype != np.uint8
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    elif is_deep:
        image = _in_bytes(image)
    if is_deep:
        _check_contrast(image)
    if image.ndim == 2 or image.shape[2] == 1:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    if image.shape[2] == 2:
        return cv2.cvtColor(np.ascontiguousarray(image[..., 0]), cv2.COLOR_GRAY2BGR)
    return np.ascontiguousarray(image[..., :3])


def _check_contrast(image: np.ndarray) -> None:
    """Raises NoContrastError for a deep image that uses next to nothing of the range that it is read in."""
    low, high = int(image.min()), int(image.max())
    if high - low < _LEAST_CONTRAST:
        raise NoContrastError(f"its values become {low} to {high} of 0 to 255: they have to be scaled to their range")


def _in_bytes(image: np.ndarray) -> np.ndarray:
    """Converts floats and integers of other depths to uint8; a few may lie outside, as interpolation leaves them."""
    is_float = image.dtype.kind == "f"
    with np.errstate(invalid="ignore"):  # a signaling NaN
        values = np.nan_to_num(image.astype(np.float64), posinf=np.inf, neginf=-np.inf)
    top = 255.0
    if is_float and np.mean(values > 1.0) <= _FEW:
        values, top = values * 255.0 + 0.5, 255.5
    outside = float(np.mean((values < 0.0) | (values > top)))
    if outside > _FEW:
        found = f"{image.dtype} values from {np.nanmin(image):g} to {np.nanmax(image):g}"
        raise NoContrastError(
            f"{found}, {outside:.0%} of them outside {'0 to 1 and 0 to 255' if is_float else '0 to 255'}"
        )
    return np.clip(values, 0.0, 255.0).astype(np.uint8)


class LoadedImage(NamedTuple):
    """An image at the size that a detector sees."""

    pixels: np.ndarray
    """uint8 BGR (height, width, 3); read-only if it lies in a cache."""
    original_hw: tuple[int, int]
    readable: bool
    """False: the file could not be decoded and the pixels are gray; its labels do not count."""


class ImageSource(Protocol):
    """Where loaders get pixels from: the files, or a cache of them."""

    def load(self, index: int) -> LoadedImage:
        """Returns the image of an index."""


class ImageFiles:
    """Images decoded anew each time; one that cannot be decoded is gray, with a warning."""

    def __init__(self, paths: Sequence[Path], shapes_hw: np.ndarray, image_size: int, *, training: bool) -> None:
        self.paths = paths
        self.shapes_hw = shapes_hw
        self.image_size = image_size
        self.training = training
        self._warned: set[int] = set()

    def load(self, index: int) -> LoadedImage:
        """Returns the image of an index, resized."""
        path, shape_hw = self.paths[index], self.shapes_hw[index]
        try:
            pixels, original_hw = load_resized(path, self.image_size, training=self.training, shape_hw=shape_hw)
        except ImageReadError as error:
            if index not in self._warned:
                self._warned.add(index)
                logger.warning("%s: %s; it counts as a gray image without labels", path, error)
            gray = np.full((*resized_shape(shape_hw, self.image_size), 3), FILL, np.uint8)
            return LoadedImage(gray, (int(shape_hw[0]), int(shape_hw[1])), False)
        return LoadedImage(pixels, original_hw, True)
