"""`yolo-launch data` as typed, on real pictures with planted faults."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from trainer.data.dataset import load_dataset_file
from trainer.data.split_files import find_images
from yolo_launch.cli.main import run_program
from yolo_launch.errors import ExitCode


@pytest.fixture
def cells(tmp_path, monkeypatch, bccd_yaml):
    """A copy of a small real set; the cache of scans is the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(bccd_yaml.parent, tmp_path / "cells")
    return tmp_path / "cells" / bccd_yaml.name


def images_of(file, split):
    return find_images(load_dataset_file(file), split)


def plant_copy(cells, *, near):
    """A validation image of which the training split gets a copy; with ``near`` smaller and compressed anew."""
    original = images_of(cells, "val")[3]
    folder = images_of(cells, "train")[0].parent
    copy = folder / f"copy{original.suffix}"
    if near:
        image = cv2.imread(str(original))
        cv2.imwrite(str(copy), cv2.resize(image, None, fx=0.6, fy=0.6), [cv2.IMWRITE_JPEG_QUALITY, 60])
    else:
        shutil.copy(original, copy)
    labels = [str(path).replace("images", "labels").rpartition(".")[0] + ".txt" for path in (original, copy)]
    shutil.copy(*labels)
    return original, copy


def run(capsys, *typed):
    code = run_program(["data", *map(str, typed)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_check_counts_classes_and_sizes(cells, capsys):
    code, output, _ = run(capsys, "check", cells, "--json")
    found = json.loads(output)
    assert code == ExitCode.DONE
    boxes = {split: sum(seen["boxes_by_class"]) for split, seen in found["overviews"].items()}
    labels = {
        split: sum(len(path.read_text().split("\n")) - 1 for path in (cells.parent / "labels" / split).glob("*.txt"))
        for split in boxes
    }
    assert boxes == labels
    assert found["classes"] == ["RBC", "WBC", "Platelets"]
    code, output, _ = run(capsys, "check", cells)
    assert "objects by class (images)" in output
    assert "RBC" in output


def test_check_refuses_an_equal_copy_across_splits(cells, capsys):
    _, copy = plant_copy(cells, near=False)
    code, output, _ = run(capsys, "check", cells)
    assert code == ExitCode.USAGE
    assert "FAILURE data set: val: 1 of the" in output
    assert copy.name in output


def test_check_warns_of_a_copy_that_only_looks_the_same(cells, capsys):
    original, copy = plant_copy(cells, near=True)
    code, output, _ = run(capsys, "check", cells, "--json")
    found = json.loads(output)
    assert code == ExitCode.DONE
    assert any(copy.name in example and original.name in example for example in found["near_across"]["examples"])


def test_check_names_a_wrong_class_with_its_line(cells, capsys):
    label = next((cells.parent / "labels" / "train").glob("*.txt"))
    label.write_text(label.read_text() + "7 0.5 0.5 0.1 0.1\n")
    code, output, _ = run(capsys, "check", cells)
    assert code == ExitCode.USAGE
    assert f"{label.name}:{len(label.read_text().splitlines())}: class 7" in output


def test_split_keeps_copies_together_and_can_be_trained_on(cells, capsys):
    original, copy = plant_copy(cells, near=True)
    code, _, _ = run(capsys, "split", cells, "--val", "0.25", "--test", "0.15", "--seed", "3")
    assert code == ExitCode.DONE
    file = cells.parents[1] / f"{cells.stem}-split" / "data.yaml"
    splits = {split: set(images_of(file, split)) for split in ("train", "val", "test")}
    everything = [image for split in ("train", "val") for image in images_of(cells, split)]
    assert set.union(*splits.values()) == set(everything)
    assert sum(map(len, splits.values())) == len(everything)
    assert len(splits["val"]) == pytest.approx(0.25 * len(everything), abs=1.5)
    assert sum({original, copy} <= images for images in splits.values()) == 1
    assert run(capsys, "check", file)[0] == ExitCode.DONE
    # Nothing is written over, and the same seed gives the same lists.
    assert run(capsys, "split", cells)[0] == ExitCode.USAGE
    run(capsys, "split", cells, "--val", "0.25", "--test", "0.15", "--seed", "3", "--out", "again")
    assert (cells.parents[1] / "again" / "val.txt").read_text() == (file.parent / "val.txt").read_text()


def test_folds_validate_on_every_image_once(cells, capsys):
    code, output, _ = run(capsys, "split", cells, "--folds", "4", "--out", "folds", "--json")
    assert code == ExitCode.DONE
    files = json.loads(output)["files"]
    assert len(files) == 4
    validated = [image for file in files for image in images_of(file, "val")]
    assert sorted(validated) == sorted(image for split in ("train", "val") for image in images_of(cells, split))
    for file in files:
        assert not set(images_of(file, "val")) & set(images_of(file, "train"))


def test_frames_of_one_film_stay_together(cells, capsys):
    train = images_of(cells, "train")[0].parent
    for number, image in enumerate(images_of(cells, "train")):
        image.rename(train / f"film{number % 5}_{number}.jpg")
        (cells.parent / "labels" / "train" / f"{image.stem}.txt").rename(
            cells.parent / "labels" / "train" / f"film{number % 5}_{number}.txt"
        )
    code, _, errors = run(capsys, "split", cells, "--group-by", r"film\d+", "--out", "films")
    assert code == ExitCode.DONE, errors
    places = {}
    for split in ("train", "val"):
        for image in images_of(cells.parents[1] / "films" / "data.yaml", split):
            if image.name.startswith("film"):
                places.setdefault(image.name.partition("_")[0], set()).add(split)
    assert len(places) == 5
    assert all(len(splits) == 1 for splits in places.values())


@pytest.mark.parametrize("typed", ["--val 1", "--val 0", "--val 0.6 --test 0.5", "--folds 1", "--folds 3 --val 0.2"])
def test_shares_that_leave_nothing_are_refused(cells, capsys, typed):
    assert run(capsys, "split", cells, *typed.split())[0] == ExitCode.USAGE
    assert not (cells.parents[1] / f"{cells.stem}-split").exists()


@pytest.mark.parametrize("near", [False, True])
def test_dedupe_leaves_out_the_copy_that_is_trained_on(cells, capsys, near):
    original, copy = plant_copy(cells, near=near)
    code, output, _ = run(capsys, "dedupe", cells, *(["--near"] if near else []), "--out", "out", "--json")
    assert code == ExitCode.DONE
    found = json.loads(output)
    assert (str(copy), str(original)) in {(each["image"], each["of"]) for each in found["left_out"]}
    assert copy not in images_of(found["file"], "train")
    assert original in images_of(found["file"], "val")
    assert copy.is_file()


def test_dedupe_without_a_repeat_writes_nothing(cells, capsys):
    code, output, _ = run(capsys, "dedupe", cells)
    assert code == ExitCode.DONE
    assert "0 of" in output
    assert not (cells.parents[1] / f"{cells.stem}-dedupe").exists()


def as_coco(cells):
    """The validation split of the cells as COCO JSON, and its labels as YOLO has them."""
    images, annotations = [], []
    for index, image in enumerate(images_of(cells, "val")):
        height, width = cv2.imread(str(image)).shape[:2]
        images.append({"id": index, "file_name": str(image), "width": width, "height": height})
        label = str(image).replace("images", "labels").rpartition(".")[0] + ".txt"
        for row in Path(label).read_text(encoding="utf-8").splitlines():
            kind, x, y, w, h = map(float, row.split())
            box = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": index, "category_id": int(kind) + 5, "bbox": box, "iscrowd": 0}
            )
    names = load_dataset_file(cells).names
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": index + 5, "name": name} for index, name in enumerate(names)],
    }
    file = cells.parents[1] / "instances_val.json"
    file.write_text(json.dumps(content))
    return file


