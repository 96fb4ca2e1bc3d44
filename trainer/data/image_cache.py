"""Keeps one decoded copy of a split per machine, in a file that every rank and loader process maps.

The file's name is a hash of all that decides the pixels, so a file of that name is right, whoever wrote it. It is
written beside, under a lock, and renamed: a kill leaves nothing half done. A copy in memory lies in /dev/shm and goes
with the last process that uses it; what a kill leaves there is used, or removed, by the next start.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import psutil

from trainer.data.images import ImageFiles, LoadedImage, resized_shape
from trainer.data.scan.label_cache import LabeledImages
from trainer.protocol import replacing

logger = logging.getLogger(__name__)

_VERSION = 3
_SPARE = 0.10
"""Share of the free room that a cache leaves to others."""
_POLL_S = 0.05

Progress = Callable[[int, int], None]


class CachedImages:
    """Images of a split from the machine's one copy: as ``ImageFiles`` gives them, bit for bit, but read-only.

    Safe to fork and to pickle: a process that has no mapping makes one.
    """

    def __init__(self, path: Path, shapes_hw: np.ndarray, image_size: int) -> None:
        self.path = path
        self.shapes_hw = shapes_hw
        self.image_size = image_size
        self._offsets = image_offsets(shapes_hw, image_size)
        self._bytes: np.ndarray | None = None

    def load(self, index: int) -> LoadedImage:
        """Returns the image of an index."""
        if self._bytes is None:
            self._bytes = np.memmap(self.path, np.uint8, mode="r")
        start, stop = int(self._offsets[index]), int(self._offsets[index + 1])
        pixels = np.asarray(self._bytes[start:stop]).reshape(*resized_shape(self.shapes_hw[index], self.image_size), 3)
        readable = bool(self._bytes[int(self._offsets[-1]) + index])
        return LoadedImage(pixels, (int(self.shapes_hw[index, 0]), int(self.shapes_hw[index, 1])), readable)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_bytes": None}


def open_image_cache(
    images: LabeledImages,
    *,
    image_size: int,
    training: bool,
    kind: Literal["ram", "disk"],
    cache_dir: Path,
    workers: int = 8,
    on_progress: Progress | None = None,
) -> CachedImages | None:
    """Opens the machine's decoded copy of a split, made first if there is none; None, with a warning, if it cannot be.

    Every rank may call this at the same time: one decodes, with ``workers`` threads, and calls ``on_progress`` with
    (images done, images in all); the others wait and call it with (0, images in all). ``kind`` "ram" is /dev/shm, if
    the machine's memory and the container's limit have room; "disk" is a folder in ``cache_dir`` that is kept for the
    next run.
    """
    folder = _memory_folder() if kind == "ram" else Path(cache_dir) / "images"
    path = folder / f"yolo-launch-{os.getuid()}-{_content_key(images, image_size, training)}.raw"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if kind == "ram":
            remove_unused(folder, keep=path)
        lock = _Lock(path)
    except OSError as error:
        _warn_of(kind, error)
        return None
    try:
        while not lock.try_share():
            if not lock.try_exclusive():
                if on_progress is not None:
                    on_progress(0, len(images))
                time.sleep(_POLL_S)
            elif not path.exists() and not _make(path, images, image_size, training, kind, workers, on_progress):
                lock.release(remove=False)
                return None
        cache = CachedImages(path, images.shapes_hw, image_size)
        cache.load(0)
    except OSError as error:
        lock.release(remove=False)
        _warn_of(kind, error)
        return None
    weakref.finalize(cache, lock.release, remove=kind == "ram")
    return cache


def _warn_of(kind: str, error: OSError) -> None:
    logger.warning("--cache %s: %s; images are decoded anew in each epoch", kind, error)


def image_offsets(shapes_hw: np.ndarray, image_size: int) -> np.ndarray:
    """Returns int64 (n + 1,): where each image's bytes start in a cache, then where one byte an image follows."""
    sizes = [3 * height * width for height, width in (resized_shape(shape, image_size) for shape in shapes_hw)]
    return np.concatenate(([0], np.cumsum(np.array(sizes, np.int64)))).astype(np.int64)


