"""Reads CVAT for images 1.1: one XML file for all images of a task or a project."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

from trainer.data.annotations.builder import ImageRows, bounds, build, names_in
from trainer.data.formats import format as formats
from trainer.data.formats.format import Annotated, AnnotationFormat, ReadOptions, Sources
from trainer.data.formats.xml_tree import Element, number, read_xml, wrong_row
from trainer.errors import DataError
from trainer.reading.text_file import printable

Ltrb = tuple[float, float, float, float]
Points = list[tuple[float, float]]
_NOT_SHAPES = ("tag", "attribute")
_NO_BOX = ("polyline", "points", "cuboid", "skeleton")


def find(path: Path) -> Sources | None:
    """Finds an export's XML file, given itself or as the only one in a folder."""
    if not os.path.isdir(path):
        return Sources(path.parent, {"train": (path,)}) if path.suffix.lower() == ".xml" and is_cvat(path) else None
    found = tuple(file for file in formats.files_in(path, [".xml"]) if is_cvat(file))
    return Sources(path, {"train": found}) if found else None


def is_cvat(path: Path) -> bool:
    """Returns whether a file starts as CVAT's XML does."""
    head = formats.head_of(path)
    return b"<annotations>" in head and (b"<meta>" in head or b"<image " in head or b"<version>" in head)


def read(sources: Sources, options: ReadOptions) -> Annotated:
    """Reads all files; an image's split is its subset, else what the file's name says. Raises DataError."""
    splits: dict[str, list[ImageRows]] = {}
    left_out: dict[str, dict[str, int]] = {}
    names: dict[str, None] = {}
    for path in sources.files["train"]:
        root = read_xml(path)
        names |= dict.fromkeys(_label_names(root))
        for image in root.all("image"):
            subset = image.attributes.get("subset", "")
            split = formats.split_of(subset) or formats.split_of(path.stem) or "train"
            if split == "val" and options.has_val:
                continue
            rows = _read_image(path, image, subset, left_out.setdefault(split, {}))
            splits.setdefault(split, []).append(rows)
    if not splits:
        raise DataError(
            f"{printable(sources.files['train'][0])} names no images",
            seen="no <image>",
            expected="an export for images; one for video has <track> in its place",
            next_command="export the task as 'CVAT for images 1.1'",
        )
    ordered = (*names, *(name for name in names_in(splits) if name not in names))
    tables = {
        split: build(splits[split], ordered, "line", left_out[split])
        for split in formats.SPLIT_WORDS
        if split in splits
    }
    return ordered, tables


def _label_names(root: Element) -> list[str]:
    """Returns the names of the task's or project's labels, in its order."""
    meta = root.first("meta")
    if meta is None:
        return []
    groups = [labels for holder in meta.children for labels in holder.all("labels")]
    return [name for labels in groups for label in labels.all("label") if (name := label.text_of("name"))]


def _read_image(path: Path, image: Element, subset: str, left_out: dict[str, int]) -> ImageRows:
    name = image.attributes.get("name", "")
    if not name:
        raise wrong_row(path, image, "no name", "the name of the image")
    size = tuple(int(_number(path, image, side)) for side in ("height", "width"))
    rows = ImageRows(_image_path(path, name, subset), (size[0], size[1]), os.path.abspath(path))
    for shape in image.children:
        label = shape.attributes.get("label", "")
        reason = f"<{shape.tag}>, which has no box" if shape.tag in _NO_BOX else "" if label else "without a label"
        if shape.tag in _NOT_SHAPES:
            continue
        if reason:
            left_out[reason] = left_out.get(reason, 0) + 1
            continue
        rows.add(label, shape.line, *_box(path, shape))
    return rows


def _image_path(path: Path, name: str, subset: str) -> str:
    below = [os.path.join("images", subset, name), os.path.join("images", name), name, os.path.join(subset, name)]
    tried = [os.path.abspath(path.parent / one) for one in below]
    return next((one for one in tried if os.path.isfile(one)), tried[1])


def _number(path: Path, element: Element, what: str) -> float:
    return number(path, element, element.attributes.get(what), what)


def _box(path: Path, shape: Element) -> tuple[Ltrb, Points]:
    """Returns the box around a shape, and its points if it is a polygon."""
    values: Mapping[str, str] = shape.attributes

    def value(what: str) -> float:
        return _number(path, shape, what)

    if shape.tag == "polygon":
        points = _points(path, shape, values.get("points", ""))
        return bounds(points), points
    if shape.tag == "box":
        box = value("xtl"), value("ytl"), value("xbr"), value("ybr")
    elif shape.tag == "ellipse":
        x, y, across, down = value("cx"), value("cy"), value("rx"), value("ry")
        box = x - across, y - down, x + across, y + down
    elif shape.tag == "mask":
        left, top = value("left"), value("top")
        box = left, top, left + value("width"), top + value("height")
    else:
        raise wrong_row(path, shape, f"<{shape.tag}>", "box, polygon, ellipse, mask, or what is left out by its name")
    angle = math.radians(value("rotation")) if values.get("rotation") else 0.0
    return (_turned(box, angle) if angle else box), []


def _turned(box: Ltrb, angle: float) -> Ltrb:
    """Returns the box around one that is turned about its middle."""
    x, y, across, down = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2, (box[2] - box[0]) / 2, (box[3] - box[1]) / 2
    cosine, sine = abs(math.cos(angle)), abs(math.sin(angle))
    wide, high = across * cosine + down * sine, across * sine + down * cosine
    return x - wide, y - high, x + wide, y + high


def _points(path: Path, shape: Element, text: str) -> Points:
    try:
        points = [(float(x), float(y)) for x, y in (pair.split(",") for pair in text.split(";"))]
    except ValueError:
        raise wrong_row(path, shape, f"points {text[:60]!r}", "x,y;x,y;x,y ...") from None
    return points


CVAT = AnnotationFormat("CVAT for images 1.1", find, read)
