"""An image file becomes uint8 BGR pixels, upright, at the size that a detector sees.

Torch-free. Everything here is a function of the file and the arguments alone.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import cv2
import numpy as np

JPEG_SUFFIXES = frozenset((".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"))

FILL = 114
"""Gray level where there is no image."""

logger = logging.getLogger(__name__)

_REDUCED_MODES = ((8, cv2.IMREAD_REDUCED_COLOR_8), (4, cv2.IMREAD_REDUCED_COLOR_4), (2, cv2.IMREAD_REDUCED_COLOR_2))


class ImageReadError(Exception):
    """A file that is not a readable image; the text is the reason, without the path."""


def decode_image(path: Path, mode: int = cv2.IMREAD_COLOR) -> np.ndarray:
    """The pixels of an image file, uint8 BGR (height, width, 3), turned as its EXIF data says.

    Gray becomes three equal channels, alpha is dropped, 16-bit values keep their high byte, floats are taken as 0 to
    1. Raises ImageReadError.
    """
    try:
        image = cv2.imread(str(path), mode)
        if image is None:
            # OpenCV converts no 32-bit samples itself, but hands them over as they are.
            image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:  # more pixels than it takes, or a header that says so
        raise ImageReadError(" ".join(str(error.err or error).split())) from None
    if image is None or image.size == 0:
        raise ImageReadError(_why_unreadable(path))
    return _as_bgr(image)


def load_resized(
    path: Path, image_size: int, *, training: bool, shape_hw: Sequence[int] | None = None
) -> tuple[np.ndarray, tuple[int, int]]:
    """An image whose long side is ``image_size``, uint8 BGR, and its size (height, width) before that.

    Training resizes linearly and lets a JPEG be decoded at 1/2, 1/4 or 1/8 scale where that leaves the long side at
    ``image_size`` or more; ``shape_hw``, the size from the scan, is needed for it. Validation always decodes whole
    and shrinks by area. Raises ImageReadError, also for an image whose size is no longer ``shape_hw``.
    """
    mode, scale = cv2.IMREAD_COLOR, 1
    if training and shape_hw is not None and path.suffix.lower() in JPEG_SUFFIXES:
        fitting = ((m, by) for by, m in _REDUCED_MODES if max(shape_hw) >= image_size * by)
        mode, scale = next(fitting, (mode, scale))
    image = decode_image(path, mode)
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
    """(height, width) after scaling the long side to ``image_size``; fractions round up."""
    height, width = int(shape_hw[0]), int(shape_hw[1])
    longest = max(height, width)
    # In whole numbers: 87 * (640 / 116) is a little more than 480, which it should be.
    return -(-height * image_size // longest), -(-width * image_size // longest)


def _as_bgr(image: np.ndarray) -> np.ndarray:
    """Three uint8 channels from whatever OpenCV handed over."""
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    elif image.dtype.kind == "f":
        image = (np.clip(np.nan_to_num(image), 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
    elif image.dtype != np.uint8:
        image = np.clip(image, 0, 255).astype(np.uint8)
    if image.ndim == 2 or image.shape[2] == 1:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    if image.shape[2] == 2:
        return cv2.cvtColor(np.ascontiguousarray(image[..., 0]), cv2.COLOR_GRAY2BGR)
    return np.ascontiguousarray(image[..., :3])


def _why_unreadable(path: Path) -> str:
    try:
        size = path.stat().st_size
    except OSError as error:
        return error.strerror or str(error)
    return f"not an image that OpenCV can decode ({size} bytes)"


class LoadedImage(NamedTuple):
    """An image at the size that a detector sees."""

    pixels: np.ndarray
    """uint8 BGR (height, width, 3); read-only where it lies in a cache."""
    original_hw: tuple[int, int]
    readable: bool
    """False: the file could not be decoded and the pixels are gray; its labels do not count."""


class ImageSource(Protocol):
    """Where loaders get pixels from: the files, or a cache of them."""

    def load(self, index: int) -> LoadedImage:
        """The image of an index."""


class ImageFiles:
    """Images decoded anew each time; one that cannot be decoded is gray, with a warning."""

    def __init__(self, paths: Sequence[Path], shapes_hw: np.ndarray, image_size: int, *, training: bool) -> None:
        self.paths = paths
        self.shapes_hw = shapes_hw
        self.image_size = image_size
        self.training = training
        self._warned: set[int] = set()

    def load(self, index: int) -> LoadedImage:
        """The image of an index, resized."""
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
