"""Reads one COCO JSON file: typed decoding, then arrays; polygons are never all objects at once."""

from __future__ import annotations

import gc
import itertools
import os
from array import array
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from trainer.data.annotations.builder import image_twice
from trainer.data.annotations.tables import SplitAnnotations
from trainer.data.formats.coco_images import find_image_folder
from trainer.data.formats.format import unreadable
from trainer.data.formats.rle import rle_bounds
from trainer.data.scan.tables import PathTable, RowTable
from trainer.errors import DataError
from trainer.reading.text_file import printable

_BLOCK = 20_000
"""Annotations whose polygons are Python floats at one time."""
_CORRECT = "correct the file, or export it again"
Id = int | str


class _Image(msgspec.Struct, gc=False):
    id: Id
    file_name: str
    width: int | float | None = None
    height: int | float | None = None


class _Category(msgspec.Struct, gc=False):
    id: Id
    name: str
    supercategory: str | None = None


class _Annotation(msgspec.Struct, gc=False):
    image_id: Id
    category_id: Id
    bbox: tuple[float, ...] | None = None
    segmentation: msgspec.Raw = msgspec.Raw(b"null")
    iscrowd: int | bool | None = None
    id: Id | None = None


class _File(msgspec.Struct, gc=False):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


class _Rle(msgspec.Struct, gc=False):
    counts: list[int] | str
    size: tuple[int, int]


_DECODER = msgspec.json.Decoder(_File)
_POLYGONS = msgspec.json.Decoder(list[list[float]])
_RLE = msgspec.json.Decoder(_Rle)


def read_coco_file(path: Path, split: str) -> tuple[tuple[str, ...], SplitAnnotations]:
    """Returns class names, in the order of their ids, and the annotations of a COCO JSON file.

    Crowds are left out and counted. Raises DataError, naming the annotation's id and the image, for what is no such
    file, ids that are not there or stand twice, and boxes that are none.
    """
    was_enabled = gc.isenabled()
    gc.disable()  # a million new objects would be looked through again and again
    try:
        return _to_tables(path, split, _decode(path))
    finally:
        if was_enabled:
            gc.enable()


def _decode(path: Path) -> _File:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from None
    try:
        return _DECODER.decode(content.removeprefix(b"\xef\xbb\xbf"))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(
            f"{printable(path)} cannot be read as COCO JSON",
            seen=str(error),
            expected="an object with the lists images, annotations and categories",
            next_command=_CORRECT,
        ) from None


def _to_tables(path: Path, split: str, file: _File) -> tuple[tuple[str, ...], SplitAnnotations]:
    names, class_of = _classes(path, file)
    folder = find_image_folder(path, split, [image.file_name for image in file.images])
    paths = [os.path.normpath(os.path.join(folder, image.file_name)) for image in file.images]
    order = sorted(range(len(paths)), key=paths.__getitem__)
    rank_of = {file.images[at].id: rank for rank, at in enumerate(order)}
    _check_images(path, file.images, [paths[at] for at in order], rank_of)
    sizes = np.array([[image.height or 0, image.width or 0] for image in file.images], np.float64).reshape(-1, 2)
    sizes_hw = np.where(sizes > 0, sizes, 0)[order].astype(np.int32)

    kept = [one for one in file.annotations if not one.iscrowd]
    crowds = len(file.annotations) - len(kept)
    file.annotations = []
    image = np.array([_look_up(path, one, rank_of, "image_id") for one in kept], np.int64)
    class_index = np.array([_look_up(path, one, class_of, "category_id") for one in kept], np.float64)
    points, lengths = _polygons(path, kept, image, sizes_hw)
    ltwh = _boxes(path, kept)
    numbers, unit = _ids(kept)
    del kept
    rank = np.argsort(image, kind="stable")
    scale = np.where(sizes_hw.all(axis=1, keepdims=True), sizes_hw, 1)[image][:, ::-1]
    boxes = np.column_stack([class_index, (ltwh[:, :2] + ltwh[:, 2:] / 2) / scale, ltwh[:, 2:] / scale])[rank]
    return names, SplitAnnotations(
        images=PathTable(paths[at] for at in order),
        sizes_hw=sizes_hw,
        boxes=RowTable(boxes, np.bincount(image, minlength=len(order)).astype(np.int64)),
        points=_reordered(points, lengths, rank),
        ids=numbers[rank],
        sources=(os.fspath(path),),
        source_of=np.zeros(len(order), np.int32),
        unit=unit,
        left_out={"crowd": crowds} if crowds else {},
    )


def _classes(path: Path, file: _File) -> tuple[tuple[str, ...], dict[Id, int]]:
    """Returns the names, by rising id, and the index of each category's id."""
    categories = file.categories
    if len({one.id for one in categories}) < len(categories) or len({one.name for one in categories}) < len(categories):
        raise DataError(
            f"{printable(path)} has a category twice",
            seen=", ".join(f"{one.id}: {one.name}" for one in categories[:10]),
            expected="one id and one name for each category",
            next_command=_CORRECT,
        )
    # Roboflow writes the name of the project as a first category, of which the others are kinds.
    above = {one.supercategory for one in categories if one.supercategory != one.name}
    empty = {one.id for one in categories if one.id == 0 and one.name in above and one.supercategory == "none"}
    if empty and not any(one.category_id in empty for one in file.annotations):
        categories = [one for one in categories if one.id not in empty]
    ordered = sorted(categories, key=lambda one: (isinstance(one.id, str), one.id))
    return tuple(one.name for one in ordered), {one.id: index for index, one in enumerate(ordered)}


