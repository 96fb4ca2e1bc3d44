"""Joins what was found in each file to usable images and a report, and refuses a split that cannot be used."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from trainer.data.dataset import DatasetFile
from trainer.data.images import ImageReadError, MissingImageError, NoContrastError
from trainer.data.scan.image_header import ImageHeader
from trainer.data.scan.label_cache import DIGEST_BYTES, LabeledImages
from trainer.data.scan.label_file import LabelError, LabelRows
from trainer.data.scan.labels import Labels
from trainer.data.scan.repeats import find_repeats
from trainer.data.scan.report import MAX_EXAMPLES, ScanReport, Tally, tally
from trainer.errors import DataError
from trainer.reading.text_file import printable


class FileScan(NamedTuple):
    """One image and its labels as found; ``header`` is None for an image that cannot be used."""

    header: ImageHeader | None
    rows: LabelRows | None
    image_error: ImageReadError | None
    label_error: LabelError | None


def assemble(
    paths: Sequence[Path], scans: Sequence[FileScan], key: str, labels: Labels
) -> tuple[LabeledImages, ScanReport]:
    """Returns the usable images and the report, from each file's scan."""
    pairs = list(zip(paths, scans, strict=True))
    good = [(path, scan) for path, scan in pairs if scan.header and not scan.label_error]
    headers = [scan.header for _, scan in good if scan.header]
    no_rows = LabelRows(np.zeros((0, 5), np.float32), [], [])
    rows = [scan.rows or no_rows for _, scan in good]
    images = LabeledImages.of(
        paths=[path for path, _ in good],
        shapes_hw=np.array([(header.height, header.width) for header in headers], np.int32).reshape(-1, 2),
        boxes=[row.boxes for row in rows],
        segments=[row.polygons for row in rows],
        key=key,
        digests=np.frombuffer(b"".join(h.digest for h in headers), np.uint8).reshape(-1, DIGEST_BYTES),
    )

    def in_rows(found: Callable[[LabelRows], Iterator[tuple[int, str]]]) -> Tally:
        pairs_of_rows = zip(images.paths, rows, strict=True)
        return tally(located(labels, path, line, why) for path, row in pairs_of_rows for line, why in found(row))

    def of_images(is_met: Callable[[FileScan], bool], why: str) -> Tally:
        return tally(f"{printable(path)}: {why}" for path, scan in good if is_met(scan))

    report = ScanReport(
        images=len(paths),
        backgrounds=sum(len(row.boxes) == 0 for row in rows),
        boxes=sum(len(row.boxes) for row in rows),
        **_errors(pairs, labels),
        clipped=in_rows(lambda row: ((line, f"{by:.4f} outside the image") for line, by in row.clipped)),
        empty_boxes=in_rows(lambda row: ((line, "a box without width or height") for line in row.empty_boxes)),
        duplicate_rows=in_rows(lambda row: ((line, "repeats an earlier row") for line in row.duplicates)),
        keypoint_rows=in_rows(lambda row: ((line, "a box and keypoints?") for line in row.keypoint_like)),
        duplicate_images=tally(find_repeats((path, s.header.digest) for path, s in good if s.header)),
        incomplete=of_images(lambda scan: bool(scan.header and scan.header.lacks_end), "its end is missing"),
        further_frames=of_images(lambda scan: bool(scan.header and scan.header.has_more_frames), "the first is used"),
        missing_labels=tally(labels.place(path) for path, scan in good if scan.rows is None),
        empty_labels=tally(labels.place(path) for path, scan in good if scan.rows and scan.rows.is_blank),
    )
    return images, report


def _errors(pairs: Sequence[tuple[Path, FileScan]], labels: Labels) -> dict[str, Tally]:
    """Returns the images that cannot be used, by the name of the reason."""
    found: dict[str, list[str]] = {}
    for path, scan in pairs:
        if scan.image_error is not None:
            kind = "unreadable" if isinstance(scan.image_error, MissingImageError) else "undecodable"
            kind = "saturated" if isinstance(scan.image_error, NoContrastError) else kind
            found.setdefault(kind, []).append(f"{printable(path)}: {scan.image_error}")
        elif (error := scan.label_error) is not None:
            kind = "out_of_range" if error.out_of_range else "unreadable" if error.unreadable else "malformed"
            found.setdefault(kind, []).append(located(labels, path, error.line, error.why))
    return {kind: tally(examples) for kind, examples in found.items()}


def located(labels: Labels, image_path: Path, line: int, why: str) -> str:
    """Returns ``labels/0001.txt:3: why``, or the same of annotations."""
    return printable(f"{labels.place(image_path, line)}: {why}")


def check_classes(
    images: LabeledImages,
    scans: Sequence[FileScan],
    num_classes: int,
    single_cls: bool,
    dataset: DatasetFile,
    labels: Labels,
) -> None:
    """Raises DataError for a label whose class has no name."""
    if single_cls:
        return
    rows = [scan.rows for scan in scans if scan.header and not scan.label_error]
    wrong = [
        located(labels, path, row.lines[at], f"class {int(row.boxes[at, 0])}")
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


def check_usable(
    dataset: DatasetFile,
    split: str,
    images: LabeledImages,
    report: ScanReport,
    paths: Sequence[str],
    max_bad_share: float,
    labels: Labels,
) -> None:
    """Raises DataError for a split of which too much cannot be used, or one to train on that has no labels."""
    if report.unreadable.count == report.images:
        raise DataError(
            f"None of the {report.images} '{split}' images of {dataset.path} can be read",
            seen="; ".join(report.unreadable.examples),
            expected=f"paths below {dataset.root} or below the list's own folder, with slashes between folders",
            next_command="correct the paths in the list, or 'path' in the YAML file",
        )
    unusable = report.images - len(images)
    if unusable > max(1, max_bad_share * report.images) or not len(images):
        reasons = (report.unreadable, report.undecodable, report.saturated, report.malformed, report.out_of_range)
        share = math.ceil(100 * unusable / report.images) / 100
        lift = f", or leave them out with --max-bad-share {share:g}" if len(images) else ""
        raise DataError(
            f"{unusable} of the {report.images} '{split}' images of {dataset.path} cannot be used",
            seen="; ".join(list(chain(*(reason.examples for reason in reasons)))[:MAX_EXAMPLES]),
            expected=f"at most {max_bad_share:.0%} to be skipped" if len(images) else "images that can be used",
            next_command=f"correct these files{lift}",
        )
    if split == "train" and report.boxes == 0:
        raise DataError(
            f"None of the {report.images} training images of {dataset.path} has a label",
            seen=f"looked for {', '.join(labels.place(path) for path in paths[:3])}",
            expected="one text file an image, with a row 'class cx cy w h' for each object"
            if labels.annotations is None
            else "objects that are named in the annotations",
            next_command="put the labels there; docs/data.md shows the layouts",
        )
