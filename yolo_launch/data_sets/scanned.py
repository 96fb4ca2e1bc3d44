"""Reads every split of a data set as training does, and says which images belong together."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer.data.curation.near_repeats import hash_images, near_groups
from trainer.data.dataset import DatasetFile, relative_name
from trainer.data.demo.dataset import default_cache_dir
from trainer.data.formats.load import load_dataset
from trainer.data.scan.label_cache import LabeledImages
from trainer.data.scan.report import ScanReport
from trainer.data.scan.scan import scan_split
from trainer.errors import DataError, UserError
from trainer.protocol import affinity_cores

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ScannedSplit:
    """A split with what its scan found, or the reason why it cannot be used."""

    images: LabeledImages | None
    report: ScanReport | None
    refused: UserError | None = None


@dataclass(frozen=True)
class Pool:
    """The usable images of every split, one after the other; one that two splits name stands twice."""

    splits: dict[str, LabeledImages]

    @property
    def paths(self) -> list[str]:
        """Returns every image's path."""
        return [path for images in self.splits.values() for path in images.paths.texts()]

    @property
    def names(self) -> list[str]:
        """Returns the split of each image."""
        return [split for split, images in self.splits.items() for _ in range(len(images))]

    @property
    def digests(self) -> list[bytes]:
        """Returns the digest of each image's file."""
        return [bytes(digest) for images in self.splits.values() for digest in images.digests]

    def near(self, on_progress: Progress | None = None) -> np.ndarray:
        """Returns the number of each image's group of images that look the same."""
        shapes = np.concatenate([np.zeros((0, 2), np.int32), *(images.shapes_hw for images in self.splits.values())])
        hashes = hash_images([Path(path) for path in self.paths], shapes, affinity_cores(), on_progress)
        return near_groups(hashes)


def scan_all(data: str, on_progress: Progress | None = None) -> tuple[DatasetFile, dict[str, ScannedSplit]]:
    """Returns a data set and each of its splits, scanned. Raises DataError for one that cannot be opened at all."""
    dataset = load_dataset(data)
    scanned = {}
    for split in dataset.splits:
        try:
            images, report = scan_split(
                dataset,
                split,
                num_classes=dataset.num_classes,
                cache_dir=default_cache_dir(),
                on_progress=on_progress,
            )
            scanned[split] = ScannedSplit(images, report)
        except UserError as error:
            scanned[split] = ScannedSplit(None, None, error)
    return dataset, scanned


def pool_of(scanned: dict[str, ScannedSplit]) -> Pool:
    """Returns the images of all splits. Raises the error of the first that cannot be used."""
    for each in scanned.values():
        if each.refused is not None:
            raise each.refused
    return Pool({split: each.images for split, each in scanned.items() if each.images is not None})


def joined(*groupings: np.ndarray) -> np.ndarray:
    """Returns one number a group for images that any of the groupings puts together, directly or through others."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    count = len(groupings[0])
    first, second = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for grouping in groupings:
        order = np.argsort(grouping, kind="stable")
        same = grouping[order[1:]] == grouping[order[:-1]]
        first.append(order[1:][same])
        second.append(order[:-1][same])
    rows, columns = np.concatenate(first), np.concatenate(second)
    links = coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(count, count))
    groups: np.ndarray = connected_components(links, directed=False)[1]
    return groups


def grouped_by_text(texts: list[str]) -> np.ndarray:
    """Returns one number for each different text."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(text, len(numbers)) for text in texts], np.int64)


def grouped_by_pattern(dataset: DatasetFile, paths: list[str], pattern: str) -> np.ndarray:
    """Returns one number for all images whose paths match with the same text, and one for each that does not.

    Raises DataError for a pattern that is none or that matches no image.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise DataError("--group-by is no regular expression", seen=f"{pattern!r}: {error}") from error
    matches = [compiled.search(relative_name(dataset, path)) for path in paths]
    if not any(matches):
        raise DataError(
            "--group-by matches no image",
            seen=f"{pattern!r}; the first image is {relative_name(dataset, paths[0])}",
            expected="a pattern that the paths of images have",
        )
    keys = [
        "\0".join(match.groups("") or (match.group(),)) if match else f"\1{path}"
        for path, match in zip(paths, matches, strict=True)
    ]
    return grouped_by_text(keys)


def default_folder(dataset: DatasetFile, ending: str) -> Path:
    """Returns the folder in the working directory that a command writes to if none was named."""
    return Path(os.curdir) / f"{dataset.path.stem}-{ending}"
