from __future__ import annotations

import os
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

from trainer.data.dataset import load_dataset_file
from trainer.data.scan import scan as labels_module
from trainer.data.scan.label_cache import LabeledImages
from trainer.data.scan.labels import Labels
from trainer.data.scan.repeats import find_shared, refuse_leakage
from trainer.data.scan.report import ScanReport, tally
from trainer.data.scan.small_boxes import find_small_boxes
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
    assert report.undecodable.examples == (f"{folder / '0010.jpg'}: an empty file",)
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
    assert scan(yaml_path)[1].undecodable.count == 3
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


def test_missing_listed_image_is_unreadable(make_dataset, tmp_path, scan):
    yaml_path = make_dataset([GOOD] * 11)
    names = [f"./images/train/{at:04}.jpg\n" for at in range(12)]
    (yaml_path.parent / "list.txt").write_text("".join(names))
    yaml_path.write_text("train: list.txt\nnames: [a]\n")
    assert "No such file" in scan(yaml_path)[1].unreadable.examples[0]


def folders_of(yaml_path, split="train"):
    return yaml_path.parent / "images" / split, yaml_path.parent / "labels" / split


def words(report):
    """Every problem and note with its count."""
    return {text: found.count for text, found in (*report.problems(), *report.notes())}


def test_each_file_is_used_or_counted_under_a_reason(make_dataset, scan):
    yaml_path = make_dataset([GOOD] * 40)
    images, labels = folders_of(yaml_path)
    jpeg = (images / "0001.jpg").read_bytes()
    (labels / "0000.txt").unlink()
    (labels / "0001.txt").write_text(" \n")
    (images / "0002.jpg").write_bytes(jpeg[:-2])
    (images / "0003.jpg").write_bytes(jpeg[:-200])
    cv2.imwrite(str(images / "0004.jpg"), np.full((40, 60, 3), 255, np.uint8))
    (labels / "0005.txt").write_text("0 .5 .5 1.0021 .2\n")
    (labels / "0006.txt").write_text("0 .5 .5 .2 .2 .45 .45 1 .3 .3 0\n")
    (images / "1000.HEIC").write_bytes(b"heic")
    (labels / "1000.txt").write_text(GOOD)
    (labels / "2000.txt").write_text(GOOD)
    (labels / "0007.txt").rename(labels / "0007.TXT")
    (labels / "classes.txt").write_text("a\nb\nc\n")
    (images / "0008.txt").write_text(GOOD)
    (images / ".hidden.jpg").write_bytes(jpeg)
    images_found, report = scan(yaml_path)
    assert len(images_found) == 38
    assert (report.images, report.skipped) == (40, 2)
    assert report.missing_labels == tally([f"{labels / '0000.txt'}", f"{labels / '0007.txt'}"])
    assert report.empty_labels == tally([f"{labels / '0001.txt'}"])
    assert report.incomplete == tally([f"{images / '0002.jpg'}: its end is missing"])
    assert report.undecodable == tally([f"{images / '0003.jpg'}: a truncated JPEG: pixels are missing"])
    assert report.saturated == tally([f"{images / '0004.jpg'}: every pixel is (255, 255, 255)"])
    assert report.clipped == tally([f"{labels / '0005.txt'}:1: 0.0021 outside the image"])
    assert report.keypoint_rows == tally([f"{labels / '0006.txt'}:1: a box and keypoints?"])
    assert report.unknown_suffix == tally([f"{images / '1000.HEIC'}: .HEIC is not read"])
    assert report.unused_labels == tally(
        [
            f"{images / '0008.txt'}: labels of this image are looked for in {labels}",
            f"{labels / '0007.TXT'}: it differs from {labels / '0007.txt'} in its capitals",
            f"{labels / '1000.txt'}: its image 1000.HEIC is of a kind that is not read",
            f"{labels / '2000.txt'}: no image has its name",
        ]
    )
    assert report.hidden.examples == (f"{images / '.hidden.jpg'}",)
    assert scan(yaml_path)[1] == report
    assert ScanReport.from_json(report.to_json()) == report


