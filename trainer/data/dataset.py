"""The data set's YAML file: where the images of each split lie and what the classes are called.

Torch-free and cheap, since a launcher's checks read it too.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trainer.errors import DataError

SPLITS = ("train", "val", "test")

IMAGE_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("avif", "bmp", "dib", "exr", "gif", "hdr", "j2k", "jfif", "jp2", "jpe", "jpeg", "jpg", "mpo", "pbm", "pfm"),
        *("pgm", "pic", "png", "pnm", "ppm", "pxm", "ras", "sr", "tif", "tiff", "webp"),
    )
)
"""What OpenCV decodes, where its build has the codec."""


@dataclass(frozen=True)
class DatasetFile:
    """A data set as its YAML file describes it."""

    path: Path
    """The YAML file."""
    root: Path
    """The folder that the splits are relative to."""
    names: tuple[str, ...]
    """Class names by class index."""
    splits: dict[str, tuple[str, ...]]
    """Per split, its folders or image lists as written."""

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.names)


def load_dataset_file(path: str | Path) -> DatasetFile:
    """The data set of a YAML file.

    Raises DataError for a missing or unreadable file, no class names, and names that contradict ``nc``.
    """
    yaml_path = Path(path).expanduser()
    if not yaml_path.is_file():
        raise _missing_yaml(yaml_path)
    content = _read_yaml(yaml_path)
    names = _parse_names(yaml_path, content)
    splits = {split: _parse_entries(yaml_path, split, content[split]) for split in SPLITS if content.get(split)}
    if not splits:
        raise DataError(
            f"{yaml_path} names no images",
            seen=f"keys {sorted(map(str, content))}",
            expected="train and val, each a folder, a list of folders or a text file of image paths",
        )
    return DatasetFile(yaml_path, _find_root(yaml_path, content.get("path")), names, splits)


def find_images(dataset: DatasetFile, split: str) -> list[Path]:
    """Every image file of a split, sorted by path; an image list may name one twice, folders may not.

    Raises DataError, with the paths looked for, where the split is not in the file or holds no image.
    """
    if split not in dataset.splits:
        raise DataError(
            f"{dataset.path} has no '{split}' split",
            seen=f"splits {', '.join(dataset.splits)}",
            expected=f"a line such as '{split}: images/{split}'",
        )
    in_folders: set[Path] = set()
    in_lists: list[Path] = []
    looked_for: list[str] = []
    for entry in dataset.splits[split]:
        place, tried = _locate(dataset, entry)
        looked_for += tried
        if place is None:
            raise DataError(
                f"The '{split}' images of {dataset.path} were not found",
                seen=f"{entry!r}; looked for {', '.join(tried)}",
                expected="a folder, or a text file of image paths, that exists",
                next_command="correct the entry or 'path' in the YAML file",
            )
        if place.is_dir():
            in_folders.update(_walk_images(place))
        else:
            in_lists += _read_image_list(dataset, place)
    images = sorted([*in_folders, *in_lists], key=str)
    if not images:
        raise DataError(
            f"The '{split}' split of {dataset.path} holds no images",
            seen=f"looked in {', '.join(looked_for)}",
            expected=f"image files ending in {' '.join(sorted(IMAGE_SUFFIXES))}",
        )
    return images


def label_path_for(image_path: Path) -> Path:
    """Where an image's labels are: the last ``images`` folder of its path becomes ``labels``, the suffix ``.txt``."""
    parts = list(image_path.parts)
    for position in range(len(parts) - 2, -1, -1):
        if parts[position] == "images":
            parts[position] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def relative_name(dataset: DatasetFile, image_path: Path) -> str:
    """An image's path below the data set's root, equal on every machine that has the data set."""
    return os.path.relpath(image_path, dataset.root).replace(os.sep, "/")


