"""Reads LabelMe: the desktop program's JSON beside each image, and the web tool's XML in Annotations and Images."""

from __future__ import annotations

import math
import os
from pathlib import Path

import msgspec

from trainer.data.annotations.builder import ImageRows, bounds
from trainer.data.dataset import IMAGE_SUFFIXES
from trainer.data.formats import format as formats
from trainer.data.formats.format import Annotated, AnnotationFormat, ReadOptions, Sources
from trainer.data.formats.xml_tree import Element, number, read_xml, wrong_row
from trainer.errors import DataError
from trainer.reading.text_file import printable

Ltrb = tuple[float, float, float, float]
_LOOKED_AT = 5
"""Files of a folder, of which one may be broken."""
_NO_BOX = ("line", "linestrip", "point", "points")


class _Shape(msgspec.Struct, gc=False):
    label: str
    points: list[tuple[float, float]]
    shape_type: str | None = "polygon"


class _File(msgspec.Struct, gc=False):
    shapes: list[_Shape]
    imagePath: str = ""
    imageHeight: int | None = None
    imageWidth: int | None = None


_DECODER = msgspec.json.Decoder(_File)


def find_json(path: Path) -> Sources | None:
    """Finds a folder with LabelMe's JSON files, or with folders of them a split; looks into a few."""
    if not os.path.isdir(path):
        return None
    places = formats.folders_of_splits(path) or {"train": path}
    files = {split: tuple(formats.files_in(folder, [".json"])) for split, folder in places.items()}
    files = {split: found for split, found in files.items() if any(map(_is_labelme, found[:_LOOKED_AT]))}
    return Sources(path, files) if files else None


def _is_labelme(path: Path) -> bool:
    head = formats.head_of(path).lstrip()
    return head.startswith(b"{") and (b'"shapes"' in head or (b'"flags"' in head and b'"version"' in head))


def read_json(sources: Sources, options: ReadOptions) -> Annotated:
    """Reads every split; images without a file beside them are backgrounds. Raises DataError."""
    return formats.read_splits(sources, options, "shape number", _read_json_files)


def _read_json_files(files: tuple[Path, ...], left_out: dict[str, int]) -> list[ImageRows]:
    rows = [_read_json_file(path, left_out) for path in files]
    known = {image.path for image in rows}
    for folder in sorted({os.path.abspath(path.parent) for path in files}):
        beside = (os.path.join(folder, name) for name in formats.names_in(Path(folder)))
        images = (one for one in beside if os.path.splitext(one)[1].lower() in IMAGE_SUFFIXES)
        rows += [ImageRows(one) for one in images if one not in known]
    return rows


