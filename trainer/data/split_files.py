"""Finds every file of a split: its images, and what lies beside them; no file but a list is opened. Torch-free."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trainer.data.dataset import CORRECT, IMAGE_SUFFIXES, YOLO_YAML, DatasetFile, label_text_for, relative_name
from trainer.errors import DataError
from trainer.reading.text_file import TextFileError, printable, read_text

MAX_LIST_BYTES = 2**30
_ANY = "surrogateescape"
_FIRST_LINES = 50
"""A list none of whose first lines names an image is no list of images."""


@dataclass
class SplitFiles:
    """What a split's folders and lists hold."""

    images: list[str] = field(default_factory=list)
    """Sorted; texts, as a million path objects take seconds.  a list may name one twice, folders may not."""
    folders: list[Path] = field(default_factory=list)
    """Folders that the split names, walked through to their ends."""
    listed: list[str] = field(default_factory=list)
    """The images that lists name, whose folders may hold those of other splits."""
    others: list[str] = field(default_factory=list)
    """Files in the folders that are no image by their suffix."""
    hidden: list[str] = field(default_factory=list)
    """Images and folders in the folders whose name starts with a dot; left out."""
    unreadable: list[tuple[Path, str]] = field(default_factory=list)
    """Folders that cannot be listed, and why."""
    backslashes: list[tuple[Path, int]] = field(default_factory=list)
    """Lists and lines with the separators of Windows, read as slashes."""


def find_images(dataset: DatasetFile, split: str) -> list[Path]:
    """Returns every image file of a split, sorted by path; see ``find_files``."""
    return [Path(image) for image in find_files(dataset, split).images]


def find_files(dataset: DatasetFile, split: str) -> SplitFiles:
    """Finds every file of a split.

    Raises DataError, with the paths looked for, if the split is not in the file or holds no image.
    """
    if split not in dataset.splits and dataset.format != YOLO_YAML:
        raise DataError(
            f"{dataset.path} ({dataset.format}) has no '{split}' split",
            seen=f"only {', '.join(dataset.splits)}, and nothing is held out unasked",
            expected=f"annotations of a '{split}' split beside these, called alike",
            next_command="--val-data FILE, with the file or folder of the validation split",
        )
    if split not in dataset.splits:
        raise DataError(
            f"{dataset.path} has no '{split}' split",
            seen=f"splits {', '.join(dataset.splits)}",
            expected=f"a line such as '{split}: images/{split}'",
            next_command=CORRECT,
        )
    if split in dataset.annotations:
        return SplitFiles(images=list(dataset.annotations[split].images.texts()))
    found = SplitFiles()
    looked_for: list[str] = []
    for entry in dataset.splits[split]:
        path, tried = _locate(dataset, entry)
        looked_for += tried
        if path is None:
            raise DataError(
                f"The '{split}' images of {dataset.path} were not found",
                seen=f"{entry!r}; looked for {', '.join(map(printable, tried))}",
                expected="a folder, or a text file of image paths, that exists",
                next_command="correct the entry or 'path' in the YAML file",
            )
        if os.path.isdir(path):
            found.folders.append(path)
        else:
            found.listed += _read_image_list(dataset, path, found)
    in_folders: set[str] = set()
    for folder in found.folders:
        in_folders.update(_walk(folder, found))
    found.images = sorted([*in_folders, *found.listed])
    found.others = sorted(set(found.others))
    if not found.images:
        raise _no_images(dataset, split, found, looked_for)
    return found


def fingerprint(dataset: DatasetFile) -> str:
    """Returns a short hash of names, image paths and label sizes, equal on every machine with the same data set."""
    digest = hashlib.sha256("\n".join(dataset.names).encode())
    for split in dataset.splits:
        digest.update(f"\0{split}\0".encode())
        if split in dataset.annotations:
            table = dataset.annotations[split]
            digest.update(
                "\n".join(relative_name(dataset, image) for image in table.images.texts()).encode(errors=_ANY)
            )
            digest.update(table.boxes.counts.tobytes() + table.boxes.rows.tobytes())
            continue
        for image in find_files(dataset, split).images:
            try:
                label_bytes = os.stat(label_text_for(image)).st_size
            except OSError:
                label_bytes = -1
            digest.update(f"{relative_name(dataset, image)}\t{label_bytes}\n".encode(errors=_ANY))
    return digest.hexdigest()[:16]


def _no_images(dataset: DatasetFile, split: str, found: SplitFiles, looked_for: Sequence[str]) -> DataError:
    seen = f"looked in {', '.join(map(printable, looked_for))}"
    suffixes = sorted({_suffix(path) or "no suffix" for path in found.others})
    if suffixes:
        seen += f", which holds {len(found.others)} files with {', '.join(map(printable, suffixes[:5]))}"
    if found.unreadable:
        seen += f"; {printable(found.unreadable[0][0])}: {found.unreadable[0][1]}"
    return DataError(
        f"The '{split}' split of {dataset.path} holds no images",
        seen=seen,
        expected=f"image files ending in {' '.join(sorted(IMAGE_SUFFIXES))}",
        next_command="correct the entry in the YAML file, or convert the images",
    )


