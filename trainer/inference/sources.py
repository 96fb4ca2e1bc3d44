"""Reads what a user names, files, folders, patterns and films, as frames that a detector can take.

Files are decoded ahead by threads; OpenCV lets them run beside the model.
"""

from __future__ import annotations

import glob
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from trainer.data.augment.basic import Letterbox, fit_letterbox, letterbox
from trainer.data.dataset import IMAGE_SUFFIXES
from trainer.data.image_format import has_more_frames
from trainer.data.images import ImageReadError, decode_bytes, read_image_bytes
from trainer.errors import DataError
from trainer.reading.plain_path import plain_path
from trainer.reading.text_file import printable

VIDEO_SUFFIXES = frozenset(
    f".{name}" for name in ("asf", "avi", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "ogv", "ts", "webm", "wmv")
)
_FRAMES_AHEAD = 8
"""Frames of a film that are decoded in one go while the ones before are looked at."""
_DEFAULT_FPS = 25.0
_FURTHER_FRAMES = "it holds several frames or pages; the first is looked at"

Item = TypeVar("Item")
Result = TypeVar("Result")
OnUnreadable = Callable[[Path, str], None]


@dataclass(frozen=True)
class Film:
    """What is known of a film before it is read."""

    fps: float
    frames: int
    """As the file says; 0 if it does not."""


@dataclass(frozen=True)
class Frame:
    """One picture on its way through the detector."""

    number: int
    """Its place in the order of the results."""
    path: Path
    pixels: np.ndarray
    """uint8 BGR (height, width, 3), as in the file."""
    canvas: np.ndarray
    """The same at the detector's size, in a gray canvas that is a multiple of the stride."""
    fit: Letterbox
    index: int | None = None
    """Number in its film, from 0; None for a picture."""
    film: Film | None = None
    note: str = ""
    """What a person should know of its file."""

    def in_file(self, boxes_xyxy: np.ndarray) -> np.ndarray:
        """Returns boxes (n, 4) of the canvas in pixels of the file, cut at its edges."""
        height, width = self.pixels.shape[:2]
        ratio = np.array((self.fit.resized_hw[1] / width, self.fit.resized_hw[0] / height) * 2)
        return np.clip((boxes_xyxy - np.array(self.fit.left_top * 2)) / ratio, 0, (width, height) * 2)


def find_media(sources: Sequence[str], on_unusable: Callable[[DataError], None] | None = None) -> list[Path]:
    """Returns the picture and film files, each once, of ``sources``: files, folders (their own files) and patterns.

    ``on_unusable`` is called for each source that names nothing usable while others do. Raises DataError if none does,
    or if one does not and there is no ``on_unusable``.
    """
    found: dict[Path, None] = {}
    unusable: list[DataError] = []
    for source in sources:
        try:
            found.update(dict.fromkeys(_files_of(source)))
        except DataError as error:
            unusable.append(error)
    if unusable and (not found or on_unusable is None):
        raise unusable[0]
    if on_unusable is not None:
        for problem in unusable:
            on_unusable(problem)
    return list(found)


