"""Keeps the result of a scan in a file: arrays that are read without unpickling and written all at once."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.scan.report import ScanReport
from trainer.protocol import replacing

DIGEST_BYTES = 16

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabeledImages:
    """The usable images of a split, in path order."""

    paths: list[Path]
    shapes_hw: np.ndarray
    """int32 (n, 2): rows and columns as shown, after EXIF orientation."""
    boxes: list[np.ndarray]
    """Per image float32 (k, 5): class, cx, cy, w, h; normalized."""
    segments: list[list[np.ndarray]]
    """Per image one normalized float32 (points, 2) a box, empty for plain boxes; no entries without any polygon."""
    key: str
    """A hash of the files' paths, sizes and times."""
    digests: np.ndarray = field(default_factory=lambda: np.zeros((0, DIGEST_BYTES), np.uint8))
    """uint8 (n, 16): equal for equal files, and for few others; without rows if it was not asked for."""

    def __len__(self) -> int:
        return len(self.paths)


def read_label_cache(path: Path, key: str, all_paths: Sequence[Path]) -> tuple[LabeledImages, ScanReport] | None:
    """Returns what an earlier scan of the same files found, or None."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            if str(stored["key"]) != key:
                return None
            counts, lengths = stored["box_counts"], stored["polygon_lengths"]
            boxes = np.split(stored["boxes"], np.cumsum(counts)[:-1]) if len(counts) else []
            polygons = np.split(stored["polygon_points"], np.cumsum(lengths)[:-1]) if lengths.any() else []
            segments, at = [], 0
            for count in counts:
                row = polygons[at : at + count]
                segments.append(row if any(len(polygon) for polygon in row) else [])
                at += count
            images = LabeledImages(
                *([all_paths[index] for index in stored["kept"]], stored["shapes_hw"], boxes, segments, key),
                digests=stored["digests"],
            )
            return images, ScanReport.from_json(str(stored["report"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, IndexError, EOFError, zipfile.BadZipFile) as error:
        logger.warning("The label cache %s is damaged (%s); scanning again", path, error)
        return None


def write_label_cache(path: Path, images: LabeledImages, report: ScanReport, all_paths: Sequence[Path]) -> None:
    """Writes a scan for the next start, all of it or nothing; a folder that cannot be written costs a warning."""
    position = {str(file): index for index, file in enumerate(all_paths)}
    polygons = [
        polygon
        for boxes, row in zip(images.boxes, images.segments, strict=True)
        for polygon in (row or [np.zeros((0, 2), np.float32)] * len(boxes))
    ]
    arrays: dict[str, Any] = {
        "key": np.array(images.key),
        "kept": np.array([position[str(file)] for file in images.paths], np.int64),
        "shapes_hw": images.shapes_hw,
        "digests": images.digests,
        "box_counts": np.array([len(boxes) for boxes in images.boxes], np.int64),
        "boxes": np.concatenate([np.zeros((0, 5), np.float32), *images.boxes]),
        "polygon_lengths": np.array([len(polygon) for polygon in polygons], np.int64),
        "polygon_points": np.concatenate([np.zeros((0, 2), np.float32), *polygons]),
        "report": np.array(report.to_json()),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        logger.warning("The label cache %s cannot be written (%s); the next start scans again", path, error)