def _check_images(path: Path, images: Sequence[_Image], ordered: Sequence[str], rank_of: dict[Id, int]) -> None:
    if not images:
        raise DataError(
            f"{printable(path)} names no images",
            seen="images: []",
            expected="one entry for each image",
            next_command=_CORRECT,
        )
    for first, second in itertools.pairwise(ordered):
        if first == second:
            raise image_twice(first, os.fspath(path))
    if len(rank_of) < len(images):
        seen: set[Id] = set()
        twice = next(image for image in images if image.id in seen or seen.add(image.id))  # type: ignore[func-returns-value]
        raise image_twice(twice.file_name, f"{path}: image id {twice.id!r}")


def _look_up(path: Path, one: _Annotation, known: dict[Id, int], field: str) -> int:
    value = one.image_id if field == "image_id" else one.category_id
    try:
        return known[value]
    except KeyError:
        what = "image" if field == "image_id" else "category"
        raise _wrong(path, one, f"{field} {value!r}", f"the id of an {what} in the file") from None


def _wrong(path: Path, one: _Annotation, seen: str, expected: str) -> DataError:
    return DataError(
        f"{printable(path)}: annotation id {one.id!r} of image {one.image_id!r} cannot be used",
        seen=seen,
        expected=expected,
        next_command=_CORRECT,
    )


def _boxes(path: Path, kept: Sequence[_Annotation]) -> np.ndarray:
    """Returns float64 (n, 4): left, top, width, height in pixels; those without a box get that of their polygon."""
    flat = array("d")
    for one in kept:
        box = one.bbox
        if box is None or len(box) != 4:
            box = _box_of_segmentation(path, one) if not box else None
            if box is None:
                raise _wrong(path, one, f"bbox {one.bbox}", "left, top, width, height, or a segmentation")
        flat.extend(box)
    return np.frombuffer(flat, np.float64).reshape(-1, 4) if flat else np.zeros((0, 4))


def _box_of_segmentation(path: Path, one: _Annotation) -> tuple[float, ...] | None:
    if len(one.segmentation) <= len("null"):
        return None
    try:
        if memoryview(one.segmentation)[0] == ord("{"):
            rle = _RLE.decode(one.segmentation)
            found = rle_bounds(rle.counts, rle.size)
        else:
            flat = [value for polygon in _POLYGONS.decode(one.segmentation) for value in polygon]
            xs, ys = flat[0::2], flat[1::2]
            found = (min(xs), min(ys), max(xs), max(ys)) if len(xs) == len(ys) and xs else None
    except (msgspec.DecodeError, ValueError) as error:
        raise _wrong(path, one, f"segmentation: {error}", "polygons, or run lengths of the image's size") from None
    return None if found is None else (found[0], found[1], found[2] - found[0], found[3] - found[1])


def _polygons(
    path: Path, kept: list[_Annotation], image: np.ndarray, sizes_hw: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns float32 points (k, 2) as fractions, in the order of the annotations, and the count of each (n,)."""
    blocks, lengths = [np.zeros((0, 2), np.float32)], np.zeros(len(kept), np.int64)
    for start in range(0, len(kept), _BLOCK):
        flat = array("d")
        for at, one in enumerate(kept[start : start + _BLOCK], start):
            before = len(flat)
            if len(one.segmentation) > 4 and memoryview(one.segmentation)[0] == ord("["):
                try:
                    for polygon in _POLYGONS.decode(one.segmentation):
                        if len(polygon) % 2:
                            raise ValueError(f"{len(polygon)} numbers")
                        if len(polygon) >= 6:
                            flat.extend(polygon)
                except (msgspec.DecodeError, ValueError) as error:
                    raise _wrong(path, one, f"segmentation: {error}", "lists of x1, y1, x2, y2, x3, y3 ...") from None
            lengths[at] = (len(flat) - before) // 2
        own = lengths[start : start + _BLOCK]
        size = np.where(sizes_hw.all(axis=1, keepdims=True), sizes_hw, 1)[np.repeat(image[start : start + _BLOCK], own)]
        blocks.append((np.frombuffer(flat, np.float64).reshape(-1, 2) / size[:, ::-1]).astype(np.float32))
    return np.concatenate(blocks), lengths


def _reordered(points: np.ndarray, lengths: np.ndarray, rank: np.ndarray) -> RowTable:
    """Returns the polygons in another order."""
    ordered = lengths[rank]
    starts = (np.cumsum(lengths) - lengths)[rank]
    steps = np.arange(len(points)) - np.repeat(np.cumsum(ordered) - ordered, ordered)
    return RowTable(points[np.repeat(starts, ordered) + steps], ordered)


def _ids(kept: Sequence[_Annotation]) -> tuple[np.ndarray, str]:
    """Returns the annotations' ids, or their places in the list if one has none or a text."""
    if all(type(one.id) is int for one in kept):
        try:
            return np.array([one.id for one in kept], np.int64), "annotation id"
        except OverflowError:
            pass
    return np.arange(len(kept), dtype=np.int64), "annotation number"