def fingerprint(dataset: DatasetFile) -> str:
    """A short hash of names, image paths and label sizes, equal on every machine with the same data set."""
    digest = hashlib.sha256("\n".join(dataset.names).encode())
    for split in dataset.splits:
        digest.update(f"\0{split}\0".encode())
        for image in find_images(dataset, split):
            try:
                label_bytes = label_path_for(image).stat().st_size
            except OSError:
                label_bytes = -1
            digest.update(f"{relative_name(dataset, image)}\t{label_bytes}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def _missing_yaml(yaml_path: Path) -> DataError:
    """The error for a YAML file that is not there, with the ones that are."""
    folder = yaml_path.parent
    beside = sorted(p.name for pattern in ("*.yaml", "*.yml") for p in folder.glob(pattern)) if folder.is_dir() else []
    return DataError(
        f"The data set file {yaml_path} does not exist",
        seen=f"looked for {yaml_path.absolute()}" + (f"; that folder has {', '.join(beside[:5])}" if beside else ""),
        expected="a YAML file with train, val and names",
    )


def _read_yaml(yaml_path: Path) -> Mapping[Any, Any]:
    try:
        content = yaml.safe_load(yaml_path.read_text(encoding="utf-8-sig", errors="strict"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(
            f"{yaml_path} is not readable as YAML", seen=str(error), expected="train, val and names, as YAML"
        ) from error
    if not isinstance(content, Mapping):
        raise DataError(
            f"{yaml_path} does not describe a data set",
            seen=f"a {type(content).__name__}",
            expected="a map with train, val and names",
        )
    return content


def _parse_names(yaml_path: Path, content: Mapping[Any, Any]) -> tuple[str, ...]:
    """Class names in index order, from a list, a map with indices in any order, or ``nc`` alone."""
    raw, count = content.get("names"), content.get("nc")
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        raise DataError(f"nc in {yaml_path} is not a count of classes", seen=repr(count), expected="1 or more")
    if raw is None and count is not None:
        return tuple(f"class{index}" for index in range(count))
    if isinstance(raw, Mapping):
        names = _names_from_map(yaml_path, raw)
    elif isinstance(raw, Sequence) and not isinstance(raw, str):
        names = tuple(str(name) for name in raw)
    else:
        names = ()
    if not names:
        raise DataError(
            f"{yaml_path} has no class names",
            seen=f"names: {raw!r}",
            expected="names as a list, or as a map from 0, 1, 2, ... to a name",
        )
    if count is not None and count != len(names):
        raise DataError(
            f"nc and names in {yaml_path} do not agree",
            seen=f"nc: {count} and {len(names)} names",
            expected="the same number, or no nc at all",
        )
    return names


def _names_from_map(yaml_path: Path, raw: Mapping[Any, Any]) -> tuple[str, ...]:
    try:
        by_index = {int(key): str(name) for key, name in raw.items()}
    except (TypeError, ValueError) as error:
        raise DataError(
            f"names in {yaml_path} has a key that is not a number",
            seen=repr(list(raw)[:5]),
            expected="0, 1, 2, ... up to the number of classes",
        ) from error
    missing = sorted(set(range(len(raw))) - set(by_index))
    if missing:
        raise DataError(
            f"names in {yaml_path} has gaps",
            seen=f"no name for class {', '.join(map(str, missing[:5]))} among {len(raw)} names",
            expected="every index from 0 on, once",
        )
    return tuple(by_index[index] for index in range(len(by_index)))


def _parse_entries(yaml_path: Path, split: str, value: Any) -> tuple[str, ...]:
    entries = (value,) if isinstance(value, str) else value
    if not isinstance(entries, (list, tuple)) or not all(isinstance(entry, str) for entry in entries):
        raise DataError(
            f"'{split}' in {yaml_path} is not a place",
            seen=repr(value),
            expected="a folder, a list of folders or a text file of image paths",
        )
    return tuple(entries)


def _find_root(yaml_path: Path, written: Any) -> Path:
    """The data set's folder: ``path`` beside the YAML file, else below the working directory."""
    if written in (None, ""):
        return yaml_path.parent.absolute()
    folder = Path(str(written)).expanduser()
    candidates = [folder] if folder.is_absolute() else [yaml_path.parent / folder, Path.cwd() / folder]
    for candidate in candidates:
        if candidate.is_dir():
            return Path(os.path.abspath(candidate))
    raise DataError(
        f"The folder of the data set {yaml_path} was not found",
        seen=f"path: {written}; looked for {', '.join(str(c.absolute()) for c in candidates)}",
        expected="a folder that exists",
        next_command="correct 'path' in the YAML file",
    )


def _locate(dataset: DatasetFile, entry: str) -> tuple[Path | None, list[str]]:
    """Where a split's entry is, and every path that was tried."""
    written = Path(entry).expanduser()
    if written.is_absolute():
        candidates = [written]
    else:
        candidates = [dataset.root / written]
        if entry.startswith("../"):
            # Exports exist that write paths as seen from a folder beside the YAML file.
            candidates.append(dataset.root / entry[3:])
    tried = [os.path.abspath(candidate) for candidate in candidates]
    return next((Path(place) for place in tried if os.path.exists(place)), None), tried


def _walk_images(folder: Path) -> Iterator[Path]:
    seen = {os.path.realpath(folder)}
    for parent, folders, files in os.walk(folder, followlinks=True):
        # A link back up would be walked for ever.
        real = {name: os.path.realpath(os.path.join(parent, name)) for name in folders if not name.startswith(".")}
        folders[:] = [name for name, place in real.items() if place not in seen]
        seen.update(real.values())
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                yield Path(parent, name)


def _read_image_list(dataset: DatasetFile, list_path: Path) -> list[Path]:
    """The images that a text file names, one a line; ``./`` means the list's own folder."""
    if list_path.suffix.lower() != ".txt":
        raise DataError(
            f"{list_path} is neither a folder nor a list of images",
            seen=f"a file ending in {list_path.suffix!r}",
            expected="a folder, or a .txt file with one image path a line",
        )
    lines = [line.strip() for line in list_path.read_text(encoding="utf-8-sig").splitlines()]
    lines = [line for line in lines if line]
    bare = next((line for line in lines if not line.startswith("./") and not os.path.isabs(line)), None)
    # One decision for the whole list: a stat per line would cost seconds on a network drive.
    bases = [dataset.root, list_path.parent, Path.cwd()]
    base = next((b for b in bases if bare and (b / bare).exists()), dataset.root)
    images = []
    for line in lines:
        if line.startswith("./"):
            images.append(list_path.parent / line[2:])
        else:
            images.append(base / line)
    return [Path(os.path.abspath(image)) for image in images]
