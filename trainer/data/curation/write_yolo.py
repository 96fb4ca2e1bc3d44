"""Writes a data set of any format as one of YOLO's: a label file an image, images as links or copies, a YAML file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import yaml

from trainer.data.curation.write_lists import YAML_NAME
from trainer.data.dataset import DatasetFile
from trainer.data.scan.label_cache import LabeledImages
from trainer.errors import DataError
from trainer.protocol import replace_text
from trainer.reading.text_file import printable


def write_yolo(dataset: DatasetFile, splits: Mapping[str, LabeledImages], folder: Path, *, copies: bool) -> Path:
    """Writes ``images/SPLIT``, ``labels/SPLIT`` and a YAML file into a new folder; returns the latter's path.

    Numbers are written so that they are read back as they were. Images of one name in several folders get a number.
    With ``copies`` images are copied, else linked. Raises DataError for a folder that holds anything; OSError.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(
            f"{printable(folder)} is there already",
            seen="a folder with files" if folder.is_dir() else "a file",
            expected="a new or an empty folder",
            next_command="choose another --out",
        )
    content: dict[str, object] = {"path": "."}
    for split, images in splits.items():
        _write_split(images, folder, split, copies=copies)
        content[split] = f"images/{split}"
    content["names"] = list(dataset.names)
    replace_text(folder / YAML_NAME, yaml.safe_dump(content, allow_unicode=True, sort_keys=False))
    return folder / YAML_NAME


def _write_split(images: LabeledImages, folder: Path, split: str, *, copies: bool) -> None:
    image_folder, label_folder = folder / "images" / split, folder / "labels" / split
    for each in (image_folder, label_folder):
        each.mkdir(parents=True)
    taken: set[str] = set()
    for index, source in enumerate(images.paths):
        stem, number = source.stem, 1
        while stem.lower() in taken:  # labels are told apart by it, on file systems without capitals too
            number += 1
            stem = f"{source.stem}-{number}"
        taken.add(stem.lower())
        target = image_folder / f"{stem}{source.suffix}"
        if copies:
            shutil.copyfile(source, target)
        else:
            target.symlink_to(os.path.abspath(source))
        (label_folder / f"{stem}.txt").write_text(label_text(images.boxes[index], images.segments[index]), "utf-8")


def label_text(rows: np.ndarray, polygons: list[np.ndarray]) -> str:
    """Returns a label file's text for rows (k, 5) and, where there are any, their polygons (points, 2)."""
    lines = []
    for at, (kind, *box) in enumerate(rows):
        points = polygons[at].reshape(-1) if len(polygons) and len(polygons[at]) > 2 else box
        lines.append(" ".join([str(int(kind)), *(_digits(value) for value in points)]) + "\n")
    return "".join(lines)


def _digits(value: float) -> str:
    return np.format_float_positional(np.float32(value), unique=True, trim="0")