def _read_json_file(path: Path, left_out: dict[str, int]) -> ImageRows:
    try:
        content = _DECODER.decode(path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    except OSError as error:
        raise formats.unreadable(path, error) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(
            f"{printable(path)} cannot be read as LabelMe's JSON",
            seen=str(error),
            expected="an object with shapes and imagePath",
            next_command="save the file again in LabelMe",
        ) from None
    shape_hw = (content.imageHeight or 0, content.imageWidth or 0)
    rows = ImageRows(_image_of(path, content.imagePath), shape_hw, os.path.abspath(path))
    for at, shape in enumerate(content.shapes, start=1):
        kind = shape.shape_type or "polygon"
        if kind in _NO_BOX:
            reason = f"{kind}, which has no box"
            left_out[reason] = left_out.get(reason, 0) + 1
            continue
        least = 3 if kind == "polygon" else 2
        if len(shape.points) < least:
            raise DataError(
                f"{printable(path)}: shape number {at} ({shape.label}) cannot be used",
                seen=f"a {kind} with {len(shape.points)} points",
                expected=f"at least {least}",
                next_command="correct the shape in LabelMe",
            )
        is_polygon = kind == "polygon"
        rows.add(shape.label, at, _box(kind, shape.points), shape.points if is_polygon else ())
    return rows


def _image_of(path: Path, named: str) -> str:
    """Returns the image that a file names, else the one beside it with the file's name."""
    by_name = os.path.abspath(path.parent / named.replace("\\", "/")) if named else ""
    if by_name and os.path.isfile(by_name):
        return by_name
    beside = (f"{os.path.splitext(os.path.abspath(path))[0]}{suffix}" for suffix in sorted(IMAGE_SUFFIXES))
    return next((one for one in beside if os.path.isfile(one)), by_name or f"{os.path.abspath(path)[:-5]}.jpg")


def _box(kind: str, points: list[tuple[float, float]]) -> Ltrb:
    """Returns the box around a shape; a circle is its middle and a point on it."""
    if kind == "circle":
        (x, y), edge = points[0], points[1]
        radius = math.dist((x, y), edge)
        return x - radius, y - radius, x + radius, y + radius
    return bounds(points)


def find_xml(path: Path) -> Sources | None:
    """Finds the web tool's folders: Annotations with XML files in one folder a collection, and Images beside it."""
    folder = path / "Annotations"
    if not os.path.isdir(folder) or not os.path.isdir(path / "Images"):
        return None
    places = [folder, *(folder / name for name in formats.names_in(folder))]
    files: dict[str, list[Path]] = {}
    for place in places:
        found = formats.files_in(place, [".xml"])
        if any(map(_is_web_xml, found[:_LOOKED_AT])):
            files.setdefault(formats.split_of(place.name) or "train", []).extend(found)
    return (
        Sources(path, {split: tuple(files[split]) for split in formats.SPLIT_WORDS if split in files})
        if files
        else None
    )


def _is_web_xml(path: Path) -> bool:
    head = formats.head_of(path)
    return b"<annotation>" in head and b"<filename>" in head and (b"<imagesize>" in head or b"<sourceImage>" in head)


def read_xml_files(sources: Sources, options: ReadOptions) -> Annotated:
    """Reads every collection; what was deleted in the tool is left out. Raises DataError, with file and line."""

    def read(files: tuple[Path, ...], left_out: dict[str, int]) -> list[ImageRows]:
        return [_read_xml_file(sources.root, path, left_out) for path in files]

    return formats.read_splits(sources, options, "line", read)


def _read_xml_file(root: Path, path: Path, left_out: dict[str, int]) -> ImageRows:
    tree = read_xml(path)
    size = tree.first("imagesize")
    shape_hw = (0, 0)
    if size is not None:
        rows_text, columns_text = size.text_of("nrows"), size.text_of("ncols")
        shape_hw = int(number(path, size, rows_text, "nrows")), int(number(path, size, columns_text, "ncols"))
    image = root / "Images" / tree.text_of("folder") / tree.text_of("filename")
    rows = ImageRows(os.path.abspath(image), shape_hw, os.path.abspath(path))
    for one in tree.all("object"):
        if one.text_of("deleted") == "1":
            left_out["deleted"] = left_out.get("deleted", 0) + 1
            continue
        points = _xml_points(path, one)
        if len(points) < 2:
            raise wrong_row(path, one, f"{len(points)} points", "a polygon, or a mask with its box")
        rows.add(one.text_of("name") or "unnamed", one.line, bounds(points), points if len(points) > 2 else ())
    return rows


def _xml_points(path: Path, one: Element) -> list[tuple[float, float]]:
    """Returns the points of an object's polygon, or two corners of its mask's box."""
    polygon, mask = one.first("polygon"), one.first("segm")
    if polygon is not None:
        return [tuple(number(path, pt, pt.text_of(axis), axis) for axis in "xy") for pt in polygon.all("pt")]  # type: ignore[misc]
    box = mask.first("box") if mask is not None else None
    if box is None:
        return []
    left, top, right, bottom = (number(path, box, box.text_of(side), side) for side in ("xmin", "ymin", "xmax", "ymax"))
    return [(left, top), (right, bottom)]


LABELME_JSON = AnnotationFormat("LabelMe JSON", find_json, read_json)
LABELME_XML = AnnotationFormat("LabelMe XML", find_xml, read_xml_files)
