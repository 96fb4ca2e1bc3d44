"""Pascal VOC, CVAT and LabelMe: what is read, by which line a mistake is named, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.trainer.data.formats.conftest import write_image
from trainer.data.formats.load import load_dataset
from trainer.data.scan.scan import scan_split
from trainer.data.split_files import find_files
from trainer.errors import DataError

VOC = """<annotation>
  <filename>{stem}.jpg</filename>
  <size><width>60</width><height>40</height><depth>3</depth></size>
  <object>
    <name>dog</name><truncated>0</truncated><difficult>{difficult}</difficult>
    <bndbox><xmin>6</xmin><ymin>4</ymin><xmax>{right}</xmax><ymax>12</ymax></bndbox>
    <part><name>head</name><bndbox><xmin>7</xmin><ymin>5</ymin><xmax>9</xmax><ymax>8</ymax></bndbox></part>
  </object>
  <object><name>cat</name>
    <bndbox><xmin>0</xmin><ymin>0</ymin><xmax>30</xmax><ymax>20</ymax></bndbox>
  </object>
</annotation>
"""


def voc_set(root: Path, layout: str, right: str = "18", difficult: int = 1) -> Path:
    """Writes two training images and one for validation as a devkit has them, or as Roboflow does."""
    for seed, (split, stem) in enumerate((("train", "a"), ("train", "b"), ("valid", "c"))):
        is_devkit = layout == "devkit"
        write_image(root / ("JPEGImages" if is_devkit else split) / f"{stem}.jpg", seed)
        xml = root / ("Annotations" if is_devkit else split) / f"{stem}.xml"
        xml.parent.mkdir(parents=True, exist_ok=True)
        xml.write_text(VOC.format(stem=stem, right=right, difficult=difficult))
    if layout == "devkit":
        lists = root / "ImageSets" / "Main"
        lists.mkdir(parents=True)
        (lists / "train.txt").write_text("a\nb\n")
        (lists / "val.txt").write_text("c\n")
    return root


def scan(dataset, split, tmp_path):
    return scan_split(dataset, split, num_classes=dataset.num_classes, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("layout", ["devkit", "flat"])
def test_voc_is_read_in_both_layouts(tmp_path, layout):
    dataset = load_dataset(voc_set(tmp_path / "set", layout))
    assert (dataset.names, dataset.format) == (("cat", "dog"), "Pascal VOC")
    assert [Path(image).name for image in find_files(dataset, "val").images] == ["c.jpg"]
    images, report = scan(dataset, "train", tmp_path)
    assert (len(images), report.boxes) == (2, 4)
    np.testing.assert_allclose(images.boxes[0], [[1, 0.2, 0.2, 0.2, 0.2], [0, 0.25, 0.25, 0.5, 0.5]], atol=1e-6)


def test_the_folder_above_one_year_is_that_year(tmp_path):
    voc_set(tmp_path / "VOCdevkit" / "VOC2012", "devkit")
    assert load_dataset(tmp_path / "VOCdevkit").names == ("cat", "dog")
    voc_set(tmp_path / "VOCdevkit" / "VOC2007", "devkit")
    with pytest.raises(DataError, match=r"(?s)several sets.*VOC2007, VOC2012"):
        load_dataset(tmp_path / "VOCdevkit")


def test_difficult_objects_are_left_out_if_asked(tmp_path):
    root = voc_set(tmp_path / "set", "devkit")
    dataset = load_dataset(root, leave_out=("difficult",))
    assert dataset.annotations["train"].left_out == {"difficult": 2}
    assert dataset.names == ("cat",)
    assert load_dataset(root, leave_out=("truncated",)).annotations["train"].left_out == {}


@pytest.mark.parametrize(("right", "words"), [("wide", ":4: <object> cannot be used"), ("", "xmax")])
def test_a_number_that_is_none_is_named_by_its_line(tmp_path, right, words):
    with pytest.raises(DataError, match=words):
        load_dataset(voc_set(tmp_path / "set", "flat", right))


def test_a_box_far_outside_is_counted_by_its_line(tmp_path):
    dataset = load_dataset(voc_set(tmp_path / "set", "flat", "600"))
    with pytest.raises(DataError, match=r"a\.xml:4: .*above 1"):
        scan(dataset, "train", tmp_path)


ENTITY = (
    '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY e {value}>]><annotation><size/><filename>&e;</filename></annotation>'
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (ENTITY.format(value='"' + "x" * 99 + '"'), "EntitiesForbidden"),
        (ENTITY.format(value='SYSTEM "file:///etc/hostname"'), "EntitiesForbidden"),
        ("<annotation><size>\n<width>60", "a.xml:2 cannot be read as XML"),
        ("<annotation><size/>" + "<a>" * 200 + "</a>" * 200 + "</annotation>", "100 deep"),
    ],
)
def test_entities_depth_and_broken_xml_are_refused(tmp_path, text, words):
    root = voc_set(tmp_path / "set", "flat")
    (root / "train" / "a.xml").write_text(text)
    with pytest.raises(DataError, match=words):
        load_dataset(root)


def test_roboflows_voc_sample_is_read(samples):
    dataset = load_dataset(samples / "roboflow_dataset" / "voc")
    assert dataset.names == ("label_0", "label_1")
    np.testing.assert_allclose(dataset.annotations["train"].boxes[0], [[0, 0.35, 0.3, 0.3, 0.2]])


def test_cvats_samples_are_read(samples, tmp_path):
    task = load_dataset(samples / "cvat_dataset" / "for_images" / "export_task" / "train.xml")
    assert task.names == ("label1", "label2")
    table = task.annotations["train"]
    np.testing.assert_allclose(table.boxes[0], [[0, 0.25, 0.375, 0.5, 0.25]])
    assert table.left_out == {"<polyline>, which has no box": 1, "without a label": 1, "<points>, which has no box": 1}
    assert table.place(str(table.images[0]), int(table.ids[0])).endswith("train.xml:44")
    project = load_dataset(samples / "cvat_dataset" / "for_images" / "export_project")
    assert list(project.splits) == ["train", "val", "test"]
    assert all(path.is_file() for table in project.annotations.values() for path in table.images)


def test_cvats_shapes_become_boxes_and_a_wrong_one_has_a_line(tmp_path):
    write_image(tmp_path / "images" / "a.jpg")
    text = """<annotations><version>1.1</version>
