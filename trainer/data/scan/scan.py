"""Scans every image of a split with its labels: in parallel, checked, and kept in a cache.

The cache is valid for the files' paths, sizes and times; it lies in the user's cache folder, so that read-only data
sets work. Torch-free.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import cv2

from trainer.data.dataset import DatasetFile, label_texts_for, relative_name
from trainer.data.images import ImageReadError
from trainer.data.scan.assemble import FileScan, assemble, check_classes, check_usable
from trainer.data.scan.image_header import read_header
from trainer.data.scan.label_cache import LabeledImages, read_label_cache, write_label_cache
from trainer.data.scan.label_file import LabelError
from trainer.data.scan.labels import Labels
from trainer.data.scan.report import ScanReport, tally
from trainer.data.scan.unused_files import find_unknown, find_unused_labels
from trainer.data.split_files import SplitFiles, find_files
from trainer.protocol import MAX_BAD_SHARE
from trainer.reading.text_file import printable

_CACHE_VERSION = 2
_CHUNK = 64
"""Files per task: enough that handing out tasks costs nothing."""

_LOCAL_S = 100e-6
"""Seconds for the states of an image and its label, below which the disk is taken for a local one."""

Item = TypeVar("Item")
Result = TypeVar("Result")
Progress = Callable[[int, int], None]


def scan_split(  # noqa: PLR0913 (what is scanned, what may be bad, and where it is cached)
    dataset: DatasetFile,
    split: str,
    *,
    num_classes: int,
    single_cls: bool = False,
    max_bad_share: float = MAX_BAD_SHARE,
    cache_dir: Path,
    workers: int = 8,
    writer: bool = True,
    on_progress: Progress | None = None,
) -> tuple[LabeledImages, ScanReport]:
    """Returns the usable images of a split and what was found, from the cache if it is current.

    ``single_cls`` makes every label class 0. ``workers`` threads read files; ``writer`` says whether to write
    the cache. ``on_progress`` is called with (files done, files in all). Raises DataError for a split without images,
    a training split without labels, one of which more than ``max_bad_share`` cannot be used, and a class index that
    the data set does not name.
    """
    files = find_files(dataset, split)
    paths, labels = files.images, Labels(dataset, split)
    with ThreadPoolExecutor(max(1, workers)) as pool:
        key = _content_key(dataset, split, paths, pool, num_classes, single_cls)
        cache_path = Path(cache_dir) / "labels" / f"{_cache_name(dataset, split, num_classes, single_cls)}.npz"
        found = read_label_cache(cache_path, key, paths)
        if found is None:
            read = partial(_scan_file, labels=labels)
            scans = list(_map_files(pool, read, paths, on_progress))
            found = assemble([Path(path) for path in paths], scans, key, labels)
            check_classes(found[0], scans, num_classes, single_cls, dataset, labels)
            if single_cls:
                found[0].boxes.rows[:, 0] = 0
            if writer:
                write_label_cache(cache_path, *found, paths)
    images, report = found[0], _with_files(found[1], files)
    check_usable(dataset, split, images, report, paths, max_bad_share, labels)
    return images, report


def _with_files(report: ScanReport, files: SplitFiles) -> ScanReport:
    """Returns the report with what the folders hold beside the images, which no cache of their contents has."""
    return replace(
        report,
        unreadable_folders=tally(f"{printable(path)}: {why}" for path, why in files.unreadable),
        unknown_suffix=find_unknown(files),
        unused_labels=find_unused_labels(files),
        backslashes=tally(f"{printable(path)}:{line}" for path, line in files.backslashes),
        hidden=tally(printable(path) for path in files.hidden),
    )


def _scan_file(file: str, *, labels: Labels) -> FileScan:
    path = Path(file)
    try:
        header = read_header(path)
    except ImageReadError as error:
        return FileScan(None, None, error, None)
    try:
        return FileScan(header, labels.read(path, (header.height, header.width)), None, None)
    except LabelError as error:
        return FileScan(header, None, None, error)


def _map_files(
    pool: ThreadPoolExecutor,
    function: Callable[[Item], Result],
    items: Sequence[Item],
    on_progress: Progress | None = None,
) -> Iterator[Result]:
    """Maps over a thread pool in chunks, in order, with progress."""
    chunks = [items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK)]
    done = 0
    for results in pool.map(lambda chunk: [function(item) for item in chunk], chunks):
        yield from results
        done += len(results)
        if on_progress is not None:
            on_progress(done, len(items))


def _content_key(
    dataset: DatasetFile,
    split: str,
    paths: Sequence[str],
    pool: ThreadPoolExecutor,
    num_classes: int,
    single_cls: bool,
) -> str:
    """Returns a hash of every image's path, of sizes and times of images and label files, and of how they are read."""
    way = f"{_CACHE_VERSION} {num_classes} {single_cls} {dataset.keypoint_numbers} {cv2.__version__}\n"
    digest = hashlib.sha256(way.encode())
    is_annotated = split in dataset.annotations
    if is_annotated:
        digest.update(f"{dataset.key} {' '.join(dataset.names)}\n".encode())
    pairs = list(zip(paths, paths if is_annotated else label_texts_for(paths), strict=True))
    # A local disk answers sooner than another thread takes over; a network's is asked for many files at once.
    began_at = time.perf_counter()
    states = [_file_states(pair) for pair in pairs[:_CHUNK]]
    if time.perf_counter() - began_at < _CHUNK * _LOCAL_S:
        states += map(_file_states, pairs[_CHUNK:])
    else:
        states += _map_files(pool, _file_states, pairs[_CHUNK:])
    for path, state in zip(paths, states, strict=True):
        digest.update(f"{relative_name(dataset, path)}\t{state}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _file_states(files: tuple[str, str]) -> str:
    """Returns sizes and times of an image and its label file."""
    states = []
    for file in files:
        try:
            stat = os.stat(file)
            states.append(f"{stat.st_size} {stat.st_mtime_ns}")
        except OSError:
            states.append("-")
    return "\t".join(states)


def _cache_name(dataset: DatasetFile, split: str, num_classes: int, single_cls: bool) -> str:
    """Returns one name per way of reading a split, so that a newer scan takes the older one's place."""
    what = f"{dataset.root}\0{dataset.splits[split]}\0{num_classes}\0{single_cls}"
    return f"{split}-{hashlib.sha256(what.encode(errors='surrogateescape')).hexdigest()[:16]}"
