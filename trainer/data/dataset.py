"""Reads the data set's YAML file: where the images of each split lie and what the classes are called.

Torch-free and cheap, since a launcher's checks read it too.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.errors import DataError
from trainer.reading.text_file import printable
from trainer.reading.yaml_file import read_yaml

if TYPE_CHECKING:
    from trainer.data.annotations.tables import SplitAnnotations

SPLITS = ("train", "val", "test")
YOLO_YAML = "YOLO YAML"
CORRECT = "correct the YAML file; docs/data.md shows its keys"
"""What to do about a key that cannot be used."""
_MAX_CLASSES = 100_000
_MAX_KEYPOINTS = 1_000
_SHOWN_CHARACTERS = 200

IMAGE_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("avif", "bmp", "dib", "exr", "gif", "hdr", "j2k", "jfif", "jp2", "jpe", "jpeg", "jpg", "mpo", "pbm", "pfm"),
        *("pgm", "pic", "png", "pnm", "ppm", "pxm", "ras", "sr", "tif", "tiff", "webp"),
    )
)
"""What OpenCV decodes, if its build has the codec."""


@dataclass(frozen=True)
class DatasetFile:
    """A data set as its YAML file, or another program's annotations, describe it."""

    path: Path
    """The YAML file, or what was given in its place."""
    root: Path
    """The folder that the splits are relative to."""
    names: tuple[str, ...]
    """Class names by class index."""
    splits: dict[str, tuple[str, ...]]
    """Per split, its folders or image lists as written."""
    keypoint_numbers: int = 0
    """Numbers that follow the box in a label row, from ``kpt_shape``; 0 for rows that are boxes or polygons."""
    format: str = YOLO_YAML
    """The format's name for people."""
    annotations: Mapping[str, SplitAnnotations] = field(default_factory=dict)
    """Per split, the rows that were read from annotations; nothing for a split that has a label file an image."""
    key: str = ""
    """A hash of the annotations' files, '' for label files."""

    @property
    def num_classes(self) -> int:
        """Returns the number of classes."""
        return len(self.names)


def load_dataset_file(path: str | Path) -> DatasetFile:
    """Returns the data set of a YAML file.

    Raises DataError for a missing or unreadable file, no class names, and names that contradict ``nc``.
    """
    yaml_path = Path(os.path.expanduser(path))
    if not os.path.exists(yaml_path):
        raise _missing_yaml(yaml_path)
    content = _read_map(yaml_path)
    names = _parse_names(yaml_path, content)
    splits = {split: _parse_entries(yaml_path, split, content[split]) for split in SPLITS if content.get(split)}
    if not splits:
        raise DataError(
            f"{yaml_path} names no images",
            seen=f"keys {_short(sorted(map(str, content)))}",
            expected="train and val, each a folder, a list of folders or a text file of image paths",
            next_command=CORRECT,
        )
    root = _find_root(yaml_path, content.get("path"))
    return DatasetFile(yaml_path, root, names, splits, _parse_keypoints(yaml_path, content.get("kpt_shape")))


def label_path_for(image_path: Path) -> Path:
    """Returns the path of an image's labels: the last ``images`` folder becomes ``labels``, the suffix ``.txt``."""
    return Path(label_text_for(os.fspath(image_path)))


def label_text_for(image_path: str) -> str:
    """Returns the same for the text of a path: of 100,000 images, paths as objects take seconds."""
    folder, name = os.path.split(image_path)
    before, found, after = f"{os.sep}{folder}{os.sep}".rpartition(f"{os.sep}images{os.sep}")
    if found:
        folder = f"{before}{os.sep}labels{os.sep}{after}"[1:].rstrip(os.sep)
    return os.path.join(folder, os.path.splitext(name)[0] + ".txt")


def label_texts_for(image_paths: Iterable[str]) -> list[str]:
    """Returns the same for many paths, each folder being looked at once."""
    folders: dict[str, str] = {}
    labels = []
    for image_path in image_paths:
        folder, separator, name = image_path.rpartition(os.sep)
        stem, dot, _ = name.rpartition(".")
        if not separator or not dot or name.startswith("."):
            labels.append(label_text_for(image_path))
            continue
        if folder not in folders:
            folders[folder] = os.path.dirname(label_text_for(os.path.join(folder, "x"))) + os.sep
        labels.append(f"{folders[folder]}{stem}.txt")
    return labels


def relative_name(dataset: DatasetFile, image_path: str) -> str:
    """Returns an image's path below the data set's root, equal on every machine that has the data set."""
    root = os.fspath(dataset.root) + os.sep
    if image_path.startswith(root) and os.pardir not in image_path:
        return image_path[len(root) :].replace(os.sep, "/")  # nearly always, and ten times as fast
    return os.path.relpath(image_path, dataset.root).replace(os.sep, "/")


def _missing_yaml(yaml_path: Path) -> DataError:
    """Returns the error for a missing YAML file, with the names of those that are in its folder."""
    folder = yaml_path.parent
    beside = sorted(p.name for pattern in ("*.yaml", "*.yml") for p in folder.glob(pattern)) if folder.is_dir() else []
    return DataError(
        f"The data set file {yaml_path} does not exist",
        seen=f"looked for {yaml_path.absolute()}" + (f"; that folder has {', '.join(beside[:5])}" if beside else ""),
        expected="a YAML file with train, val and names",
        next_command="give the path of the data set's YAML file",
    )


