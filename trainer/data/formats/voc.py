"""Reads Pascal VOC: one XML file an image, in the devkit's folders or beside the images as Roboflow and labelImg do."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from trainer.data.annotations.builder import ImageRows
from trainer.data.dataset import IMAGE_SUFFIXES
from trainer.data.formats import format as formats
from trainer.data.formats.format import Annotated, AnnotationFormat, ReadOptions, Sources
from trainer.data.formats.xml_tree import Element, number, read_xml, wrong_row
from trainer.errors import DataError
from trainer.reading.text_file import TextFileError, printable, read_text

_IMAGE_FOLDERS = ("JPEGImages", "images", "Images", "")
_LIMIT_BYTES = 2**26
_LOOKED_AT = 5
"""Files of a folder, of which one may be broken."""


def find(path: Path) -> Sources | None:
    """Finds a folder with VOC's XML files: a devkit, one of its years, or XML beside or near the images."""
    if not os.path.isdir(path):
        return None
    years = [path / name for name in formats.names_in(path) if os.path.isdir(path / name / "Annotations")]
    if len(years) > 1:
        raise DataError(
            f"{printable(path)} holds several sets in VOC's layout",
            seen=", ".join(year.name for year in years),
            expected="one of them",
            next_command=f"name the one to use: --data {years[-1]}",
        )
    root = years[0] if years else path
    if os.path.isdir(root / "ImageSets" / "Main"):
        return _devkit(root)
    places = formats.folders_of_splits(root)
    for folder in ("Annotations", "annotations"):
        places = places or formats.folders_of_splits(root / folder)
    places = {split: found for split, folder in places.items() if (found := _xml_place(folder))}
    if not places:
        found = next((one for name in ("Annotations", "annotations", "") if (one := _xml_place(root / name))), None)
        places = {"train": found} if found else {}
    files = {split: tuple(formats.files_in(folder, [".xml"])) for split, folder in places.items()}
    return Sources(root, files) if files else None


def _xml_place(folder: Path) -> Path | None:
    """Returns the folder if VOC's XML lies right in it, or one below called Annotations; looks into a few files."""
    for place in (folder, folder / "Annotations", folder / "annotations"):
        files = formats.files_in(place, [".xml"])
        if any(map(is_voc, files[:_LOOKED_AT])):
            return place
    return None


def is_voc(path: Path) -> bool:
    """Returns whether a file starts as VOC's XML does, and not as LabelMe's."""
    head = formats.head_of(path)
    return b"<annotation>" in head and (b"<size>" in head or b"<bndbox>" in head) and b"<imagesize>" not in head


def _devkit(root: Path) -> Sources | None:
    files: dict[str, tuple[Path, ...]] = {}
    for split in formats.SPLIT_WORDS:
        listed = root / "ImageSets" / "Main" / f"{split}.txt"
        if not os.path.isfile(listed):
            continue
        try:
            lines = read_text(listed, limit_bytes=_LIMIT_BYTES).splitlines()
        except TextFileError as error:
            raise error.as_error(DataError, f"{printable(listed)} is no list of images") from None
        paths = [root / "Annotations" / f"{line.split()[0]}.xml" for line in lines if line.strip()]
        there = tuple(path for path in paths if os.path.isfile(path))
        if split != "test" and len(there) < len(paths):
            missing = next(path for path in paths if not os.path.isfile(path))
            raise DataError(
                f"{printable(listed)} names images without annotations",
                seen=f"{len(paths) - len(there)} of {len(paths)}; the first is {printable(missing)}",
                expected="an XML file in Annotations for each line",
                next_command="take these lines out, or add their files",
            )
        if there:
            files[split] = there
    return Sources(root, files) if files else None


def read(sources: Sources, options: ReadOptions) -> Annotated:
    """Reads every split. Raises DataError, with file and line, for what cannot be used."""
    is_devkit = os.path.isdir(sources.root / "ImageSets" / "Main")

    def read_files(files: tuple[Path, ...], left_out: dict[str, int]) -> list[ImageRows]:
        images = _Images(files)
        rows = [_read_file(path, images, options.leave_out, left_out) for path in files]
        return rows if is_devkit else rows + images.without(rows)

    return formats.read_splits(sources, options, "line", read_files)


class _Images:
    """The images that some XML files are about, by the files' stems."""

    def __init__(self, files: Iterable[Path]) -> None:
        folders = {path.parent for path in files}
        near = [place for folder in folders for place in _near(folder)]
        self._by_stem = [
            {os.path.splitext(name)[0]: os.path.join(folder, name) for name in _image_names(folder)}
            for folder in map(os.path.abspath, dict.fromkeys(near))
        ]

    def of(self, xml: Path, named: str) -> str:
        """Returns the image of an XML file, by the file's name, else by the name that it says."""
        for stem in (xml.stem, os.path.splitext(os.path.basename(named.replace("\\", "/")))[0]):
            for by_stem in self._by_stem:
                if stem in by_stem:
                    return by_stem[stem]
        return os.path.abspath(xml.parent / (os.path.basename(named.replace("\\", "/")) or f"{xml.stem}.jpg"))

    def without(self, rows: Iterable[ImageRows]) -> list[ImageRows]:
        """Returns the images of which no file says anything, in the folder that has those with a file."""
        known = {image.path for image in rows}
        held = next((by_stem for by_stem in self._by_stem if known & set(by_stem.values())), {})
        return [ImageRows(path) for path in held.values() if path not in known]


def _near(folder: Path) -> list[Path]:
    """Returns where images of a folder of XML files lie: there, or in a folder beside it, of the same split if any."""
    split = folder.name if formats.split_of(folder.name) else ""
    above = folder.parent.parent if split else folder.parent
    return [folder, *(above / name / split for name in _IMAGE_FOLDERS[:-1])]


def _image_names(folder: str) -> list[str]:
    return [name for name in formats.names_in(Path(folder)) if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES]


def _read_file(path: Path, images: _Images, leave_out: Iterable[str], counts: dict[str, int]) -> ImageRows:
    root = read_xml(path)
    size = root.first("size")
    shape = (0, 0)
    if size is not None and size.text_of("width") and size.text_of("height"):
        shape = tuple(int(number(path, size, size.text_of(side), side)) for side in ("height", "width"))  # type: ignore[assignment]
    rows = ImageRows(images.of(path, root.text_of("filename")), shape, os.path.abspath(path))
    for one in root.all("object"):
        mark = next((mark for mark in leave_out if one.text_of(mark) not in ("", "0")), None)
        if mark is not None:
            counts[mark] = counts.get(mark, 0) + 1
            continue
        rows.add(_name(path, one), one.line, _box(path, one))
    return rows


def _name(path: Path, one: Element) -> str:
    name = one.text_of("name")
    if not name:
        raise wrong_row(path, one, "no name", "<name> with the class")
    return name


def _box(path: Path, one: Element) -> tuple[float, float, float, float]:
    box = one.first("bndbox")
    if box is None:
        raise wrong_row(path, one, "no bndbox", "<bndbox> with xmin, ymin, xmax, ymax")
    left, top, right, bottom = (number(path, one, box.text_of(side), side) for side in ("xmin", "ymin", "xmax", "ymax"))
    return left, top, right, bottom


VOC = AnnotationFormat("Pascal VOC", find, read)