def test_missing_labels_are_a_warning_where_labels_seem_to_lie_elsewhere(make_dataset, scan):
    yaml_path = make_dataset([GOOD] * 10 + [None] * 2)
    _, labels = folders_of(yaml_path)
    is_missing = "images without a label file, used as backgrounds"
    report = scan(yaml_path)[1]
    assert is_missing in dict(report.notes())
    assert f"2 {is_missing}" in report.headline()
    (labels / "other.txt").write_text(GOOD)
    report = scan(yaml_path)[1]
    assert words(report)[is_missing] == 2
    assert is_missing in dict(report.problems())
    (labels / "other.txt").unlink()
    for at in range(5):
        (labels / f"{at:04}.txt").unlink()
    assert is_missing in dict(scan(yaml_path)[1].problems())


def test_labels_beside_their_images_are_found_out(tmp_path, scan, make_dataset):
    """Half of the images lie in a folder called images, with their labels beside them."""
    yaml_path = make_dataset([GOOD] * 6)
    images, labels = folders_of(yaml_path)
    other = yaml_path.parent / "plain"
    other.mkdir()
    for at in range(3):
        (images / f"{at:04}.jpg").rename(other / f"{at:04}.jpg")
        (labels / f"{at:04}.txt").rename(other / f"{at:04}.txt")
    for at in range(3, 6):
        (labels / f"{at:04}.txt").rename(images / f"{at:04}.txt")
    yaml_path.write_text("train: [images/train, plain]\nnames: [a]\n")
    report = scan(yaml_path)[1]
    assert (report.boxes, report.missing_labels.count, report.unused_labels.count) == (3, 3, 3)
    assert "are looked for in" in report.unused_labels.examples[0]


def test_labels_of_other_splits_are_no_unused_ones(make_dataset, scan):
    yaml_path = make_dataset([GOOD] * 6)
    for split, numbers in (("train", range(4)), ("val", range(4, 6))):
        lines = "".join(f"./images/train/{at:04}.jpg\n" for at in numbers)
        (yaml_path.parent / f"{split}.txt").write_text(lines)
    yaml_path.write_text("train: train.txt\nval: val.txt\nnames: [a]\n")
    (yaml_path.parent / "labels" / "train" / "more.txt").write_text(GOOD)
    for split in ("train", "val"):
        assert scan(yaml_path, split)[1].unused_labels.count == 1


def test_an_empty_set_of_labels_beside_unread_images_is_told_by_the_suffixes(make_dataset, scan):
    yaml_path = make_dataset([GOOD] * 2)
    images, _ = folders_of(yaml_path)
    for path in list(images.iterdir()):
        path.rename(path.with_suffix(".HEIC"))
    with pytest.raises(DataError, match=r"holds no images(.|\n)*2 files with \.heic"):
        scan(yaml_path)


def test_keypoints_are_boxes_where_the_yaml_says_so(make_dataset, scan):
    yaml_path = make_dataset(["0 .5 .5 .2 .2 .45 .45 1 0 0 0\n", GOOD])
    assert scan(yaml_path)[1].keypoint_rows.count == 1
    yaml_path.write_text(yaml_path.read_text() + "kpt_shape: [2, 3]\n")
    images, report = scan(yaml_path)
    np.testing.assert_allclose(images.boxes[0], [(0, 0.5, 0.5, 0.2, 0.2)])
    assert (images.segments[0], report.keypoint_rows.count) == ([], 0)


def test_the_guard_can_be_lifted_by_the_option_that_it_names(make_dataset, scan):
    yaml_path = make_dataset([GOOD] * 6 + ["x"] * 4)
    with pytest.raises(DataError, match="4 of the 10 'train' images") as caught:
        scan(yaml_path)
    assert caught.value.next_command.endswith("--max-bad-share 0.4")
    assert len(scan(yaml_path, max_bad_share=0.4)[0]) == 6
    with pytest.raises(DataError):
        scan(yaml_path, max_bad_share=0.39)
    for label in (yaml_path.parent / "labels" / "train").iterdir():
        label.write_text("x")
    with pytest.raises(DataError, match="10 of the 10") as caught:
        scan(yaml_path, max_bad_share=1.0)
    assert "--max-bad-share" not in caught.value.next_command


