"""Reads Darknet's layout, as CVAT's export "YOLO 1.1" has it: obj.data names the lists and the file of class names."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from trainer.data.dataset import DatasetFile
from trainer.data.formats.format import ReadOptions, Sources, split_of
from trainer.data.formats.yolo import read_names_file
from trainer.data.split_files import find_files
from trainer.errors import DataError
from trainer.reading.text_file import TextFileError, printable, read_text

_LIMIT_BYTES = 2**30


@dataclass(frozen=True)
class DarknetFormat:
    """A folder with obj.data, or that file."""

    name: str = "YOLO 1.1 of CVAT (obj.data)"

    def find(self, path: Path) -> Sources | None:
        """Finds obj.data."""
        file = path / "obj.data" if os.path.isdir(path) else path
        return Sources(file.parent, {"train": (file,)}) if file.name == "obj.data" and os.path.isfile(file) else None

    def read(self, path: Path, sources: Sources, options: ReadOptions) -> DatasetFile:
        """Returns the folders that the lists name. Raises DataError for a list that names only part of a folder."""
        (file,) = sources.files["train"]
        root = file.parent.absolute()
        entries = dict(line.split("=", 1) for line in _lines(file) if "=" in line)
        values = {key.strip(): value.strip() for key, value in entries.items()}
        names_file = _located(root, values.get("names", "obj.names"))
        if not os.path.isfile(names_file):
            raise DataError(
                f"{printable(file)} has no class names",
                seen=f"looked for {printable(names_file)}",
                expected="a text file with one name a line",
                next_command="export the task again, or add the file",
            )
        splits: dict[str, tuple[str, ...]] = {}
        listed: dict[str, set[str]] = {}
        for key, value in values.items():
            split = split_of(key)
            if split is None:
                continue
            listed[split] = {_located(root, line) for line in _lines(Path(_located(root, value)))}
            splits[split] = tuple(sorted({os.path.dirname(image) for image in listed[split]}))
        dataset = DatasetFile(path, root, read_names_file(Path(names_file)), splits, format=self.name)
        for split, images in listed.items():
            _check_whole(dataset, split, images)
        return dataset


def _lines(path: Path) -> list[str]:
    try:
        text = read_text(path, limit_bytes=_LIMIT_BYTES)
    except TextFileError as error:
        raise error.as_error(DataError, f"{printable(path)} cannot be read") from None
    except OSError as error:
        raise DataError(
            f"{printable(path)} cannot be read",
            seen=error.strerror or str(error),
            expected="the file that obj.data names",
            next_command=f"ls -l {printable(path)}",
        ) from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def _located(root: Path, line: str) -> str:
    """Returns the path of a line: CVAT writes ``data/`` before what lies beside obj.data."""
    inside = line.removeprefix("data/")
    return os.path.normpath(root / (inside if not os.path.exists(root / line) else line))


def _check_whole(dataset: DatasetFile, split: str, listed: set[str]) -> None:
    found = set(find_files(dataset, split).images)
    if found != listed:
        other = sorted(found ^ listed)[0]
        raise DataError(
            f"The list of the '{split}' split of {printable(dataset.path)} and its folders differ",
            seen=f"{len(listed)} images in the list, {len(found)} in its folders; one has {printable(other)}",
            expected="a list of all images in its folders",
            next_command="name the list as train or val in a YAML file (docs/data.md)",
        )
