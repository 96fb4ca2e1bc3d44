"""Finds COCO JSON: one file, or a folder with one a split, as COCO, CVAT, Roboflow and others write them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from trainer.data.annotations.tables import SplitAnnotations
from trainer.data.formats.coco_file import read_coco_file
from trainer.data.formats.format import (
    SPLIT_WORDS,
    Annotated,
    AnnotationFormat,
    ReadOptions,
    Sources,
    files_in,
    folders_of_splits,
    head_of,
    split_of,
    to_first_names,
)
from trainer.errors import DataError

_FIRST_KEY = re.compile(rb'^\s*\{\s*"(info|licenses|categories|images|annotations|type)"\s*:')
_LIST = re.compile(rb'"(images|annotations|categories)"\s*:\s*\[')
_OTHER_TASKS = ("captions", "image_info", "labels", "panoptic", "person_keypoints", "stuff")
"""How names of COCO's files start that have no boxes to detect."""
ROBOFLOW = "_annotations.coco.json"


def find(path: Path) -> Sources | None:
    """Finds a COCO JSON file and those of its other splits beside it, or all in a folder."""
    if not os.path.isdir(path):
        if path.suffix.lower() != ".json" or not is_coco(path):
            return None
        split = _split_of_file(path) or "train"
        files = {split: (path,)}
        if split == "train":
            files |= {other: (beside,) for other in ("val", "test") if (beside := _sibling(path, other))}
        return Sources(path.parent, files)
    places = [path, path / "annotations", *folders_of_splits(path).values()]
    found = [file for place in places for file in files_in(place, [".json"]) if is_coco(file)]
    found = [file for file in found if not file.name.startswith(_OTHER_TASKS)] or found
    found = [file for file in found if file.name.startswith("instances")] or found
    by_split: dict[str, list[Path]] = {}
    for file in found:
        by_split.setdefault(_split_of_file(file) or "train", []).append(file)
    for split, several in by_split.items():
        if len(several) > 1:
            raise DataError(
                f"{path} has several files of annotations for the '{split}' split",
                seen=", ".join(file.name for file in several[:5]),
                expected="one COCO JSON a split",
                next_command=f"name the one to use: --data {several[0]}",
            )
    return (
        Sources(path, {split: tuple(by_split[split]) for split in SPLIT_WORDS if split in by_split}) if found else None
    )


def is_coco(path: Path) -> bool:
    """Returns whether a file starts as COCO JSON does."""
    head = head_of(path).removeprefix(b"\xef\xbb\xbf")
    return head.lstrip().startswith(b"{") and bool(_FIRST_KEY.match(head) or _LIST.search(head))


def read(sources: Sources, options: ReadOptions) -> Annotated:
    """Reads every split's file. Raises DataError for one that cannot be used, and for classes that training lacks."""
    names: tuple[str, ...] = ()
    splits: dict[str, SplitAnnotations] = {}
    wanted = [split for split in sources.files if not (split == "val" and options.has_val)]
    for split in wanted:
        (file,) = sources.files[split]
        own_names, table = read_coco_file(file, split)
        names = names or own_names
        splits[split] = table if own_names == names else table.with_classes(_to(names, own_names, file))
    return names, splits


def _to(names: Sequence[str], own: Sequence[str], file: Path) -> list[int]:
    return to_first_names(names, own, os.fspath(file))


def _split_of_file(path: Path) -> str | None:
    return split_of(path.stem) or split_of(path.parent.name)


def _sibling(path: Path, split: str) -> Path | None:
    """Returns the file of another split that is named as this one: instances_train2017.json, instances_val2017.json."""
    names = [(path.parent, path.name)] if split_of(path.stem) else []
    if not names and split_of(path.parent.name):
        names = [(path.parent.parent, os.path.join(path.parent.name, path.name))]
    for folder, name in names:
        for own in SPLIT_WORDS["train"][::-1]:
            for word in SPLIT_WORDS[split]:
                other = folder / re.sub(rf"(?<![a-z]){own}(?![a-z])", word, name, flags=re.IGNORECASE)
                if other != path and os.path.isfile(other) and is_coco(other):
                    return other
    return None


COCO = AnnotationFormat("COCO JSON", find, read)
