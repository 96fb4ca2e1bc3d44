"""Every image of a split with its labels: scanned in parallel, checked, and kept in a cache.

The cache is valid for the files' paths, sizes and times; it lies in the user's cache folder, so that read-only data
sets work. Torch-free.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from trainer.data.dataset import DatasetFile, label_path_for, relative_name
from trainer.data.images import ImageReadError
from trainer.data.scan.image_header import ImageHeader, read_header
from trainer.data.scan.label_cache import LabeledImages, read_label_cache, write_label_cache
from trainer.data.scan.label_file import LabelError, LabelRows, read_label_file
from trainer.data.scan.report import MAX_EXAMPLES, ScanReport, tally
from trainer.data.split_files import find_images
from trainer.errors import DataError

MOSTLY_BAD = 0.1
"""A split of which more than this fraction (and more than one image) must be skipped is refused."""

_CACHE_VERSION = 1
_CHUNK = 64
"""Files per task: enough that handing out tasks costs nothing."""

Item = TypeVar("Item")
Result = TypeVar("Result")
Progress = Callable[[int, int], None]


def scan_split(
    dataset: DatasetFile,
    split: str,
    *,
    num_classes: int,
    single_cls: bool = False,
    cache_dir: Path,
    workers: int = 8,
    writer: bool = True,
    on_progress: Progress | None = None,
) -> tuple[LabeledImages, ScanReport]:
    """The usable images of a split and what was found, from the cache where it is current.

    ``single_cls`` makes every label class 0. ``workers`` threads read files; ``writer`` says who may write the cache.
    ``on_progress`` hears (files done, files in all). Raises DataError for a split without images, a training split
    without labels, one that is mostly bad, and a class index that the data set does not name.
    """
    paths = find_images(dataset, split)
    with ThreadPoolExecutor(max(1, workers)) as pool:
        key = _content_key(dataset, paths, pool, num_classes, single_cls)
        cache_path = Path(cache_dir) / "labels" / f"{_cache_name(dataset, split, num_classes, single_cls)}.npz"
        found = read_label_cache(cache_path, key, paths)
        if found is None:
            scans = list(_map_files(pool, _scan_file, paths, on_progress))
            found = _assemble(paths, scans, key)
            _check_classes(found[0], scans, num_classes, single_cls, dataset)
            if single_cls:
                for boxes in found[0].boxes:
                    boxes[:, 0] = 0
            if writer:
                write_label_cache(cache_path, *found, paths)
    _check_usable(dataset, split, *found, paths)
    return found


class _FileScan(NamedTuple):
    """One image and its labels as found; ``header`` is None for an unreadable image."""

    header: ImageHeader | None
    rows: LabelRows | None
    image_error: str
    label_error: LabelError | None


def _scan_file(path: Path) -> _FileScan:
    try:
        header = read_header(path)
    except ImageReadError as error:
        return _FileScan(None, None, str(error), None)
    try:
        return _FileScan(header, read_label_file(label_path_for(path)), "", None)
    except LabelError as error:
        return _FileScan(header, None, "", error)


def _map_files(
    pool: ThreadPoolExecutor,
    function: Callable[[Item], Result],
    items: Sequence[Item],
    on_progress: Progress | None = None,
) -> Iterator[Result]:
    """``map`` over a thread pool in chunks, in order, with progress."""
    chunks = [items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK)]
    done = 0
    for results in pool.map(lambda chunk: [function(item) for item in chunk], chunks):
        yield from results
        done += len(results)
        if on_progress is not None:
            on_progress(done, len(items))


def _assemble(paths: Sequence[Path], scans: Sequence[_FileScan], key: str) -> tuple[LabeledImages, ScanReport]:
    """The usable images and the report, from each file's scan."""
    good = [(path, scan) for path, scan in zip(paths, scans, strict=True) if scan.header and not scan.label_error]
    no_rows = LabelRows(np.zeros((0, 5), np.float32), [], [])
    rows = [scan.rows or no_rows for _, scan in good]
    images = LabeledImages(
        paths=[path for path, _ in good],
        shapes_hw=np.array([(s.header.height, s.header.width) for _, s in good if s.header], np.int32).reshape(-1, 2),
        boxes=[row.boxes for row in rows],
        segments=[row.polygons for row in rows],
        key=key,
    )
    label_errors = [(path, s.label_error) for path, s in zip(paths, scans, strict=True) if s.label_error]
    report = ScanReport(
        images=len(paths),
        backgrounds=sum(len(row.boxes) == 0 for row in rows),
        boxes=sum(len(row.boxes) for row in rows),
        corrupt=tally(f"{p}: {s.image_error}" for p, s in zip(paths, scans, strict=True) if s.image_error),
        malformed=tally(_located(p, e.line, e.why) for p, e in label_errors if not e.out_of_range),
        out_of_range=tally(_located(p, e.line, e.why) for p, e in label_errors if e.out_of_range),
        empty_boxes=tally(
            _located(path, line, "a box without width or height")
            for (path, _), row in zip(good, rows, strict=True)
            for line in row.empty_boxes
        ),
        duplicate_rows=tally(
            _located(path, line, "repeats an earlier row")
            for (path, _), row in zip(good, rows, strict=True)
            for line in row.duplicates
        ),
        duplicate_images=tally(_find_repeats([(path, s.header.digest) for path, s in good if s.header])),
    )
    return images, report


