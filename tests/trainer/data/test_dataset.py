from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.data.dataset import find_images, fingerprint, label_path_for, load_dataset_file
from trainer.errors import DataError


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_real_files_load(bccd_yaml):
    dataset = load_dataset_file(bccd_yaml)
    assert dataset.names == ("RBC", "WBC", "Platelets")
    assert [len(find_images(dataset, split)) for split in ("train", "val")] == [40, 20]
    assert all(label_path_for(path).is_file() for path in find_images(dataset, "train"))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("names: [a, b]", ("a", "b")),
        ("names: {1: b, 0: a}", ("a", "b")),
        ("names: {'1': b, '0': a}\nnc: 2", ("a", "b")),
        ("nc: 2", ("class0", "class1")),
        ("names: [1, no]", ("1", "False")),
    ],
)
def test_names_as_map_list_or_count(tmp_path, names, expected):
    assert load_dataset_file(write(tmp_path / "d.yaml", f"train: x\n{names}\n")).names == expected


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("train: x\nnames: {0: a, 2: b}", "no name for class 1"),
        ("train: x\nnames: {a: 0}", "not a number"),
        ("train: x\nnames: [a, b]\nnc: 3", "nc: 3 and 2 names"),
        ("train: x\nnc: 0", "not a count"),
        ("train: x", "no class names"),
        ("names: [a]", "names no images"),
        ("train: {a: b}\nnames: [a]", "not a place"),
        ("- a\n- b", "a list"),
        ("train: [", "not readable as YAML"),
        ("path: nowhere\ntrain: x\nnames: [a]", "nowhere"),
    ],
)
def test_mistakes_are_named(tmp_path, text, part):
    with pytest.raises(DataError, match=part):
        load_dataset_file(write(tmp_path / "d.yaml", text))


def test_missing_file_shows_its_neighbors(tmp_path):
    write(tmp_path / "bccd.yaml")
    with pytest.raises(DataError, match=r"bcd\.yaml does not exist(.|\n)*has bccd\.yaml"):
        load_dataset_file(tmp_path / "bcd.yaml")


def test_path_is_beside_the_file_then_in_the_working_directory(tmp_path, monkeypatch):
    yaml_path = write(tmp_path / "configs" / "d.yaml", "path: set\ntrain: images\nnames: [a]\n")
    work = tmp_path / "work"
    write(work / "set" / "images" / "1.jpg")
    monkeypatch.chdir(work)
    assert load_dataset_file(yaml_path).root == work / "set"
    write(tmp_path / "configs" / "set" / "images" / "1.jpg")
    assert load_dataset_file(yaml_path).root == tmp_path / "configs" / "set"


def test_folders_lists_and_nested_folders(tmp_path):
    root = tmp_path
    for name in ("a/images/2.JPG", "a/images/deep/1.png", "b/images/3.tiff", "b/images/notes.txt", "b/images/.4.jpg"):
        write(root / name)
    (root / "a" / "images" / "loop").symlink_to(root / "a")
    write(root / "lists" / "train.txt", "./5.jpg\n\na/images/2.JPG\na/images/2.JPG\n" + str(root / "b/images/3.tiff\n"))
    text = "train: [a/images, b/images, a]\nval: lists/train.txt\ntest: ../a/images\nnames: [x]\n"
    dataset = load_dataset_file(write(root / "d.yaml", text))

    def found(split):
        return [str(path.relative_to(root)) for path in find_images(dataset, split)]

    assert found("train") == ["a/images/2.JPG", "a/images/deep/1.png", "b/images/3.tiff"]
    assert found("val") == ["a/images/2.JPG", "a/images/2.JPG", "b/images/3.tiff", "lists/5.jpg"]
    assert found("test") == ["a/images/2.JPG", "a/images/deep/1.png"]


def test_what_was_looked_for_is_shown(tmp_path):
    dataset = load_dataset_file(write(tmp_path / "d.yaml", "train: gone\nval: empty\ntest: e.csv\nnames: [x]\n"))
    (tmp_path / "empty").mkdir()
    write(tmp_path / "e.csv")
    with pytest.raises(DataError, match=str(tmp_path / "gone")):
        find_images(dataset, "train")
    with pytest.raises(DataError, match=f"holds no images(.|\n)*{tmp_path / 'empty'}"):
        find_images(dataset, "val")
    with pytest.raises(DataError, match="neither a folder nor a list"):
        find_images(dataset, "test")
    dataset.splits.pop("test")
    with pytest.raises(DataError, match="no 'test' split"):
        find_images(dataset, "test")


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("/d/images/train/x.y.jpg", "/d/labels/train/x.y.txt"),
        ("/images/d/images/x.png", "/images/d/labels/x.txt"),
        ("/d/pictures/x.png", "/d/pictures/x.txt"),
        ("/d/images.png", "/d/images.txt"),
    ],
)
def test_label_paths(image, label):
    assert label_path_for(Path(image)) == Path(label)


def test_fingerprint_is_that_of_the_content_not_the_place(bccd_yaml, tmp_path):
    here = load_dataset_file(bccd_yaml)
    copy = tmp_path / "copy"
    shutil.copytree(here.root, copy)
    there = load_dataset_file(copy / bccd_yaml.name)
    assert fingerprint(there) == fingerprint(here)
    label = label_path_for(find_images(there, "val")[0])
    os.chmod(label, 0o644)
    label.write_text(label.read_text() + "0 .5 .5 .1 .1\n")
    assert fingerprint(there) != fingerprint(here)


def test_scanning_needs_no_torch():
    code = "import sys, trainer.data.scan.scan\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
