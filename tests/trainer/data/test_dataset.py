from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.dataset import label_path_for, label_text_for, label_texts_for, load_dataset_file
from trainer.data.split_files import find_files, find_images, fingerprint
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
        ("names: [1, no]", ("1", "no")),
        ("names: [1.0, 012, null, ~]", ("1.0", "012", "null", "~")),
        ("names: {0: yes, 1: 2024-01-01}", ("yes", "2024-01-01")),
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
        ("path: a\ntrain: x\nnames: [a]\ntrain: y", "line 4: 'train' stands in line 2 and again in line 4"),
        ("train: x\nnames: [a, '']", "class 1 in .* has no name"),
        ("train: x\nnames: [a, [b]]", "class 1 in .* has no name"),
        ("train: x\nnc: 1000000000", "not a count"),
        ("train: x\nnames: [a]\nkpt_shape: 17", "kpt_shape"),
        ("train: x\nnames: [a]\nkpt_shape: [17, 4]", "kpt_shape"),
        ("train: []\nnames: [a]\nval: [yes]", "not a place"),
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


def test_a_coco_file_is_named_at_once(tmp_path):
    with (tmp_path / "instances.json").open("wb") as file:
        file.write(b'{"info": {}, "licenses": [], "images": [{"id": 1}')
        file.truncate(450_000_000)
    with pytest.raises(DataError, match=r"450 MB of JSON, as COCO's(.|\n)*docs/data\.md"):
        load_dataset_file(tmp_path / "instances.json")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_files_as_editors_and_shells_write_them(tmp_path, encoding):
    write(tmp_path / "images" / "a.jpg")
    (tmp_path / "train.txt").write_bytes("./images/a.jpg\r\n".encode(encoding))
    (tmp_path / "d.yaml").write_bytes("train: train.txt\r\nnames: [红, é]\r\n".encode(encoding))
    dataset = load_dataset_file(tmp_path / "d.yaml")
    assert dataset.names == ("红", "é")
    assert find_images(dataset, "train") == [tmp_path / "images" / "a.jpg"]


def listed(tmp_path, text):
    """What the list ``text`` names, relative to its data set, and what was found beside."""
    write(tmp_path / "d.yaml", "train: lists/train.txt\nnames: [x]\n")
    (tmp_path / "lists").mkdir(exist_ok=True)
    (tmp_path / "lists" / "train.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    files = find_files(load_dataset_file(tmp_path / "d.yaml"), "train")
    return [os.path.relpath(path, tmp_path) for path in files.images], files


def test_each_folder_of_a_list_has_its_own_base(tmp_path, monkeypatch):
    for name in ("a/1.jpg", "lists/b/2.jpg", "elsewhere/c/3.jpg"):
        write(tmp_path / name)
    monkeypatch.chdir(tmp_path / "elsewhere")
    images, _ = listed(tmp_path, "gone/0.jpg\na/1.jpg\nb/2.jpg\nc/3.jpg\n")
    assert images == ["a/1.jpg", "elsewhere/c/3.jpg", "gone/0.jpg", "lists/b/2.jpg"]


def test_comments_blank_lines_and_backslashes_of_a_list(tmp_path):
    for name in ("a/1.jpg", "a/#2.jpg", "lists/b/3.jpg"):
        write(tmp_path / name)
    images, files = listed(tmp_path, "# my images.jpg\n#a comment\n\na\\1.jpg\na/#2.jpg\n.\\b\\3.jpg\n")
    assert images == ["a/#2.jpg", "a/1.jpg", "lists/b/3.jpg"]
    assert files.backslashes == [(tmp_path / "lists" / "train.txt", 4), (tmp_path / "lists" / "train.txt", 6)]


def test_names_that_are_not_utf8_are_found(tmp_path):
    (tmp_path / "a").mkdir()
    Path(os.fsdecode(os.fsencode(tmp_path / "a") + b"/caf\xe9.jpg")).write_bytes(b"")
    images, _ = listed(tmp_path, b"a/caf\xe9.jpg\n")
    assert [os.fsencode(image) for image in images] == [b"a/caf\xe9.jpg"]
    write(tmp_path / "d.yaml", "train: a\nnames: [x]\n")
    dataset = load_dataset_file(tmp_path / "d.yaml")
    assert [os.path.relpath(path, tmp_path) for path in find_images(dataset, "train")] == images
    assert fingerprint(dataset)


@pytest.mark.parametrize(
    ("text", "part"),
    [("one\ntwo\n", "line 1: one"), (b"\x89PNG\r\n", "PNG"), (b"a.jpg\0b.jpg", "zero byte|binary")],
)
def test_files_that_are_no_lists(tmp_path, text, part):
    with pytest.raises(DataError, match=f"no list of images(.|\n)*({part})"):
        listed(tmp_path, text)


@given(st.lists(st.text("ai/.\\xs", max_size=12)))
def test_labels_of_many_paths_are_those_of_each(ends):
    paths = [base + end for end in ends for base in ("/d/images/", "/d/images/images/", "images/", "", "/d/")]
    assert label_texts_for(paths) == [label_text_for(path) for path in paths]


def test_what_lies_beside_the_images_is_kept_apart(tmp_path):
    for name in ("i/1.jpg", "i/2.HEIC", "i/.3.jpg", "i/deep/notes.md", "i/.git/4.jpg"):
        write(tmp_path / name)
    dataset = load_dataset_file(write(tmp_path / "d.yaml", "train: i\nnames: [x]\n"))
    files = find_files(dataset, "train")
    assert files.images == [f"{tmp_path}/i/1.jpg"]
    assert files.others == [f"{tmp_path}/i/2.HEIC", f"{tmp_path}/i/deep/notes.md"]
    assert sorted(files.hidden) == [f"{tmp_path}/i/.3.jpg", f"{tmp_path}/i/.git"]


def test_an_unreadable_folder_is_noted(tmp_path, monkeypatch):
    write(tmp_path / "i" / "1.jpg")
    write(tmp_path / "i" / "locked" / "2.jpg")
    real = os.scandir

    def scandir(path):
        if os.fspath(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    dataset = load_dataset_file(write(tmp_path / "d.yaml", "train: i\nnames: [x]\n"))
    files = find_files(dataset, "train")
    assert files.images == [f"{tmp_path}/i/1.jpg"]
    assert files.unreadable == [(tmp_path / "i" / "locked", "Permission denied")]


def test_keypoints_are_counted(tmp_path):
    path = write(tmp_path / "d.yaml", "train: x\nnames: [a]\nkpt_shape: [17, 3]\n")
    assert load_dataset_file(path).keypoint_numbers == 51


@given(
    parts=st.lists(st.sampled_from(["images", "labels", "train", "a.b", "..", "images2", "x images"]), max_size=5),
    name=st.sampled_from(["images", "images.jpg", "a.jpeg", ".hidden.png", "no_suffix", "a.b.c"]),
    is_absolute=st.booleans(),
)
def test_labels_lie_where_the_last_folder_of_images_is_one_of_labels(parts, name, is_absolute):
    path = Path("/" if is_absolute else "", *parts, name)
    expected = list(path.parts)
    at = max((at for at, part in enumerate(expected[:-1]) if part == "images"), default=None)
    if at is not None:
        expected[at] = "labels"
    assert label_path_for(path) == Path(*expected[:-1], os.path.splitext(name)[0] + ".txt")
