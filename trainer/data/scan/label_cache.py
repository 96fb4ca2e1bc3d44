"""Keeps the result of a scan in a file: arrays that are read without unpickling and written all at once."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.scan.report import ScanReport
from trainer.data.scan.tables import PathTable, PolygonTable, RowTable
from trainer.protocol import replacing

DIGEST_BYTES = 16

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabeledImages:
    """The usable images of a split, in path order."""

    paths: PathTable
    shapes_hw: np.ndarray
    """int32 (n, 2): rows and columns as shown, after EXIF orientation."""
    boxes: RowTable
    """Per image float32 (k, 5): class, cx, cy, w, h; normalized."""
    segments: PolygonTable
    """Per image one normalized float32 (points, 2) a box, empty for plain boxes; no entries without any polygon."""
    key: str
    """A hash of the files' paths, sizes and times."""
    digests: np.ndarray = field(default_factory=lambda: np.zeros((0, DIGEST_BYTES), np.uint8))
    """uint8 (n, 16): equal for equal files, and for few others; without rows if it was not asked for."""

    @classmethod
    def of(
        cls,
        paths: Iterable[str | Path],
        shapes_hw: np.ndarray,
        boxes: Sequence[np.ndarray],
        segments: Sequence[Sequence[np.ndarray]],
        key: str,
        **more: np.ndarray,
    ) -> LabeledImages:
        """Returns the images of one value each; the fields say which."""
        rows = RowTable.of(boxes, 5)
        return cls(PathTable(paths), shapes_hw, rows, PolygonTable.of(segments, rows.counts), key, **more)

    def __len__(self) -> int:
        return len(self.paths)


def read_label_cache(path: Path, key: str, all_paths: Sequence[str]) -> tuple[LabeledImages, ScanReport] | None:
    """Returns what an earlier scan of the same files found, or None."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            if str(stored["key"]) != key:
                return None
            boxes = RowTable(stored["boxes"], stored["box_counts"])
            points = RowTable(stored["polygon_points"], stored["polygon_lengths"])
            kept, paths = stored["kept"], all_paths
            if not np.array_equal(kept, np.arange(len(all_paths))):
                paths = [all_paths[index] for index in kept.tolist()]
            segments = PolygonTable(points, boxes.counts)
            images = LabeledImages(
                *(PathTable(paths), stored["shapes_hw"], boxes, segments, key), digests=stored["digests"]
            )
            return images, ScanReport.from_json(str(stored["report"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, IndexError, EOFError, zipfile.BadZipFile) as error:
        logger.warning("The label cache %s is damaged (%s); scanning again", path, error)
        return None


def write_label_cache(path: Path, images: LabeledImages, report: ScanReport, all_paths: Sequence[str]) -> None:
    """Writes a scan for the next start, all of it or nothing; a folder that cannot be written costs a warning."""
    position = {file: index for index, file in enumerate(all_paths)}
    arrays: dict[str, Any] = {
        "key": np.array(images.key),
        "kept": np.array([position[file] for file in images.paths.texts()], np.int64),
        "shapes_hw": images.shapes_hw,
        "digests": images.digests,
        "box_counts": images.boxes.counts,
        "boxes": images.boxes.rows,
        "polygon_lengths": images.segments.points.counts,
        "polygon_points": images.segments.points.rows,
        "report": np.array(report.to_json()),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        logger.warning("The label cache %s cannot be written (%s); the next start scans again", path, error)
