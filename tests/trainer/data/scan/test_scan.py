from __future__ import annotations

import os
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

from trainer.data.scan import scan as labels_module
from trainer.errors import DataError

GOOD = "0 .5 .5 .2 .2\n"


def test_real_sets_are_read_as_written(bccd, many_shapes):
    assert len(bccd) == 40
    assert sum(map(len, bccd.boxes)) == 705
    assert len(many_shapes) == 52
    assert sum(map(len, many_shapes.boxes)) == 547
    for images in (bccd, many_shapes):
        for path, shape in list(zip(images.paths, images.shapes_hw, strict=True))[:20]:
            assert cv2.imread(str(path)).shape[:2] == tuple(shape)
    expected = np.loadtxt(str(bccd.paths[0]).replace("images", "labels").replace(".jpg", ".txt"), ndmin=2)
    np.testing.assert_allclose(bccd.boxes[0], expected, atol=1e-6)


def test_report_counts_and_locates(make_dataset, scan):
    texts = [GOOD] * 40
    texts[1:7] = [None, "", GOOD + "0 .5 .5 .2", "0 .5 .5 2 .2", GOOD + GOOD + "0 .1 .1 0 .1", GOOD]
    yaml_path = make_dataset(texts)
    folder = yaml_path.parent / "images" / "train"
    (folder / "0010.jpg").write_bytes(b"")
    (folder / "0009.jpg").write_bytes((folder / "0008.jpg").read_bytes())
    images, report = scan(yaml_path)
    assert (report.images, report.backgrounds, report.boxes, report.skipped) == (40, 2, 35, 3)
    assert len(images) == 37
    assert report.corrupt.examples == (f"{folder / '0010.jpg'}: an empty file",)
    label = yaml_path.parent / "labels" / "train"
    assert report.malformed.examples[0].startswith(f"{label / '0003.txt'}:2: 4 columns")
    assert report.out_of_range.examples[0].startswith(f"{label / '0004.txt'}:1: coordinate 2")
    assert report.duplicate_rows.examples[0].startswith(f"{label / '0005.txt'}:2:")
    assert report.empty_boxes.examples[0].startswith(f"{label / '0005.txt'}:3:")
    assert report.duplicate_images.examples == (f"{folder / '0009.jpg'}: the same image as {folder / '0008.jpg'}",)
    assert "40 images, 35 boxes, 2 backgrounds" in report.lines()[0]
    assert len(report.lines()) == 7


def test_one_bad_image_in_many_is_skipped_but_many_stop(make_dataset, scan):
    yaml_path = make_dataset([GOOD] * 30)
    folder = yaml_path.parent / "images" / "train"
    for at in range(3):
        (folder / f"{at:04}.jpg").write_text("<html>")
    assert scan(yaml_path)[1].corrupt.count == 3
    (folder / "0003.jpg").write_text("<html>")
    with pytest.raises(DataError, match="4 of the 30 'train' images") as caught:
        scan(yaml_path)
    assert caught.value.seen.count("web page") == 4


def test_a_single_bad_image_never_stops_a_small_set(make_dataset, scan):
    yaml_path = make_dataset([GOOD, GOOD, "x"])
    assert len(scan(yaml_path)[0]) == 2


def test_class_without_a_name_is_located(make_dataset, scan):
    yaml_path = make_dataset([GOOD, GOOD + "3 .5 .5 .1 .1\n"])
    with pytest.raises(DataError, match=r"0001\.txt:2: class 3(.|\n)*0 to 2"):
        scan(yaml_path)
    images, _ = scan(yaml_path, single_cls=True, num_classes=1)
    assert [rows[:, 0].tolist() for rows in images.boxes] == [[0], [0, 0]]


def test_training_without_any_label_stops(make_dataset, scan):
    with pytest.raises(DataError, match=r"has a label(.|\n)*labels/train/0000\.txt"):
        scan(make_dataset([None, ""]))
    assert scan(make_dataset([None], split="val"), "val")[1].backgrounds == 1


