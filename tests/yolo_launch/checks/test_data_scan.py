"""What doctor says of a data set without training on it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from trainer.config.train import make_config
from yolo_launch.checks.data_scan import scan_data


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A data set of 12 training and 3 validation images of noise."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 3)):
        for kind in ("images", "labels"):
            (tmp_path / kind / split).mkdir(parents=True)
        for number in range(count):
            image = rng.integers(0, 255, (40, 60, 3), np.uint8)
            cv2.imwrite(str(tmp_path / "images" / split / f"{number}.png"), image)
            (tmp_path / "labels" / split / f"{number}.txt").write_text("0 .5 .5 .2 .2\n")
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [a]\n")
    return tmp_path


def scanned(data, **options):
    findings, reports = scan_data(make_config({"data": str(data / "data.yaml"), **options}))
    return [(found.level, found.seen.splitlines()[0], found.advice) for found in findings], reports


def test_a_good_set_is_counted(data):
    found, reports = scanned(data)
    assert [row[:2] for row in found] == [
        ("ok", "train: 12 images, 12 boxes, 0 backgrounds"),
        ("ok", "val: 3 images, 3 boxes, 0 backgrounds"),
    ]
    assert reports["train"]["images"] == 12
    assert reports["val"]["undecodable"] == {"count": 0, "examples": ()}


def test_everything_that_stands_in_the_way_is_said(data):
    (data / "images/val/copy.png").write_bytes((data / "images/train/3.png").read_bytes())
    (data / "labels/train/other.txt").write_text("0 .5 .5 .2 .2\n")
    (data / "labels/train/0.txt").write_text("0 .5 .5 .2 .01\n")
    found, reports = scanned(data, imgsz=64)
    assert ("warning", "train: 1 label files that belong to no image, left out") in [row[:2] for row in found]
    (small,) = [row for row in found if "too small" in row[1]]
    assert small[2].startswith("--imgsz 320, at which 99 of 100 boxes")
    assert found[-1][0] == "failure"
    assert found[-1][1].startswith("val: 1 of the 4 'val' images are training images too")
    assert "--allow-leakage" in found[-1][2]
    assert reports["train"]["unused_labels"]["count"] == 1


def test_a_split_that_is_refused_does_not_hide_the_other(data):
    for label in (data / "labels/train").iterdir():
        label.write_text("nonsense")
    found, reports = scanned(data)
    assert [row[0] for row in found] == ["failure", "ok"]
    assert list(reports) == ["val"]
