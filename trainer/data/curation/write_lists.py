"""Writes splits as lists of images and a YAML file that names them; no image is copied, moved or deleted."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from trainer.data.dataset import DatasetFile, relative_name
from trainer.errors import DataError
from trainer.protocol import replace_text
from trainer.reading.text_file import printable

YAML_NAME = "data.yaml"


def write_splits(
    dataset: DatasetFile, splits: Mapping[str, Sequence[str]], folder: Path, name: str = YAML_NAME
) -> Path:
    """Writes ``SPLIT.txt`` for each split's image paths and a YAML file beside them; returns the latter's path.

    The lists name images from the data set's folder, which the YAML file names. Raises DataError for a name that no
    line can hold, and for files that are there already; OSError where nothing can be written.
    """
    if dataset.annotations:
        raise DataError(
            "Lists name images, whose labels would have to be files of their own",
            seen=f"{printable(dataset.path)}, whose labels stand in annotation files",
            expected="a data set with a label file for each image",
            next_command=f"yolo-launch data convert {printable(dataset.path)}",
        )
    stem = "" if name == YAML_NAME else f"{Path(name).stem}-"
    lists = {split: folder / f"{stem}{split}.txt" for split in splits}
    there = next((path for path in (*lists.values(), folder / name) if path.exists()), None)
    if there is not None:
        raise DataError(
            f"{printable(there)} is there already",
            seen=str(folder),
            expected="a folder without lists",
            next_command="choose another --out, or remove the lists",
        )
    texts = {split: "".join(f"{_line(dataset, image)}\n" for image in images) for split, images in splits.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for split, text in texts.items():
        replace_text(lists[split], text)
    content: dict[str, object] = {"path": str(dataset.root)}
    content |= {split: str(path.absolute()) for split, path in lists.items()}
    content["names"] = list(dataset.names)
    if numbers := dataset.keypoint_numbers:
        content["kpt_shape"] = [numbers // 3, 3] if numbers % 3 == 0 else [numbers // 2, 2]
    replace_text(folder / name, yaml.safe_dump(content, allow_unicode=True, sort_keys=False))
    return folder / name


def _line(dataset: DatasetFile, image: str) -> str:
    name = relative_name(dataset, image)
    if name.startswith(".."):
        name = os.path.abspath(image)
    if name.startswith("#") or name != name.strip() or "\n" in name or "\r" in name or "\\" in name:
        raise DataError(
            f"No list can name {printable(image)}",
            seen=printable(name),
            expected="names without line breaks, backslashes, spaces at an end and # at the beginning",
            next_command="rename the file and its labels",
        )
    return name