def test_convert_writes_what_was_read(cells, capsys):
    coco = as_coco(cells)
    code, _, errors = run(capsys, "split", coco, "--out", "out")
    assert code == ExitCode.USAGE
    assert f"yolo-launch data convert {coco}" in errors
    code, output, errors = run(capsys, "convert", coco, "--out", "yolo", "--json")
    assert code == ExitCode.DONE, errors
    file = json.loads(output)["file"]
    (split,) = load_dataset_file(file).splits
    written, originals = images_of(file, split), images_of(cells, "val")
    assert [path.resolve() for path in written] == [path.resolve() for path in originals]
    assert load_dataset_file(file).names == load_dataset_file(cells).names
    for new, old in zip(written, originals, strict=True):
        labels = [str(path).replace("images", "labels").rpartition(".")[0] + ".txt" for path in (new, old)]
        rows = [np.loadtxt(label, ndmin=2) for label in labels]
        assert np.abs(rows[0] - rows[1]).max() < 1e-6
    # Written once more, nothing changes; into the same folder, nothing is written.
    _, output, _ = run(capsys, "convert", file, "--out", "again", "--copy", "--json")
    for label in (cells.parents[1] / "yolo" / "labels").rglob("*.txt"):
        again = cells.parents[1] / "again" / label.relative_to(cells.parents[1] / "yolo")
        assert again.read_text() == label.read_text()
    assert not next((cells.parents[1] / "again" / "images").rglob("*.jpg")).is_symlink()
    assert run(capsys, "convert", coco, "--out", "yolo")[0] == ExitCode.USAGE
