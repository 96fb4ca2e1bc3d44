"""Keeps the annotations read from a large file as arrays, which the next start reads without parsing it again."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.annotations.tables import SplitAnnotations
from trainer.data.scan.tables import PathTable, RowTable
from trainer.protocol import replacing

_VERSION = 1
Splits = Mapping[str, SplitAnnotations]

logger = logging.getLogger(__name__)


def key_of(files: Sequence[Path | str], way: str) -> str:
    """Returns a hash of files' paths, sizes and times, and of how they are read."""
    digest = hashlib.sha256(f"{_VERSION} {way}\n".encode())
    for file in files:
        stat = os.stat(file)
        digest.update(f"{file}\t{stat.st_size}\t{stat.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def read_annotations(path: Path, key: str) -> tuple[tuple[str, ...], dict[str, SplitAnnotations]] | None:
    """Returns class names and splits as they were written with this key, or None."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            about = json.loads(str(stored["about"]))
            if about["key"] != key:
                return None
            splits = {split: _split_of(stored, split, values) for split, values in about["splits"].items()}
            return tuple(about["names"]), splits
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, IndexError, EOFError, zipfile.BadZipFile) as error:
        logger.warning("The cache of annotations %s is damaged (%s); reading again", path, error)
        return None


def write_annotations(path: Path, key: str, names: Sequence[str], splits: Splits) -> None:
    """Writes class names and splits, all or nothing; a folder that cannot be written costs a warning."""
    about: dict[str, Any] = {"key": key, "names": list(names), "splits": {}}
    arrays: dict[str, Any] = {}
    for split, table in splits.items():
        about["splits"][split] = {"sources": table.sources, "unit": table.unit, "left_out": table.left_out}
        arrays |= {
            f"{split}/images": np.frombuffer(
                "\0".join(table.images.texts()).encode(errors="surrogateescape"), np.uint8
            ),
            f"{split}/sizes_hw": table.sizes_hw,
            f"{split}/boxes": table.boxes.rows,
            f"{split}/counts": table.boxes.counts,
            f"{split}/points": table.points.rows,
            f"{split}/lengths": table.points.counts,
            f"{split}/ids": table.ids,
            f"{split}/source_of": table.source_of,
        }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, about=np.array(json.dumps(about)), **arrays)
    except OSError as error:
        logger.warning("The cache of annotations %s cannot be written (%s); the next start reads again", path, error)


def _split_of(stored: Any, split: str, about: Mapping[str, Any]) -> SplitAnnotations:
    text = stored[f"{split}/images"].tobytes().decode(errors="surrogateescape")
    return SplitAnnotations(
        images=PathTable(text.split("\0") if text else ()),
        sizes_hw=stored[f"{split}/sizes_hw"],
        boxes=RowTable(stored[f"{split}/boxes"], stored[f"{split}/counts"]),
        points=RowTable(stored[f"{split}/points"], stored[f"{split}/lengths"]),
        ids=stored[f"{split}/ids"],
        sources=tuple(about["sources"]),
        source_of=stored[f"{split}/source_of"],
        unit=about["unit"],
        left_out=about["left_out"],
    )