def _locate(dataset: DatasetFile, entry: str) -> tuple[Path | None, list[str]]:
    """Returns the path of a split's entry, or None, and every path that was tried."""
    written = Path(os.path.expanduser(entry))
    if written.is_absolute():
        candidates = [written]
    else:
        candidates = [dataset.root / written]
        if entry.startswith("../"):
            # Exports exist that write paths as seen from a folder beside the YAML file.
            candidates.append(dataset.root / entry[3:])
    tried = [os.path.abspath(candidate) for candidate in candidates]
    return next((Path(path) for path in tried if os.path.exists(path)), None), tried


def _walk(folder: Path, found: SplitFiles) -> Iterator[str]:
    """Yields the images below a folder; records what else there is in ``found``."""

    def note_unreadable(error: OSError) -> None:
        found.unreadable.append((Path(os.fsdecode(error.filename)), error.strerror or str(error)))

    seen = {os.path.realpath(folder)}
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=note_unreadable):
        found.hidden += [os.path.join(parent, name) for name in folders if name.startswith(".")]
        # A link back up would be walked for ever.
        real = {name: os.path.realpath(os.path.join(parent, name)) for name in folders if not name.startswith(".")}
        folders[:] = [name for name, path in real.items() if path not in seen]
        seen.update(real.values())
        below = os.path.join(parent, "")
        for name in files:
            path = below + name
            is_image = os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
            if name.startswith("."):
                found.hidden += [path] * is_image
            elif is_image:
                yield path
            else:
                found.others.append(path)


def _read_image_list(dataset: DatasetFile, list_path: Path, found: SplitFiles) -> list[str]:
    """Reads the images that a text file names, one a line; ``./`` means the list's own folder, ``#`` starts a comment.

    Raises DataError for a file that is no such list.
    """
    shown = printable(list_path)
    if list_path.suffix.lower() != ".txt":
        raise DataError(
            f"{shown} is neither a folder nor a list of images",
            seen=f"a file ending in {list_path.suffix!r}",
            expected="a folder, or a .txt file with one image path a line",
            next_command=CORRECT,
        )
    try:
        text = read_text(list_path, limit_bytes=MAX_LIST_BYTES, keep_bytes=True)
    except TextFileError as error:
        raise error.as_error(DataError, f"{shown} is no list of images") from None
    except OSError as error:
        raise DataError(
            f"{shown} cannot be read",
            seen=error.strerror or str(error),
            expected="a .txt file with one image path a line",
            next_command=f"ls -l {shown}",
        ) from None
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1)]
    lines = [(number, line) for number, line in lines if line and not _is_comment(line)]
    first = [line for _, line in lines[:_FIRST_LINES]]
    if first and not any(_suffix(line) in IMAGE_SUFFIXES for line in first):
        raise DataError(
            f"{shown} is no list of images",
            seen=f"line {lines[0][0]}: {printable(first[0][:100])}",
            expected="one image path a line",
            next_command=CORRECT,
        )
    bases = _Bases(dataset, list_path)
    images = []
    for number, line in lines:
        image, is_rewritten = bases.resolve(line)
        images.append(image)
        if is_rewritten:
            found.backslashes.append((list_path, number))
    return images


def _is_comment(line: str) -> bool:
    """Returns whether a line is a comment: it starts with #, unless it reads as an image's name such as #1.jpg."""
    return line.startswith("#") and not (_suffix(line) in IMAGE_SUFFIXES and " " not in line)


def _suffix(line: str) -> str:
    return os.path.splitext(line)[1].lower()


class _Bases:
    """The folder that a list's paths are relative to: looked for once for each folder that the list names.

    A look for each line would cost seconds on a network drive.
    """

    def __init__(self, dataset: DatasetFile, list_path: Path) -> None:
        self._own = list_path.parent
        self._bases = [dataset.root, list_path.parent, Path.cwd()]
        self._chosen: dict[tuple[str, bool], tuple[Path, bool]] = {}

    def resolve(self, line: str) -> tuple[str, bool]:
        """Returns the absolute path of a line, and whether its backslashes were taken for slashes."""
        slashed = line.replace("\\", "/") if os.sep == "/" and "\\" in line else line
        key = (os.path.dirname(slashed), slashed != line)
        if key not in self._chosen:
            self._chosen[key] = self._choose(line, slashed)
        base, is_rewritten = self._chosen[key]
        return os.path.abspath(os.path.join(base, _relative(slashed if is_rewritten else line))), is_rewritten

    def _choose(self, line: str, slashed: str) -> tuple[Path, bool]:
        for text in dict.fromkeys((line, slashed)):
            for base in [self._own] if text.startswith("./") else self._bases:
                if os.path.exists(base / _relative(text)):
                    return base, text != line
        return (self._own if line.startswith("./") else self._bases[0]), False


def _relative(text: str) -> str:
    return text[2:].lstrip("/") if text.startswith("./") else text
