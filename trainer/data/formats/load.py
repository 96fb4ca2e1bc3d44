"""Opens a data set of any known format; says what was found, and what is known if nothing was."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from trainer.data.dataset import DatasetFile, load_dataset_file
from trainer.data.formats.archive import is_zip, unpacked
from trainer.data.formats.coco import COCO
from trainer.data.formats.cvat import CVAT
from trainer.data.formats.darknet import DarknetFormat
from trainer.data.formats.format import Format, ReadOptions, Sources, names_in, to_first_names
from trainer.data.formats.labelme import LABELME_JSON, LABELME_XML
from trainer.data.formats.voc import VOC
from trainer.data.formats.yolo import FolderFormat, YamlFormat
from trainer.errors import DataError
from trainer.reading.text_file import printable

FORMATS: tuple[Format, ...] = (
    YamlFormat(),
    COCO,
    VOC,
    CVAT,
    LABELME_JSON,
    LABELME_XML,
    DarknetFormat(),
    FolderFormat(),
)
"""Every format that is read; a new one is a module and an entry here."""


def load_dataset(path: str | Path, *, val: str | Path = "", leave_out: Sequence[str] = ()) -> DatasetFile:
    """Returns the data set that a file or folder describes, in whichever format.

    ``val`` is a file or folder of the same kinds for the validation split. ``leave_out`` are marks of objects that
    are not wanted: 'difficult', 'truncated'. Raises DataError for what no format knows, what several know, and what
    cannot be read.
    """
    options = ReadOptions(has_val=bool(val), leave_out=tuple(leave_out))
    dataset = _open(Path(os.path.expanduser(path)), options)
    if not val:
        return dataset
    return _with_val(dataset, _open(Path(os.path.expanduser(val)), replace(options, has_val=False)))


def _open(path: Path, options: ReadOptions) -> DatasetFile:
    if not os.path.exists(path):
        return load_dataset_file(path)  # which says what lies beside
    if is_zip(path):
        from trainer.data.demo.dataset import default_cache_dir

        return _open(unpacked(path, default_cache_dir()), options)
    found = [(one, sources) for one in FORMATS if (sources := one.find(path)) is not None]
    if not found:
        raise _unknown(path)
    if len(found) > 1:
        raise _mixed(path, found)
    ((one, sources),) = found
    return one.read(path, sources, options)


def _with_val(dataset: DatasetFile, other: DatasetFile) -> DatasetFile:
    """Returns the data set with another one's validation images, or its only ones, as its validation split."""
    split = "val" if "val" in other.splits else next(iter(other.splits))
    to = to_first_names(dataset.names, other.names, str(other.path))
    annotations = {key: table for key, table in dataset.annotations.items() if key != "val"}
    entries = other.splits[split]
    if split in other.annotations:
        annotations["val"] = other.annotations[split].with_classes(to)
    elif to != list(range(len(to))):
        raise DataError(
            f"{other.path} has the classes in another order than {dataset.path}",
            seen=", ".join(other.names[:10]),
            expected=", ".join(dataset.names[:10]),
            next_command="give both splits the same names in the same order",
        )
    else:
        entries = tuple(str(other.root / os.path.expanduser(entry)) for entry in entries)
    splits = {**dataset.splits, "val": entries}
    return replace(dataset, splits=splits, annotations=annotations, key=dataset.key + other.key)


def _unknown(path: Path) -> DataError:
    if not os.path.isdir(path):
        # A file that is no annotation is most often meant to be a YAML file: its reader says what it is.
        load_dataset_file(path)
    held = names_in(path)
    return DataError(
        f"No data set was found in {printable(path)}",
        seen=", ".join(map(printable, held[:8])) + (f" and {len(held) - 8} more" if len(held) > 8 else "")
        if held
        else "an empty folder",
        expected=f"one of: {', '.join(one.name for one in FORMATS)}",
        next_command="docs/data.md shows the layout of each; give the folder or file that holds the annotations",
    )


def _mixed(path: Path, found: Sequence[tuple[Format, Sources]]) -> DataError:
    firsts = [(one.name, next(iter(sources.files.values()))[0]) for one, sources in found]
    return DataError(
        f"{printable(path)} holds annotations of several formats",
        seen="; ".join(f"{name} ({printable(file)})" for name, file in firsts),
        expected="one format, so that it is clear which one counts",
        next_command=f"name the one to use: --data {firsts[0][1]}",
    )