def is_film(path: Path) -> bool:
    """Returns whether a file is read as a film."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def read_frames(
    media: Iterable[Path],
    *,
    image_size: int,
    stride: int,
    threads: int = 4,
    on_unreadable: OnUnreadable,
) -> Iterator[Frame]:
    """Yields the frames of all files in order, decoded and resized ahead.

    ``on_unreadable`` is called with each file that fails and the reason.
    """

    def prepare(path: Path, pixels: np.ndarray) -> Frame:
        shape = (pixels.shape[0], pixels.shape[1])
        fit = fit_letterbox(shape, (image_size, image_size), auto=True, stride=stride)
        return Frame(0, path, pixels, letterbox(pixels, fit), fit)

    def read_picture(path: Path) -> Frame | ImageReadError:
        try:
            content = read_image_bytes(path)
            frame = prepare(path, decode_bytes(content))
        except ImageReadError as error:
            return error
        except cv2.error as error:  # sides that OpenCV does not resize
            return ImageReadError(" ".join(str(error.err or error).split()))
        return replace(frame, note=_FURTHER_FRAMES) if has_more_frames(content) else frame

    number = 0
    with ThreadPoolExecutor(threads) as pool:
        for films, group in _runs(media):
            loaded = zip(group, _ahead(pool, read_picture, group, 2 * threads), strict=True)
            of_films = (frame for path in group for frame in _read_film(pool, path, prepare, on_unreadable))
            for frame in of_films if films else _readable(loaded, on_unreadable):
                yield replace(frame, number=number)
                number += 1


def batches_of_one_size(frames: Iterable[Frame], batch_size: int) -> Iterator[list[Frame]]:
    """Yields frames whose canvases have one size, ``batch_size`` at a time or fewer.

    A frame's canvas never depends on its neighbors, so batching changes no result. Frames of a rare size are held back
    until 4 batches are waiting in all.
    """
    waiting: dict[tuple[int, ...], list[Frame]] = {}
    for frame in frames:
        size = frame.canvas.shape
        group = waiting.setdefault(size, [])
        group.append(frame)
        if len(group) == batch_size:
            yield waiting.pop(size)
        elif sum(map(len, waiting.values())) >= 4 * batch_size:
            yield waiting.pop(next(iter(waiting)))
    yield from waiting.values()


def _files_of(source: str) -> list[Path]:
    path = Path(os.path.expanduser(source))
    if os.path.isdir(path):
        return _files_in(path)
    if os.path.isfile(path):
        if not _is_media(path):
            raise _unusable(f"{printable(path)} is neither a picture nor a film", path.suffix or "no suffix")
        return [path]
    if any(sign in source for sign in "*?["):
        matches = (Path(match) for match in sorted(glob.glob(str(path), recursive=True)))
        found = [file for file in matches if os.path.isfile(file) and _is_media(file)]
        if found:
            return found
        raise _unusable("the pattern matches no pictures and no films", source)
    if source.isdigit() or "://" in source:
        raise _unusable("cameras and streams are not read", source)
    raise _unusable("there is no such file or folder", source)


def _files_in(folder: Path) -> list[Path]:
    try:
        files = sorted(file for file in folder.iterdir() if os.path.isfile(file))
    except OSError as error:
        raise _unusable(f"{printable(folder)} cannot be read", error.strerror or str(error)) from None
    found = [file for file in files if _is_media(file)]
    if not found:
        suffixes = sorted({file.suffix.lower() or "no suffix" for file in files})
        seen = f"files with {', '.join(suffixes[:8])}" if suffixes else "no files"
        raise _unusable(f"{printable(folder)} holds no pictures and no films", seen)
    return found


def _unusable(what: str, seen: str) -> DataError:
    return DataError(
        what[:300], seen=printable(seen)[:300], expected=_EXPECTED, next_command="yolo-launch predict --help"
    )


_EXPECTED = "a picture, a film, a folder of them, or a pattern such as 'pictures/*.jpg'"


def _is_media(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES or is_film(path)


def _runs(media: Iterable[Path]) -> Iterator[tuple[bool, list[Path]]]:
    """Yields pictures in a row, films in a row."""
    run: list[Path] = []
    for path in media:
        if run and is_film(run[0]) != is_film(path):
            yield is_film(run[0]), run
            run = []
        run.append(path)
    if run:
        yield is_film(run[0]), run


def _ahead(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], depth: int
) -> Iterator[Result]:
    """Maps in order, at most ``depth`` results ahead."""
    waiting: deque[Future[Result]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) >= depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _readable(loaded: Iterable[tuple[Path, Frame | ImageReadError]], on_unreadable: OnUnreadable) -> Iterator[Frame]:
    for path, frame in loaded:
        if isinstance(frame, ImageReadError):
            on_unreadable(path, str(frame))
        else:
            yield frame


def _read_film(
    pool: ThreadPoolExecutor,
    path: Path,
    prepare: Callable[[Path, np.ndarray], Frame],
    on_unreadable: OnUnreadable,
) -> Iterator[Frame]:
    """Yields the frames of a film; the next few are decoded while these are used."""
    with plain_path(path) as name:
        capture = cv2.VideoCapture(name)
    fps = capture.get(cv2.CAP_PROP_FPS)
    film = Film(fps if 0 < fps < 1000 else _DEFAULT_FPS, max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT))))

    def read_some() -> list[Frame]:
        frames: list[Frame] = []
        while len(frames) < _FRAMES_AHEAD:
            is_there, pixels = capture.read()
            if not is_there:
                break
            frames.append(prepare(path, pixels))
        return frames

    index = 0
    upcoming = pool.submit(read_some)
    try:
        while frames := upcoming.result():
            upcoming = pool.submit(read_some)
            for frame in frames:
                yield replace(frame, index=index, film=film)
                index += 1
    finally:
        upcoming.exception()  # nobody may read from a capture that is released
        capture.release()
    if index == 0:
        on_unreadable(path, "not a film that OpenCV can decode")