def test_cache_is_used_until_a_file_changes(make_dataset, scan, monkeypatch, tmp_path):
    yaml_path = make_dataset([GOOD, "1 .1 .1 .3 .1 .3 .5\n" + GOOD, None, "x", GOOD, GOOD])
    first = scan(yaml_path)
    reads: list[Path] = []
    real = labels_module.read_header
    monkeypatch.setattr(labels_module, "read_header", lambda path: reads.append(path) or real(path))
    second = scan(yaml_path)
    assert reads == []
    assert second[1] == first[1]
    assert second[0].paths == first[0].paths
    np.testing.assert_array_equal(second[0].shapes_hw, first[0].shapes_hw)
    for a, b in zip(first[0].boxes, second[0].boxes, strict=True):
        np.testing.assert_array_equal(a, b)
    assert [[len(p) for p in row] for row in second[0].segments] == [[], [3, 0], [], [], []]
    for a, b in zip(first[0].segments[1], second[0].segments[1], strict=True):
        np.testing.assert_array_equal(a, b)

    (yaml_path.parent / "labels" / "train" / "0000.txt").write_text("2 .5 .5 .2 .2\n")
    assert scan(yaml_path)[0].boxes[0][0, 0] == 2
    assert len(reads) == 6
    assert len(list((tmp_path / "cache" / "labels").iterdir())) == 1


@pytest.mark.parametrize("damage", [b"", b"not a zip", "half", "flip"])
def test_damaged_cache_is_scanned_again(make_dataset, scan, tmp_path, damage, caplog):
    yaml_path = make_dataset([GOOD, GOOD])
    first = scan(yaml_path)
    (cache,) = (tmp_path / "cache" / "labels").iterdir()
    content = cache.read_bytes()
    flipped = bytearray(content)
    flipped[content.index(b"\x93NUMPY") + 3] ^= 0xFF
    cache.write_bytes({"half": content[: len(content) // 2], "flip": bytes(flipped)}.get(damage, damage))
    assert scan(yaml_path)[1] == first[1]
    assert "damaged" in caplog.text
    assert cache.read_bytes() == content


def test_only_the_writer_writes_and_a_folder_that_cannot_be_written_is_no_error(make_dataset, scan, tmp_path, caplog):
    yaml_path = make_dataset([GOOD, GOOD])
    scan(yaml_path, writer=False)
    assert not (tmp_path / "cache").exists()
    (tmp_path / "file").write_text("")
    assert len(scan(yaml_path, cache_dir=tmp_path / "file")[0]) == 2
    assert "cannot be written" in caplog.text


def test_read_only_data_sets_are_left_alone(make_dataset, scan):
    yaml_path = make_dataset([GOOD, GOOD])
    before = sorted(os.walk(yaml_path.parent))
    scan(yaml_path)
    assert sorted(os.walk(yaml_path.parent)) == before


def test_scan_is_parallel_and_reports_progress(make_dataset, scan, monkeypatch):
    yaml_path = make_dataset([GOOD] * 130)
    both = threading.Barrier(2, timeout=10)
    real, started = labels_module.read_header, []

    def read(path):
        if len(started) < 2 and threading.get_ident() not in started:
            started.append(threading.get_ident())
            both.wait()
        return real(path)

    monkeypatch.setattr(labels_module, "read_header", read)
    heard: list[tuple[int, int]] = []
    images, _ = scan(yaml_path, workers=2, on_progress=lambda *progress: heard.append(progress))
    assert heard == [(64, 130), (128, 130), (130, 130)]
    assert images.paths == sorted(images.paths)


def test_missing_listed_image_is_corrupt(make_dataset, tmp_path, scan):
    yaml_path = make_dataset([GOOD] * 11)
    names = [f"./images/train/{at:04}.jpg\n" for at in range(12)]
    (yaml_path.parent / "list.txt").write_text("".join(names))
    yaml_path.write_text("train: list.txt\nnames: [a]\n")
    assert "No such file" in scan(yaml_path)[1].corrupt.examples[0]
