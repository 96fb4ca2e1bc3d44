"""COCO JSON: what is read, and which file, annotation and image a mistake is named by."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from trainer.data.formats import coco_file
from trainer.data.formats.load import load_dataset
from trainer.data.formats.rle import rle_bounds
from trainer.data.scan.labels import Labels
from trainer.data.scan.scan import scan_split
from trainer.data.scan.small_boxes import find_small_boxes
from trainer.data.split_files import find_files, fingerprint
from trainer.errors import DataError


def scan(dataset, split, tmp_path):
    return scan_split(dataset, split, num_classes=dataset.num_classes, cache_dir=tmp_path / "cache")


def test_boxes_polygons_and_crowds_are_read_by_the_usual_layout(coco_set, tmp_path):
    dataset = load_dataset(coco_set())
    assert dataset.names == ("cat", "dog")
    assert dataset.format == "COCO JSON"
    assert list(dataset.splits) == ["train", "val"]
    images, report = scan(dataset, "train", tmp_path)
    assert [path.name for path in images.paths] == ["a.jpg", "b.jpg"]
    np.testing.assert_allclose(images.boxes[0], [[0, 0.3, 0.35, 0.4, 0.5]], atol=1e-6)
    np.testing.assert_allclose(images.boxes[1], [[1, 0.2, 0.2, 0.2, 0.2]], atol=1e-6)
    np.testing.assert_allclose(images.segments[0][0], [[0.1, 0.1], [0.5, 0.1], [0.5, 0.6]], atol=1e-6)
    assert (report.boxes, report.backgrounds, report.skipped) == (2, 0, 0)
    assert dataset.annotations["train"].left_out == {"crowd": 1}


def test_a_folder_finds_both_files_and_a_lone_file_its_split(coco_set):
    train = coco_set()
    assert list(load_dataset(train.parent.parent).splits) == ["train", "val"]
    assert list(load_dataset(train.with_name("instances_val2017.json")).splits) == ["val"]


def test_without_a_validation_split_none_is_held_out(coco_set, tmp_path):
    train = coco_set(val=False)
    with pytest.raises(DataError) as refused:
        find_files(load_dataset(train), "val")
    assert "--val-data FILE" in refused.value.next_command
    other = json.loads(train.read_text())
    other["categories"].reverse()
    (train.parent / "held.json").write_text(json.dumps(other))
    dataset = load_dataset(train, val=train.parent / "held.json")
    assert len(find_files(dataset, "val").images) == 2
    first, second = (scan(dataset, split, tmp_path)[0].boxes.rows for split in ("train", "val"))
    assert np.array_equal(first, second)


def test_the_second_start_does_not_parse(coco_set, monkeypatch):
    train = coco_set()
    first = load_dataset(train)

    def fail(*_):
        raise AssertionError("the file was parsed again")

    monkeypatch.setattr(coco_file, "_decode", fail)
    second = load_dataset(train)
    assert fingerprint(first) == fingerprint(second)
    assert np.array_equal(first.annotations["train"].points.rows, second.annotations["train"].points.rows)
    assert (
        second.annotations["train"]
        .place(str(first.annotations["train"].images[0]), 12)
        .endswith("instances_train2017.json: annotation id 12 (a.jpg)")
    )
    os.utime(train, ns=(1, 1))
    with pytest.raises(AssertionError):
        load_dataset(train)


def test_a_change_of_a_box_changes_the_fingerprint_and_the_scan(coco_set, tmp_path):
    train = coco_set()
    before = load_dataset(train)
    found = scan(before, "train", tmp_path)[0]
    train.write_text(train.read_text().replace("[6, 4, 12, 8]", "[6, 4, 24, 8]"))
    after = load_dataset(train)
    assert fingerprint(before) != fingerprint(after)
    assert scan(after, "train", tmp_path)[0].boxes[1][0, 3] == pytest.approx(0.4)
    assert found.boxes[1][0, 3] == pytest.approx(0.2)


def append(key, value):
    return lambda content: content[key].append(value)


BOX = {"id": 99, "image_id": 3, "category_id": 18, "bbox": [1, 1, 5, 5]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (append("annotations", {**BOX, "image_id": 4}), ["annotation id 99", "image_id 4"]),
        (append("annotations", {**BOX, "category_id": 1}), ["annotation id 99", "category_id 1"]),
        (append("annotations", {**BOX, "bbox": [1, 2, 3]}), ["annotation id 99", "bbox (1.0, 2.0, 3.0)"]),
        (append("annotations", {**BOX, "bbox": []}), ["annotation id 99", "a segmentation"]),
        (
            append("annotations", {**BOX, "bbox": None, "segmentation": [[1, "x"]]}),
            ["annotation id 99", "segmentation"],
        ),
        (append("annotations", {**BOX, "bbox": [float("nan"), 1, 1, 1]}), ["cannot be read as COCO JSON", "byte"]),
        (append("images", {"id": 8, "file_name": "a.jpg", "width": 60, "height": 40}), ["a.jpg stands twice"]),
        (append("images", {"id": 3, "file_name": "z.jpg", "width": 60, "height": 40}), ["z.jpg stands twice", "id 3"]),
        (append("categories", {"id": 18, "name": "cow"}), ["category twice", "18: cow"]),
        (lambda content: content.pop("categories"), ["cannot be read as COCO JSON", "categories"]),
        (lambda content: [one.update(file_name=f"no{one['id']}") for one in content["images"]], ["were not found"]),
    ],
)
def test_a_mistake_is_named_by_its_annotation(coco_set, change, words):
    with pytest.raises(DataError) as refused:
        load_dataset(coco_set(change))
    assert [word for word in words if word not in str(refused.value)] == []


def test_a_file_cut_in_the_middle_and_another_json_are_refused(coco_set, tmp_path):
    train = coco_set()
    train.write_bytes(train.read_bytes()[:300])
    with pytest.raises(DataError, match="truncated"):
        load_dataset(train)
    (tmp_path / "other.json").write_text('{"epochs": 3}')
    with pytest.raises(DataError):
        load_dataset(tmp_path / "other.json")


def test_rows_out_of_range_empty_and_twice_are_named_by_their_id(coco_set, tmp_path):
    def change(content):
        content["annotations"] += [
            {**BOX, "id": 21, "bbox": [1, 1, 0, 5]},
            {**BOX, "id": 22},
            {**BOX, "id": 23},
            {**BOX, "id": 24, "image_id": 7, "bbox": [1, 1, 400, 5]},
        ]

    _, report = scan(load_dataset(coco_set(change)), "train", tmp_path)
    assert "annotation id 21 (a.jpg)" in report.empty_boxes.examples[0]
    assert "annotation id 23 (a.jpg)" in report.duplicate_rows.examples[0]
    assert "annotation id 24 (b.jpg)" in report.out_of_range.examples[0]


def test_small_boxes_are_named_by_their_id(coco_set, tmp_path):
    dataset = load_dataset(coco_set(append("annotations", {**BOX, "bbox": [1, 1, 0.5, 0.5]})))
    images, _ = scan(dataset, "train", tmp_path)
    tally, _ = find_small_boxes(images, 64, Labels(dataset, "train"))
    assert tally.count == 1
    assert "annotation id 99 (a.jpg)" in tally.examples[0]


def test_boxes_for_a_picture_of_other_proportions_are_refused(coco_set, tmp_path):
    def change(content):
        content["images"][0].update(width=40, height=60)

    _, report = scan(load_dataset(coco_set(change)), "train", tmp_path)
    assert "other proportions" in report.malformed.examples[0]


def test_run_lengths_give_the_box_that_cocos_own_code_gives():
    masks = pytest.importorskip("faster_coco_eval.core.mask", reason="the coco extra is not installed")
    rng = np.random.default_rng(5)
    for _ in range(50):
        mask = np.zeros((23, 31), np.uint8)
        top, left = rng.integers(0, 20), rng.integers(0, 28)
        mask[top : top + rng.integers(1, 20), left : left + rng.integers(1, 20)] = 1
        mask &= rng.random(mask.shape) < 0.7
        if not mask.any():
            continue
        coded = masks.encode(np.asfortranarray(mask))
        left, top, width, height = masks.toBbox(coded)
        rows, columns = np.nonzero(mask)
        exact = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert (left, top, left + width, top + height) == exact
        assert rle_bounds(coded["counts"].decode(), (23, 31)) == exact


def test_run_lengths_that_do_not_fill_the_image_are_named(coco_set):
    wrong = {**BOX, "bbox": None, "segmentation": {"counts": [5, 3], "size": [40, 60]}}
    with pytest.raises(DataError, match=r"(?s)annotation id 99.*8 pixels of 40 x 60"):
        load_dataset(coco_set(append("annotations", wrong)))
    assert rle_bounds([5, 3], (2, 4)) == (2, 0, 4, 2)
    assert rle_bounds([8], (2, 4)) is None


def test_samples_of_other_programs_are_read(samples: Path, tmp_path):
    dataset = load_dataset(samples / "coco_dataset" / "coco_instances")
    assert dataset.names == ("a", "b", "c")
    np.testing.assert_allclose(dataset.annotations["train"].boxes[0], [[1, 0.35, 0.5, 0.3, 0.2]])
    roboflow = load_dataset(samples / "roboflow_dataset" / "coco")
    assert {split: len(table) for split, table in roboflow.annotations.items()} == {"train": 2, "val": 1}
    whole = load_dataset(samples / "coco_dataset" / "coco")
    assert list(whole.splits) == ["train", "val"]