def test_a_list_of_which_nothing_is_there_says_so(make_dataset, scan):
    yaml_path = make_dataset([GOOD] * 3)
    (yaml_path.parent / "list.txt").write_text("D:\\set\\1.jpg\ngone/2.jpg\n")
    yaml_path.write_text("train: list.txt\nnames: [a]\n")
    with pytest.raises(DataError, match=r"None of the 2 'train' images(.|\n)*slashes between folders") as caught:
        scan(yaml_path)
    assert "--max-bad-share" not in str(caught.value)
    assert "at most" not in str(caught.value)


def test_an_unreadable_label_is_no_missing_one(make_dataset, scan):
    yaml_path = make_dataset([GOOD] * 3)
    _, labels = folders_of(yaml_path)
    (labels / "0001.txt").unlink()
    (labels / "0001.txt").mkdir()
    report = scan(yaml_path)[1]
    assert (report.malformed.count, report.missing_labels.count) == (1, 0)


def copied_into(yaml_path, source, name, split="val"):
    images, labels = folders_of(yaml_path, split)
    for folder, suffix in ((images, ".jpg"), (labels, ".txt")):
        folder.mkdir(parents=True, exist_ok=True)
        original = yaml_path.parent / folder.parent.name / "train" / f"{source}{suffix}"
        (folder / f"{name}{suffix}").write_bytes(original.read_bytes())


def test_training_images_among_those_to_validate_on_are_refused(make_dataset, scan):
    yaml_path = make_dataset([GOOD] * 4)
    for source, name in (("0001", "a"), ("0003", "b")):
        copied_into(yaml_path, source, name)
    other = folders_of(yaml_path, "val")[0] / "c.jpg"
    cv2.imwrite(str(other), np.random.default_rng(1).integers(0, 255, (40, 60, 3), np.uint8))
    train, val = scan(yaml_path)[0], scan(yaml_path, "val")[0]
    with pytest.raises(
        DataError, match=r"2 of the 3 'val' images are training images too(.|\n)*--allow-leakage"
    ) as caught:
        refuse_leakage(train, val, "val", allowed=False)
    assert f"{folders_of(yaml_path, 'val')[0] / 'a.jpg'}: the same image as" in caught.value.seen
    assert "2 of the 3 'val' images" in refuse_leakage(train, val, "val", allowed=True)
    # From the cache, too.
    assert find_shared(scan(yaml_path)[0], scan(yaml_path, "val")[0]) == find_shared(train, val)
    assert refuse_leakage(val, LabeledImages.of([], np.zeros((0, 2)), [], [], ""), "test", allowed=False) == ""


def test_equal_ends_alone_are_no_leakage(make_dataset, scan):
    """Bitmaps that differ in the middle only: their digests agree, their contents do not."""
    yaml_path = make_dataset([GOOD] * 2, suffix=".bmp")
    image = np.random.default_rng(2).integers(0, 255, (100, 100, 3), np.uint8)
    other = image.copy()
    other[50, 50] ^= 255
    (yaml_path.parent / "images" / "val").mkdir()
    cv2.imwrite(str(folders_of(yaml_path)[0] / "0000.bmp"), image)
    cv2.imwrite(str(folders_of(yaml_path, "val")[0] / "x.bmp"), other)
    train, val = scan(yaml_path)[0], scan(yaml_path, "val")[0]
    assert train.digests[0].tobytes() == val.digests[0].tobytes()
    assert find_shared(train, val) == []


def test_boxes_too_small_to_learn_are_counted_with_the_size_that_would_do(make_dataset, scan):
    yaml_path = make_dataset([GOOD, "0 .5 .5 .2 .2\n\n1 .5 .5 .02 .2\n0 .2 .2 .3 .02\n"])
    images = scan(yaml_path)[0]  # 40 x 60 pixels
    labels = Labels(load_dataset_file(yaml_path), "train")
    found, enough = find_small_boxes(images, 64, labels)
    label = yaml_path.parent / "labels" / "train" / "0001.txt"
    assert found == tally([f"{label}:3: 1.3 pixels", f"{label}:4: 0.9 pixels"])
    assert enough == 160
    assert find_small_boxes(images, enough, labels)[0].count == 0
    assert find_small_boxes(images, 640, labels) == (tally([]), 640)
