"""Keeps decoded images for the samples that will show them again. What is kept changes decodes, never a sample."""

from __future__ import annotations

import mmap
import multiprocessing
from collections.abc import Sequence

import numpy as np

from trainer.data.image_cache import free_memory, image_offsets
from trainer.data.images import ImageSource, LoadedImage, resized_shape
from trainer.data.loading.partners import KEPT_SET_BYTES

_MISSING, _READABLE, _UNREADABLE = 0, 1, 2
_LOCK_TIMEOUT_S = 5.0
_SPARE_SHARE = 0.25
"""Of the memory that is free."""


class WindowStore:
    """Keeps each image until no later step of its lane can ask for it."""

    def __init__(self, source: ImageSource, window: int) -> None:
        self._source = source
        self._window = window
        self._epoch, self._step = -1, 0
        self._kept: dict[int, LoadedImage] = {}
        self._expiring: dict[int, list[int]] = {}  # by the last step that can ask for them

    def begin_step(self, epoch: int, step: int) -> None:
        """Forgets what no sample of this step or a later one can ask for; steps of an epoch come in order."""
        if epoch != self._epoch or step < self._step:
            self._kept.clear()
            self._expiring.clear()
        self._epoch, self._step = epoch, step
        for last in [last for last in self._expiring if last < step]:
            for index in self._expiring.pop(last):
                self._kept.pop(index, None)

    def load(self, index: int) -> LoadedImage:
        """Returns the image of an index, decoded if it is not kept."""
        image = self._kept.get(index)
        if image is None:
            image = self._kept[index] = self._source.load(index)
            # An epoch's first samples look ahead to the end of the first window.
            last = max(self._step, self._window - 1) + self._window - 1
            self._expiring.setdefault(last, []).append(index)
        return image


class SharedStore:
    """Keeps the images of a whole set, decoded once by whichever process needs one first, in memory that forks share.

    Images beyond ``max_bytes`` are decoded each time.
    """

    def __init__(self, source: ImageSource, shapes_hw: np.ndarray, image_size: int, max_bytes: int) -> None:
        self._source = source
        self._shapes_hw = shapes_hw
        self._image_size = image_size
        self._offsets = image_offsets(shapes_hw, image_size)
        self._stored = int(np.searchsorted(self._offsets[1:], max_bytes, side="right"))
        # Anonymous memory: nothing in /dev/shm, nothing left behind, and pages that nobody wrote to cost nothing.
        self._states = np.frombuffer(mmap.mmap(-1, max(1, self._stored)), np.uint8)
        self._pixels = np.frombuffer(mmap.mmap(-1, max(1, int(self._offsets[self._stored]))), np.uint8)
        # Orders the bytes before the state that announces them, which not every processor does by itself.
        self._lock = multiprocessing.get_context("fork").Lock()

    def load(self, index: int) -> LoadedImage:
        """Returns the image of an index, decoded if no process has done it."""
        if index >= self._stored:
            return self._source.load(index)
        start, stop = int(self._offsets[index]), int(self._offsets[index + 1])
        pixels = self._pixels[start:stop].reshape(*resized_shape(self._shapes_hw[index], self._image_size), 3)
        state = self._state(index)
        if state == _MISSING:
            image = self._source.load(index)
            # Two processes may do this at once: they write the same bytes.
            pixels[...] = image.pixels
            self._state(index, _READABLE if image.readable else _UNREADABLE)
            return image
        shape = self._shapes_hw[index]
        return LoadedImage(pixels, (int(shape[0]), int(shape[1])), state == _READABLE)

    def _state(self, index: int, new: int = _MISSING) -> int:
        """Returns an image's state, after setting it if ``new`` is given."""
        if not self._lock.acquire(timeout=_LOCK_TIMEOUT_S):
            return _MISSING  # whoever held it was killed
        try:
            if new != _MISSING:
                self._states[index] = new
            return int(self._states[index])
        finally:
            self._lock.release()


def keep_decoded(
    source: ImageSource, shapes_hw: np.ndarray, image_size: int, *, window: int, local_world_size: int
) -> ImageSource:
    """Returns a source that decodes an image once: for a window of steps if partners come from one, else for the run.

    A set that is too large to be kept is decoded anew for each sample that shows it, and so are images for which the
    machine has no memory to spare.
    """
    if window:
        return WindowStore(source, window)
    if decoded_bytes(shapes_hw, image_size) > KEPT_SET_BYTES or "fork" not in multiprocessing.get_all_start_methods():
        return source
    room = min(KEPT_SET_BYTES, int(free_memory() * _SPARE_SHARE))
    return SharedStore(source, shapes_hw, image_size, room // local_world_size)


def decoded_bytes(shapes_hw: Sequence[Sequence[int]] | np.ndarray, image_size: int) -> int:
    """Returns the bytes that all images of a set take at ``image_size``, uint8 BGR."""
    return int(image_offsets(np.asarray(shapes_hw), image_size)[-1])