def _located(image_path: Path, line: int, why: str) -> str:
    return f"{label_path_for(image_path)}:{line}: {why}"


def _find_repeats(digests: Iterable[tuple[Path, bytes]]) -> Iterator[str]:
    """A sentence for each image whose content is an earlier one's; equal digests are proved by whole files."""
    by_digest: dict[bytes, list[Path]] = {}
    for path, digest in digests:
        by_digest.setdefault(digest, []).append(path)
    for paths in by_digest.values():
        first_with: dict[bytes, Path] = {}
        for path in paths if len(paths) > 1 else ():
            try:
                content = hashlib.blake2b(path.read_bytes()).digest()
            except OSError:
                continue
            first = first_with.setdefault(content, path)
            if first is not path:
                yield f"{path}: the same image as {first}"


def _check_classes(
    images: LabeledImages, scans: Sequence[_FileScan], num_classes: int, single_cls: bool, dataset: DatasetFile
) -> None:
    """Raises DataError where a label's class has no name."""
    if single_cls:
        return
    rows = [scan.rows for scan in scans if scan.header and not scan.label_error]
    wrong = [
        _located(path, row.lines[at], f"class {int(row.boxes[at, 0])}")
        for path, row in zip(images.paths, rows, strict=True)
        if row is not None and len(row.boxes) and row.boxes[:, 0].max() >= num_classes
        for at in np.flatnonzero(row.boxes[:, 0] >= num_classes)
    ]
    if wrong:
        raise DataError(
            f"{len(wrong)} labels have a class that {dataset.path} does not name",
            seen="; ".join(wrong[:MAX_EXAMPLES]),
            expected=f"classes 0 to {num_classes - 1}, as there are {num_classes} names",
            next_command="add the missing names to the YAML file, or correct the labels",
        )


def _check_usable(
    dataset: DatasetFile, split: str, images: LabeledImages, report: ScanReport, paths: Sequence[Path]
) -> None:
    """Raises DataError for a split that is mostly bad, or one to train on that has no labels."""
    if report.skipped > max(1, MOSTLY_BAD * report.images) or not len(images):
        examples = chain(*(t.examples for t in (report.corrupt, report.malformed, report.out_of_range)))
        raise DataError(
            f"{report.skipped} of the {report.images} '{split}' images of {dataset.path} cannot be used",
            seen="; ".join(list(examples)[:MAX_EXAMPLES]),
            expected=f"at most {MOSTLY_BAD:.0%} to be skipped",
        )
    if split == "train" and report.boxes == 0:
        raise DataError(
            f"None of the {report.images} training images of {dataset.path} has a label",
            seen=f"looked for {', '.join(str(label_path_for(path)) for path in paths[:3])}",
            expected="one text file an image, with a row 'class cx cy w h' for each object",
        )


def _content_key(
    dataset: DatasetFile, paths: Sequence[Path], pool: ThreadPoolExecutor, num_classes: int, single_cls: bool
) -> str:
    """A hash that changes when any image or label file does."""
    digest = hashlib.sha256(f"{_CACHE_VERSION} {num_classes} {single_cls}\n".encode())
    for path, state in zip(paths, _map_files(pool, _file_state, paths), strict=True):
        digest.update(f"{relative_name(dataset, path)}\t{state}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _file_state(path: Path) -> str:
    """Sizes and times of an image and its label file."""
    states = []
    for file in (path, label_path_for(path)):
        try:
            stat = os.stat(file)
            states.append(f"{stat.st_size} {stat.st_mtime_ns}")
        except OSError:
            states.append("-")
    return "\t".join(states)


def _cache_name(dataset: DatasetFile, split: str, num_classes: int, single_cls: bool) -> str:
    """One name per way of reading a split, so that a newer scan takes the older one's place."""
    what = f"{dataset.root}\0{dataset.splits[split]}\0{num_classes}\0{single_cls}"
    return f"{split}-{hashlib.sha256(what.encode(errors='surrogateescape')).hexdigest()[:16]}"
