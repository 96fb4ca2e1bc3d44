"""Finds what lies in a split's folders and is not used: labels without an image, files of another kind."""

from __future__ import annotations

import os
from collections.abc import Container, Iterable, Iterator, Sequence

from trainer.data.dataset import IMAGE_SUFFIXES, label_text_for, label_texts_for
from trainer.data.scan.report import Tally, tally
from trainer.data.split_files import SplitFiles
from trainer.reading.text_file import printable

_NO_LABELS = frozenset(("classes", "labels", "license", "notes", "readme", "test", "train", "trainval", "val"))
"""Stems of text files that lie among labels and are none."""
_COMPANIONS = frozenset(
    f".{name}"
    for name in ("cache", "csv", "db", "html", "ini", "json", "md", "names", "npy", "py", "txt", "xml", "yaml", "yml")
)
"""Suffixes of files that nobody takes for images."""


def find_unknown(files: SplitFiles) -> Tally:
    """Finds files whose suffix is neither an image's nor that of a text about images."""
    return tally(
        f"{printable(path)}: {suffix or 'no suffix'} is not read"
        for path, suffix in ((path, os.path.splitext(path)[1]) for path in files.others)
        if suffix.lower() not in _COMPANIONS
    )


def find_unused_labels(files: SplitFiles) -> Tally:
    """Finds label files in the split's label folders, or beside its images, that are no image's."""
    images = files.images
    used = set(label_texts_for(images))
    image_folders = {image.rpartition(os.sep)[0] for image in images}
    known = used | _labels_of_other_images(set(map(os.path.dirname, files.listed)))
    label_folders = {label.rpartition(os.sep)[0] for label in used}
    for folder in files.folders:
        label_folders.update(_folders_below(os.path.dirname(label_text_for(os.path.join(folder, "x")))))

    candidates = list(_labels_in([*label_folders, *image_folders], known))
    if not candidates:
        return Tally()
    by_lower_case = {path.lower(): path for path in used}
    foreign = {label_text_for(path): os.path.basename(path) for path in files.others}
    stems = {os.path.splitext(image)[0] for image in images}

    def reason(path: str) -> str:
        if path.lower() in by_lower_case:
            return f"it differs from {by_lower_case[path.lower()]} in its capitals"
        if path in foreign:
            return f"its image {foreign[path]} is of a kind that is not read"
        if (stem := os.path.splitext(path)[0]) in stems:
            return f"labels of this image are looked for in {os.path.dirname(label_text_for(stem + '.jpg'))}"
        return "no image has its name"

    return tally(printable(f"{path}: {reason(path)}") for path in candidates)


def _labels_in(folders: Iterable[str], known: Container[str]) -> Iterator[str]:
    """Yields the text files in some folders that may be labels and are not ``known``, sorted within each."""
    for folder in sorted(set(folders)):
        below = os.path.join(folder, "")
        for name in sorted(name for name in _names_in(folder) if below + name not in known):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() == ".txt" and not name.startswith(".") and stem.lower() not in _NO_LABELS:
                yield below + name


def _labels_of_other_images(folders: Iterable[str]) -> set[str]:
    """Returns labels of every image in folders of which a list names some: those of other splits may lie there too."""
    return {
        label_text_for(os.path.join(folder, name))
        for folder in folders
        for name in _names_in(folder)
        if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
    }


def _folders_below(folder: str) -> Iterator[str]:
    for parent, folders, _ in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield parent


def _names_in(folder: str) -> Sequence[str]:
    """Returns the names in a folder; none if it cannot be listed, which is reported elsewhere."""
    try:
        return os.listdir(folder)
    except OSError:
        return []