def _read_map(yaml_path: Path) -> Mapping[Any, Any]:
    what = f"{printable(yaml_path)} is not readable as YAML"
    content = read_yaml(yaml_path, what, error=DataError, as_written=("names",))
    if not isinstance(content, Mapping):
        raise DataError(
            f"{printable(yaml_path)} does not describe a data set",
            seen=f"a {type(content).__name__}",
            expected="a map with train, val and names",
            next_command=CORRECT,
        )
    return content


def _parse_names(yaml_path: Path, content: Mapping[Any, Any]) -> tuple[str, ...]:
    """Returns class names in index order, from a list, a map with indices in any order, or ``nc`` alone."""
    raw, count = content.get("names"), content.get("nc")
    if count is not None and not (type(count) is int and 1 <= count <= _MAX_CLASSES):
        raise DataError(
            f"nc in {yaml_path} is not a count of classes",
            seen=_short(count),
            expected=f"1 to {_MAX_CLASSES}",
            next_command=CORRECT,
        )
    if raw is None and count is not None:
        return tuple(f"class{index}" for index in range(count))
    if isinstance(raw, Mapping):
        names = _names_from_map(yaml_path, raw)
    elif isinstance(raw, Sequence) and not isinstance(raw, str):
        names = tuple(raw)
    else:
        names = ()
    if not names:
        raise DataError(
            f"{yaml_path} has no class names",
            seen=f"names: {_short(raw)}",
            expected="names as a list, or as a map from 0, 1, 2, ... to a name",
            next_command=CORRECT,
        )
    wrong = next((index for index, name in enumerate(names) if not isinstance(name, str) or not name.strip()), None)
    if wrong is not None:
        raise DataError(
            f"class {wrong} in {yaml_path} has no name",
            seen=_short(names[wrong]),
            expected="a word for each class",
            next_command=CORRECT,
        )
    if count is not None and count != len(names):
        raise DataError(
            f"nc and names in {yaml_path} do not agree",
            seen=f"nc: {count} and {len(names)} names",
            expected="the same number, or no nc at all",
            next_command=CORRECT,
        )
    return names


def _names_from_map(yaml_path: Path, raw: Mapping[Any, Any]) -> tuple[str, ...]:
    try:
        by_index = {int(key): name for key, name in raw.items()}
    except (TypeError, ValueError) as error:
        raise DataError(
            f"names in {yaml_path} has a key that is not a number",
            seen=_short(list(raw)[:5]),
            expected="0, 1, 2, ... up to the number of classes",
            next_command=CORRECT,
        ) from error
    missing = sorted(set(range(len(raw))) - set(by_index))
    if missing:
        raise DataError(
            f"names in {yaml_path} has gaps",
            seen=f"no name for class {', '.join(map(str, missing[:5]))} among {len(raw)} names",
            expected="every index from 0 on, once",
            next_command=CORRECT,
        )
    return tuple(by_index[index] for index in range(len(by_index)))


def _parse_entries(yaml_path: Path, split: str, value: Any) -> tuple[str, ...]:
    entries = value if isinstance(value, list) else [value]
    if not entries or not all(isinstance(entry, str) or type(entry) is int for entry in entries):
        raise DataError(
            f"'{split}' in {yaml_path} is not a place",
            seen=_short(value),
            expected="a folder, a list of folders or a text file of image paths",
            next_command=CORRECT,
        )
    return tuple(map(str, entries))  # a folder may be called 2024


def _parse_keypoints(yaml_path: Path, shape: Any) -> int:
    """Returns how many numbers of keypoints a row has. Raises DataError for another ``kpt_shape``.

    ``kpt_shape`` is a count of points, and 2 or 3 numbers for each.
    """
    if shape is None:
        return 0
    is_pair = isinstance(shape, list) and len(shape) == 2 and all(type(part) is int for part in shape)
    if not is_pair or not 1 <= shape[0] <= _MAX_KEYPOINTS or shape[1] not in (2, 3):
        raise DataError(
            f"kpt_shape in {yaml_path} is not usable",
            seen=_short(shape),
            expected="a count of keypoints and 2 or 3 numbers for each, such as [17, 3]",
            next_command=CORRECT,
        )
    return int(shape[0] * shape[1])


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + " ..."


def _find_root(yaml_path: Path, written: Any) -> Path:
    """Returns the data set's folder: ``path`` beside the YAML file, else below the working directory.

    Raises DataError if neither is a folder.
    """
    if written in (None, ""):
        return yaml_path.parent.absolute()
    folder = Path(os.path.expanduser(str(written)))
    candidates = [folder] if folder.is_absolute() else [yaml_path.parent / folder, Path.cwd() / folder]
    for candidate in candidates:
        if os.path.isdir(candidate):
            return Path(os.path.abspath(candidate))
    raise DataError(
        f"The folder of the data set {yaml_path} was not found",
        seen=f"path: {_short(written)}; looked for {_short(', '.join(str(c.absolute()) for c in candidates))}",
        expected="a folder that exists",
        next_command="correct 'path' in the YAML file",
    )
