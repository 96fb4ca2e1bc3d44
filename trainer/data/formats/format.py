"""What every format's module gives: how it is found by names and first kilobytes, and how it is read."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from trainer.data.annotations.builder import ImageRows, build
from trainer.data.annotations.builder import names_in as class_names_in
from trainer.data.annotations.tables import SplitAnnotations
from trainer.data.dataset import IMAGE_SUFFIXES, DatasetFile
from trainer.errors import DataError

HEAD_BYTES = 8192
SPLIT_WORDS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
_SPLIT_OF = {word: split for split, words in SPLIT_WORDS.items() for word in words}
_WORD = re.compile(r"[a-z]+")


@dataclass(frozen=True)
class ReadOptions:
    """What the user wants to be read otherwise than as it stands."""

    has_val: bool = False
    """The validation split is given apart, so that none is looked for."""
    leave_out: tuple[str, ...] = ()
    """Marks of objects that are left out: 'difficult', 'truncated'."""


@dataclass(frozen=True)
class Sources:
    """Where a format's annotations lie."""

    root: Path
    files: Mapping[str, tuple[Path, ...]]
    """Per split, its annotation files or, for label files, its image folders or lists."""


Annotated = tuple[tuple[str, ...], Mapping[str, SplitAnnotations]]
"""Class names, and the annotations of each split."""


class Format(Protocol):
    """One way of writing annotations down."""

    @property
    def name(self) -> str:
        """Returns what people call it."""

    def find(self, path: Path) -> Sources | None:
        """Returns where the annotations lie if ``path`` is of this format; looks at names and first kilobytes."""

    def read(self, path: Path, sources: Sources, options: ReadOptions) -> DatasetFile:
        """Returns the data set. Raises DataError."""


@dataclass(frozen=True)
class AnnotationFormat:
    """A format whose rows are read into tables, and kept in the user's cache."""

    name: str
    finder: Callable[[Path], Sources | None]
    parse: Callable[[Sources, ReadOptions], Annotated]

    def find(self, path: Path) -> Sources | None:
        """Returns where the annotations lie, None if ``path`` is of another format."""
        return self.finder(path)

    def read(self, path: Path, sources: Sources, options: ReadOptions) -> DatasetFile:
        """Returns the data set, from the cache if the files are those that it was made of."""
        from trainer.data.annotations.cache import key_of, read_annotations, write_annotations
        from trainer.data.demo.dataset import default_cache_dir

        files = [file for split in sources.files for file in sources.files[split]]
        way = f"{self.name} {sorted(options.leave_out)} {options.has_val} {list(sources.files)}"
        try:
            key = key_of(files, way)
        except OSError as error:
            raise unreadable(error.filename, error) from None
        cache = default_cache_dir() / "annotations" / f"{short_hash(f'{sources.root}{way}{files[0]}')}.npz"
        found: Annotated | None = read_annotations(cache, key)
        if found is None or _have_moved(found[1]):
            found = self.parse(sources, options)
            write_annotations(cache, key, *found)
        names, splits = found
        if not names:
            raise DataError(
                f"{path} has no class names",
                seen=f"{self.name} without an object",
                expected="annotations with at least one object",
                next_command="give the folder or file that holds the annotations",
            )
        written = {split: tuple(map(str, sources.files.get(split, files))) for split in splits}
        return DatasetFile(path, sources.root, names, written, format=self.name, annotations=splits, key=key)


def _have_moved(splits: Mapping[str, SplitAnnotations]) -> bool:
    """Returns whether the images lie elsewhere than when they were looked for."""
    return any(len(table) and not os.path.exists(table.images.text(0)) for table in splits.values())


def short_hash(text: str) -> str:
    """Returns 16 hex digits for a name in the cache."""
    import hashlib

    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]


def head_of(path: Path) -> bytes:
    """Returns the first kilobytes of a file, nothing if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(HEAD_BYTES)
    except OSError:
        return b""


def split_of(name: str) -> str | None:
    """Returns the split that a file's or folder's name says: ``instances_val2017`` is 'val'; None if it says none."""
    found = {_SPLIT_OF[word] for word in _WORD.findall(name.lower()) if word in _SPLIT_OF}
    return found.pop() if len(found) == 1 else None


def folders_of_splits(root: Path) -> dict[str, Path]:
    """Returns the folders right below ``root`` that are called after a split."""
    found: dict[str, Path] = {}
    for name in names_in(root):
        split = _SPLIT_OF.get(name.lower())
        if split and os.path.isdir(root / name):
            found.setdefault(split, root / name)
    return {split: found[split] for split in SPLIT_WORDS if split in found}


def names_in(folder: Path) -> list[str]:
    """Returns the names in a folder, sorted, without hidden ones; none for what is no folder."""
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError:
        return []


def files_in(folder: Path, suffixes: Iterable[str]) -> list[Path]:
    """Returns the files right in a folder with one of some suffixes, sorted."""
    wanted = frozenset(suffixes)
    return [folder / name for name in names_in(folder) if os.path.splitext(name)[1].lower() in wanted]


def has_images(folder: Path) -> bool:
    """Returns whether an image lies right in a folder."""
    return any(os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES for name in names_in(folder))


def unreadable(path: Path | str, error: OSError) -> DataError:
    """Returns the error for an annotation file that the system does not hand over."""
    return DataError(
        f"{path} cannot be read",
        seen=error.strerror or str(error),
        expected="a file that this user may read",
        next_command=f"ls -l {path}",
    )


def read_splits(
    sources: Sources,
    options: ReadOptions,
    unit: str,
    read: Callable[[tuple[Path, ...], dict[str, int]], list[ImageRows]],
) -> Annotated:
    """Returns every split that is wanted, for formats that have no list of classes.

    ``read`` makes the images of a split's files, and counts what it leaves out by the reason; ``unit`` is what the
    numbers of rows count.
    """
    splits: dict[str, list[ImageRows]] = {}
    left_out: dict[str, dict[str, int]] = {}
    for split, files in sources.files.items():
        if not (split == "val" and options.has_val):
            left_out[split] = {}
            splits[split] = read(files, left_out[split])
    names = class_names_in(splits)
    return names, {split: build(rows, names, unit, left_out[split]) for split, rows in splits.items()}


def to_first_names(first: Sequence[str], others: Sequence[str], where: str) -> list[int]:
    """Returns, per class of a split, its index among the first split's. Raises DataError for names it lacks."""
    unknown = sorted(set(others) - set(first))
    if unknown:
        raise DataError(
            f"{where} has classes that the training split does not have",
            seen=", ".join(unknown[:5]),
            expected=f"names among {', '.join(first[:10])}",
            next_command="give both splits the same categories",
        )
    at = {name: index for index, name in enumerate(first)}
    return [at[name] for name in others]
