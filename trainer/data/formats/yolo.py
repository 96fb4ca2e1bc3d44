"""Finds YOLO label files: a YAML file as it is, a folder that holds one, and a folder without any."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from trainer.data.dataset import YOLO_YAML, DatasetFile, label_text_for, load_dataset_file
from trainer.data.formats.format import (
    SPLIT_WORDS,
    ReadOptions,
    Sources,
    files_in,
    folders_of_splits,
    has_images,
    head_of,
    names_in,
)
from trainer.data.split_files import find_files
from trainer.errors import DataError
from trainer.reading.text_file import TextFileError, printable, read_text

_KEYS = re.compile(rb"^(names|train|val|nc)\s*:", re.MULTILINE)
_NAME_FILES = ("classes.txt", "obj.names", "labels.txt", "data.names")
_LIMIT_BYTES = 2**20


@dataclass(frozen=True)
class YamlFormat:
    """A YAML file that names the splits, given itself or as the only one in a folder."""

    name: str = YOLO_YAML

    def find(self, path: Path) -> Sources | None:
        """Finds a YAML file with train, val or names. Raises DataError for a folder with several."""
        if not os.path.isdir(path):
            return Sources(path.parent, {"train": (path,)}) if path.suffix.lower() in (".yaml", ".yml") else None
        found = [file for file in files_in(path, [".yaml", ".yml"]) if len(set(_KEYS.findall(head_of(file)))) > 1]
        if len(found) > 1:
            raise DataError(
                f"{printable(path)} has several YAML files that describe data sets",
                seen=", ".join(file.name for file in found[:5]),
                expected="one of them",
                next_command=f"name the one to use: --data {found[0]}",
            )
        return Sources(path, {"train": (found[0],)}) if found else None

    def read(self, path: Path, sources: Sources, options: ReadOptions) -> DatasetFile:
        """Reads the YAML file. Raises DataError."""
        return load_dataset_file(sources.files["train"][0])


@dataclass(frozen=True)
class FolderFormat:
    """Images with label files, in the usual folders, and nothing that names the splits."""

    name: str = "YOLO labels without a YAML file"

    def find(self, path: Path) -> Sources | None:
        """Finds images and the label files that belong to them."""
        folders = split_folders(path) if os.path.isdir(path) else {}
        has_labels = any(_has_label(folder) for folder in folders.values())
        has_yaml = YamlFormat().find(path) is not None if has_labels else False
        is_listed = os.path.isfile(path / "obj.data")
        return (
            Sources(path, {split: (folder,) for split, folder in folders.items()})
            if has_labels and not (has_yaml or is_listed)
            else None
        )

    def read(self, path: Path, sources: Sources, options: ReadOptions) -> DatasetFile:
        """Returns the splits by their folders, with names from classes.txt or obj.names, else by number."""
        root = path.absolute()
        splits = {split: tuple(str(f.absolute()) for f in folders) for split, folders in sources.files.items()}
        dataset = DatasetFile(path, root, (), splits, format=self.name)
        return replace(dataset, names=_read_names(root) or _numbered(dataset))


def split_folders(path: Path) -> dict[str, Path]:
    """Returns the image folder of each split: images/train, train/images, train, or all for training."""
    for pattern in ("images/*", "Images/*", "*/images", "*"):
        first, _, last = pattern.partition("/")
        if last == "*":
            found = folders_of_splits(path / first)
        else:
            found = {split: folder / last for split, folder in folders_of_splits(path).items()}
        found = {split: folder for split, folder in found.items() if _holds_images(folder)}
        if found:
            return found
    return next(({"train": folder} for folder in (path / "images", path / "Images", path) if has_images(folder)), {})


def _holds_images(folder: Path) -> bool:
    return any(has_images(Path(parent)) for parent, _, _ in os.walk(folder))


def _has_label(folder: Path) -> bool:
    """Returns whether the folder of labels of an image folder has a text file called as an image is."""
    for parent, _, files in os.walk(folder):
        labels = os.path.dirname(label_text_for(os.path.join(parent, "x.jpg")))
        stems = {os.path.splitext(name)[0] for name in files if not name.endswith(".txt")}
        if any(name.endswith(".txt") and name[:-4] in stems for name in names_in(Path(labels))):
            return True
    return False


def _read_names(root: Path) -> tuple[str, ...]:
    for folder in (root, root / "labels", *(root / "labels" / word for word in SPLIT_WORDS["train"])):
        for name in _NAME_FILES:
            if os.path.isfile(folder / name):
                return read_names_file(folder / name)
    return ()


def read_names_file(path: Path) -> tuple[str, ...]:
    """Returns the class names of a text file with one a line. Raises DataError."""
    try:
        lines = read_text(path, limit_bytes=_LIMIT_BYTES).splitlines()
    except TextFileError as error:
        raise error.as_error(DataError, f"{printable(path)} is no list of class names") from None
    return tuple(line.strip() for line in lines if line.strip())


def _numbered(dataset: DatasetFile) -> tuple[str, ...]:
    """Returns class0, class1, ... up to the highest class of the label files."""
    highest = 0
    for split in dataset.splits:
        for image in find_files(dataset, split).images:
            try:
                text = Path(label_text_for(image)).read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue
            classes = [line.split(None, 1)[0] for line in text.splitlines() if line.strip()]
            highest = max([highest, *(int(word) for word in classes if word.isascii() and word.isdigit())])
    return tuple(f"class{index}" for index in range(min(highest, 9_999) + 1))
