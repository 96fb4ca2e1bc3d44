"""Which format a file or folder is taken for, and what is said where none or several fit."""

from __future__ import annotations

import shutil

import pytest

from tests.trainer.data.formats.conftest import write_image
from trainer.data.formats.load import load_dataset
from trainer.data.scan.scan import scan_split
from trainer.data.split_files import find_files
from trainer.errors import DataError


def yolo_folder(root, pattern="images/{}"):
    for seed, split in enumerate(("train", "val")):
        images = root / pattern.format(split)
        write_image(images / "a.jpg", seed)
        labels = root / pattern.replace("images", "labels").format(split)
        labels.mkdir(parents=True, exist_ok=True)
        (labels / "a.txt").write_text("1 0.5 0.5 0.2 0.2\n")
    return root


@pytest.mark.parametrize("pattern", ["images/{}", "{}/images", "{}"])
def test_a_folder_without_a_yaml_is_read_by_its_layout(tmp_path, pattern):
    root = yolo_folder(tmp_path / "set", pattern)
    dataset = load_dataset(root)
    assert dataset.names == ("class0", "class1")
    images, report = scan_split(dataset, "val", num_classes=2, cache_dir=tmp_path / "cache")
    assert (len(images), report.boxes) == (1, 1)
    (root / "classes.txt").write_text("cat\ndog\n")
    assert load_dataset(root).names == ("cat", "dog")


def test_a_folder_with_one_yaml_is_that_yaml(tmp_path):
    root = yolo_folder(tmp_path / "set")
    text = "train: images/train\nval: images/val\nnames: [x, y]\n"
    (root / "data.yaml").write_text(text)
    assert load_dataset(root).names == ("x", "y")
    (root / "other.yaml").write_text(text)
    with pytest.raises(DataError, match="several YAML files"):
        load_dataset(root)


def test_two_formats_in_one_folder_are_refused(tmp_path, coco_set):
    root = yolo_folder(tmp_path / "set")
    shutil.copytree(coco_set().parent, root / "annotations")
    with pytest.raises(DataError, match=r"(?s)several formats.*COCO JSON.*YOLO"):
        load_dataset(root)


def test_nothing_that_is_known_is_said_with_what_is_there(tmp_path):
    (tmp_path / "set").mkdir()
    with pytest.raises(DataError, match="an empty folder"):
        load_dataset(tmp_path / "set")
    (tmp_path / "set" / "notes.docx").touch()
    with pytest.raises(DataError, match=r"(?s)notes.docx.*COCO JSON"):
        load_dataset(tmp_path / "set")


def test_a_validation_folder_given_apart_takes_the_place(tmp_path):
    root = yolo_folder(tmp_path / "set")
    other = yolo_folder(tmp_path / "other")
    dataset = load_dataset(root, val=other)
    assert find_files(dataset, "val").images == [str(other / "images" / "val" / "a.jpg")]


def test_cvats_yolo_export_is_read_and_a_list_of_a_part_refused(samples, tmp_path):
    root = tmp_path / "strict"
    shutil.copytree(samples / "yolo_dataset" / "strict", root)
    dataset = load_dataset(root)
    assert dataset.names == tuple(f"label_{index}" for index in range(10))
    assert find_files(dataset, "train").images == [str(root / "obj_train_data" / "1.jpg")]
    shutil.copyfile(root / "obj_train_data" / "1.jpg", root / "obj_train_data" / "2.jpg")
    with pytest.raises(DataError, match=r"(?s)differ.*1 images in the list, 2 in its folders.*2\.jpg"):
        load_dataset(root)


def test_samples_in_yolo_layouts_are_read(samples):
    assert len(load_dataset(samples / "yolo_dataset" / "labels").names) == 10
