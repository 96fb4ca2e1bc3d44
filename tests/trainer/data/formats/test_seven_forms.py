"""The blood cells in seven forms: the same boxes, to the bit, and the same first losses."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from pathlib import Path
from xml.sax.saxutils import quoteattr

import pytest

from trainer.data.dataset import DatasetFile, label_text_for, load_dataset_file
from trainer.data.formats.load import load_dataset
from trainer.data.scan.scan import scan_split
from trainer.data.split_files import find_files

FORMS = ("coco", "voc", "labelme", "cvat", "roboflow", "zip")
SPLITS = {"train": 24, "val": 8}
SHAPE_HW = (480, 640)


class Rows:
    """Every image of a data set with its rows in pixels: (name, left, top, right, bottom)."""

    def __init__(self, dataset: DatasetFile) -> None:
        self.names = dataset.names
        self.of: dict[str, dict[str, list[tuple]]] = {}
        for split in dataset.splits:
            self.of[split] = {
                image: self._rows(dataset, Path(label_text_for(image))) for image in find_files(dataset, split).images
            }

    def _rows(self, dataset, label):
        rows = []
        for line in label.read_text().splitlines():
            index, x, y, w, h = (float(word) for word in line.split())
            height, width = SHAPE_HW
            box = (x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height
            rows.append((dataset.names[int(index)], *box))
        return rows


def write_coco(rows, root, name, folder):
    for split, images in rows.of.items():
        content = {"images": [], "annotations": [], "categories": []}
        content["categories"] = [{"id": 10 + at, "name": one} for at, one in enumerate(rows.names)]
        for at, (image, boxes) in enumerate(images.items()):
            target = root / folder.format(split) / Path(image).name
            linked(image, target)
            content["images"].append({"id": at, "file_name": target.name, "width": 640, "height": 480})
            for word, left, top, right, bottom in boxes:
                box = {"bbox": [left, top, right - left, bottom - top], "category_id": 10 + rows.names.index(word)}
                content["annotations"].append({"id": len(content["annotations"]), "image_id": at, **box})
        path = root / name.format(split)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))


def write_voc(rows, root):
    for split, images in rows.of.items():
        for image, boxes in images.items():
            target = root / split / Path(image).name
            linked(image, target)
            objects = "".join(
                f"<object><name>{word}</name><bndbox><xmin>{a!r}</xmin><ymin>{b!r}</ymin><xmax>{c!r}</xmax>"
                f"<ymax>{d!r}</ymax></bndbox></object>\n"
                for word, a, b, c, d in boxes
            )
            size = "<size><width>640</width><height>480</height></size>"
            target.with_suffix(".xml").write_text(f"<annotation>{size}\n{objects}</annotation>")


def write_labelme(rows, root):
    for split, images in rows.of.items():
        for image, boxes in images.items():
            target = root / split / Path(image).name
            linked(image, target)
            shapes = [{"label": w, "points": [[a, b], [c, d]], "shape_type": "rectangle"} for w, a, b, c, d in boxes]
            content = {"version": "5.4.1", "shapes": shapes, "imagePath": target.name}
            target.with_suffix(".json").write_text(json.dumps({**content, "imageHeight": 480, "imageWidth": 640}))


def write_cvat(rows, root):
    text = "<annotations><version>1.1</version><meta><task><labels>"
    text += "".join(f"<label><name>{name}</name></label>" for name in rows.names) + "</labels></task></meta>\n"
    for split, images in rows.of.items():
        for image, boxes in images.items():
            linked(image, root / "images" / split / Path(image).name)
            text += f'<image name={quoteattr(Path(image).name)} subset="{split}" width="640" height="480">\n'
            for word, a, b, c, d in boxes:
                text += f'<box label="{word}" xtl="{a!r}" ytl="{b!r}" xbr="{c!r}" ybr="{d!r}"/>\n'
            text += "</image>\n"
    (root / "annotations.xml").write_text(text + "</annotations>")


def linked(image, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        shutil.copyfile(image, target)


def write(rows: Rows, form: str, root: Path) -> Path:
    """Writes the set in a form; returns what to give as --data."""
    root.mkdir()
    if form in ("coco", "zip"):
        write_coco(rows, root, "annotations/instances_{}.json", "images/{}")
    elif form == "roboflow":
        write_coco(rows, root, "{}/_annotations.coco.json", "{}")
    else:
        {"voc": write_voc, "labelme": write_labelme, "cvat": write_cvat}[form](rows, root)
    if form == "coco":
        return root / "annotations" / "instances_train.json"
    if form == "zip":
        with zipfile.ZipFile(root.with_suffix(".zip"), "w") as file:
            for one in sorted(root.rglob("*")):
                file.write(one, one.relative_to(root.parent))
        shutil.rmtree(root)
        return root.with_suffix(".zip")
    return root


@pytest.fixture
def blood(bccd_yaml: Path, tmp_path: Path) -> Path:
    """The first images of each split of the blood cells, as YOLO labels with a YAML file."""
    whole = load_dataset_file(bccd_yaml)
    root = tmp_path / "blood"
    for split, count in SPLITS.items():
        for image in find_files(whole, split).images[:count]:
            linked(image, root / "images" / split / Path(image).name)
            linked(label_text_for(image), root / "labels" / split / f"{Path(image).stem}.txt")
    # VOC and LabelMe have no order of names but the alphabet's.
    assert sorted(whole.names) == ["Platelets", "RBC", "WBC"]
    swap = {str(at): str(sorted(whole.names).index(name)) for at, name in enumerate(whole.names)}
    for label in root.glob("labels/*/*.txt"):
        lines = [line.split(None, 1) for line in label.read_text().splitlines()]
        label.write_text("".join(f"{swap[first]} {rest}\n" for first, rest in lines))
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [Platelets, RBC, WBC]\n")
    return root / "data.yaml"


def hash_of(dataset: DatasetFile, cache: Path) -> str:
    digest = hashlib.sha256(" ".join(dataset.names).encode())
    for split in SPLITS:
        images, report = scan_split(dataset, split, num_classes=3, cache_dir=cache)
        assert (len(images), report.skipped) == (SPLITS[split], 0)
        digest.update(" ".join(path.name for path in images.paths).encode())
        digest.update(images.boxes.rows.tobytes() + images.boxes.counts.tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("form", FORMS)
def test_boxes_are_the_same_to_the_bit(blood, form, tmp_path):
    rows = Rows(load_dataset_file(blood))
    assert len(next(iter(rows.of["train"].values()))) > 3
    data = write(rows, form, tmp_path / form)
    cache = tmp_path / "cache"
    assert hash_of(load_dataset(data), cache) == hash_of(load_dataset(blood), cache)


def test_nothing_is_written_into_the_source(blood, tmp_path):
    data = write(Rows(load_dataset_file(blood)), "voc", tmp_path / "voc")
    before = {path: os.stat(path).st_mtime_ns for path in (tmp_path / "voc").rglob("*")}
    hash_of(load_dataset(data), tmp_path / "cache")
    assert {path: os.stat(path).st_mtime_ns for path in (tmp_path / "voc").rglob("*")} == before