<image id="0" name="a.jpg" width="60" height="40">
<ellipse label="x" cx="30" cy="20" rx="6" ry="4"/>
<mask label="x" left="6" top="4" width="12" height="8" rle="1"/>
<box label="x" xtl="20" ytl="10" xbr="40" ybr="30" rotation="90"/>
<polygon label="x" points="6,4;18,4;18,12"/>{more}
</image></annotations>"""
    (tmp_path / "annotations.xml").write_text(text.format(more=""))
    boxes = load_dataset(tmp_path / "annotations.xml").annotations["train"].boxes[0]
    wanted = [[30, 20, 12, 8], [12, 8, 12, 8], [30, 20, 20, 20], [12, 8, 12, 8]]
    np.testing.assert_allclose(boxes[:, 1:] * (60, 40, 60, 40), wanted, atol=1e-9)
    (tmp_path / "annotations.xml").write_text(text.format(more='\n<polygon label="x" points="6,4;18"/>'))
    with pytest.raises(DataError, match=r"annotations.xml:7: <polygon>"):
        load_dataset(tmp_path / "annotations.xml")


def labelme_set(root: Path, shapes: list[dict]) -> Path:
    for seed, split in enumerate(("train", "val")):
        write_image(root / split / "a.jpg", seed)
        content = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": "a.jpg", "imageData": None}
        (root / split / "a.json").write_text(json.dumps({**content, "imageHeight": 40, "imageWidth": 60}))
    return root


def test_labelmes_json_is_read(tmp_path):
    shapes = [
        {"label": "dog", "points": [[18, 12], [6, 4]], "shape_type": "rectangle"},
        {"label": "cat", "points": [[6, 4], [18, 4], [18, 12]], "shape_type": "polygon"},
        {"label": "cat", "points": [[30, 20], [30, 26]], "shape_type": "circle"},
        {"label": "cat", "points": [[30, 20]], "shape_type": "point"},
    ]
    dataset = load_dataset(labelme_set(tmp_path / "set", shapes))
    table = dataset.annotations["train"]
    assert (dataset.names, table.left_out) == (("cat", "dog"), {"point, which has no box": 1})
    wanted = [[12, 8, 12, 8], [12, 8, 12, 8], [30, 20, 12, 12]]
    np.testing.assert_allclose(table.boxes[0][:, 1:] * (60, 40, 60, 40), wanted, atol=1e-9)
    assert list(table.points.counts) == [0, 3, 0]
    with pytest.raises(DataError, match=r"a\.json: shape number 1 \(dog\)"):
        load_dataset(labelme_set(tmp_path / "set", [{"label": "dog", "points": [[1, 2]], "shape_type": "rectangle"}]))


def test_labelmes_web_sample_is_read(samples, tmp_path):
    dataset = load_dataset(samples / "labelme_dataset")
    assert dataset.format == "LabelMe XML"
    table = dataset.annotations["train"]
    (row,) = [row for row in table.rows(str(table.images[0]), (77, 102)) if dataset.names[int(row[1][0])] == "window"]
    np.testing.assert_allclose(np.array(row[1][1:]) * (102, 77, 102, 77), [44, 35.5, 2, 3])