def remove_unused(folder: Path, keep: Path) -> None:
    """Removes this user's caches that no process holds, such as those of killed runs."""
    for lock_path in folder.glob(f"yolo-launch-{os.getuid()}-*.raw.lock"):
        path = lock_path.with_suffix("")
        if path != keep:
            with contextlib.suppress(OSError):
                _Lock(path).release(remove=True)


def free_memory() -> int:
    """Returns the bytes that this process may still use: the machine's, or fewer if its control group has a limit."""
    free = int(psutil.virtual_memory().available)
    for limit_file, used_file in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        # ValueError: "max", which is no limit.
        with contextlib.suppress(OSError, ValueError):
            free = min(free, int(Path(limit_file).read_text()) - int(Path(used_file).read_text()))
    return free


class _Lock:
    """Who uses a cache file: any number of readers, or one writer. The kernel frees it with its process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock_path = path.with_name(path.name + ".lock")
        self._pid = os.getpid()
        self._file = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o600)

    def try_exclusive(self) -> bool:
        """Returns whether this process is now the only one."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return self._is_current()

    def try_share(self) -> bool:
        """Returns whether the file exists and this process now uses it, beside others."""
        if not self._path.exists():
            return False
        fcntl.flock(self._file, fcntl.LOCK_SH)
        return self._is_current() and self._path.exists()

    def release(self, *, remove: bool) -> None:
        """Stops using the file; with ``remove`` the last user removes it."""
        if os.getpid() != self._pid:
            return  # a forked copy of the owner
        if remove and self.try_exclusive():
            for file in (self._path, self._lock_path):
                file.unlink(missing_ok=True)
        os.close(self._file)

    def _is_current(self) -> bool:
        """Returns whether the lock's file is still the one that others find; else takes hold of that one, unlocked."""
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(self._file), os.stat(self._lock_path)):
                return True
        os.close(self._file)
        self._file = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o600)
        return False


def _make(
    path: Path,
    images: LabeledImages,
    image_size: int,
    training: bool,
    kind: str,
    workers: int,
    on_progress: Progress | None,
) -> bool:
    """Decodes a split into a new file; returns False, with a warning, if there is no room."""
    offsets = image_offsets(images.shapes_hw, image_size)
    total = int(offsets[-1]) + len(images)
    if not _has_room(path, total, kind):
        return False
    source = ImageFiles(images.paths, images.shapes_hw, image_size, training=training)
    cv2.setNumThreads(0)
    # The lock makes this the only writer, and under one name the next writer takes over what a killed one left.
    with replacing(path, beside=path.with_name(path.name + ".part")) as beside:
        file = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            # Claims the room at once: a mapped file that outgrows its file system ends in a bus error.
            os.posix_fallocate(file, 0, total)

            def store(index: int) -> None:
                image = source.load(index)
                os.pwrite(file, np.ascontiguousarray(image.pixels).data, int(offsets[index]))
                os.pwrite(file, bytes((image.readable,)), int(offsets[-1]) + index)

            with ThreadPoolExecutor(max(1, workers)) as pool:
                for done, _ in enumerate(pool.map(store, range(len(images))), start=1):
                    if on_progress is not None:
                        on_progress(done, len(images))
        finally:
            os.close(file)
    return True


def _has_room(path: Path, size: int, kind: str) -> bool:
    room = shutil.disk_usage(path.parent).free
    if size > room * (1 - _SPARE) and kind == "disk":
        remove_unused(path.parent, keep=path)
        room = shutil.disk_usage(path.parent).free
    if kind == "ram":
        room = min(room, free_memory())
    if size <= room * (1 - _SPARE):
        return True
    logger.warning(
        "--cache %s needs %.1f GB, and of the %.1f GB free in %s a tenth stays free%s; images are decoded anew in each "
        "epoch",
        *(kind, size / 1e9, room / 1e9, path.parent),
        ": --cache disk may have more" if kind == "ram" else "",
    )
    return False


def _memory_folder() -> Path:
    shared_memory = Path("/dev/shm")
    return shared_memory if shared_memory.is_dir() else Path(tempfile.gettempdir())


def _content_key(images: LabeledImages, image_size: int, training: bool) -> str:
    what = f"{_VERSION} {images.key} {len(images)} {image_size} {training} {cv2.__version__}"
    return hashlib.sha256(what.encode()).hexdigest()[:24]
