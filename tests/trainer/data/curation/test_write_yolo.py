"""Label files that are written are read back to the bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from trainer.data.curation.write_yolo import label_text, write_yolo
from trainer.data.dataset import DatasetFile, load_dataset_file
from trainer.data.scan.label_cache import LabeledImages
from trainer.data.scan.label_file import read_label_file
from trainer.errors import DataError

SIDES = st.floats(0.125, 0.5, width=32)


@given(sides=arrays(np.float32, (3, 2), elements=SIDES), centers=arrays(np.float32, (3, 2), elements=SIDES))
def test_boxes_are_read_back_to_the_bit(tmp_path_factory, sides, centers):
    low = np.maximum(centers, sides / 2)
    rows = np.column_stack([np.arange(3, dtype=np.float32), low, sides]).astype(np.float32)
    file = tmp_path_factory.mktemp("labels") / "a.txt"
    file.write_text(label_text(rows, []))
    read = read_label_file(file, 0)
    assert read.boxes.astype(np.float32).tobytes() == rows.tobytes()


def test_polygons_are_written_as_such(tmp_path):
    polygon = np.array([[0.1, 0.1], [0.4, 0.1], [0.4, 0.3]], np.float32)
    rows = np.array([[1, 0.25, 0.2, 0.3, 0.2], [0, 0.5, 0.5, 0.2, 0.2]], np.float32)
    text = label_text(rows, [polygon, np.zeros((0, 2), np.float32)])
    assert [len(line.split()) for line in text.splitlines()] == [7, 5]


@pytest.fixture
def named_alike(tmp_path):
    paths = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        paths.append(tmp_path / folder / "0001.jpg")
        paths[-1].write_bytes(folder.encode())
    rows = [np.full((1, 5), 0.25, np.float32) * (index + 1) for index in range(2)]
    for index, row in enumerate(rows):
        row[0, 0] = index
    images = LabeledImages.of(paths, np.ones((2, 2), np.int32), rows, [[], []], "")
    return DatasetFile(tmp_path / "x.json", tmp_path, ("one", "two"), {"train": ("a",)}), images


def test_images_of_one_name_are_told_apart(named_alike, tmp_path):
    dataset, images = named_alike
    file = write_yolo(dataset, {"train": images}, tmp_path / "out", copies=False)
    assert load_dataset_file(file).names == ("one", "two")
    folder = tmp_path / "out" / "images" / "train"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"0001.jpg": b"a", "0001-2.jpg": b"b"}
    assert (tmp_path / "out" / "labels" / "train" / "0001-2.txt").read_text().startswith("1 0.5 ")


def test_a_folder_with_files_is_left_alone(named_alike, tmp_path):
    dataset, images = named_alike
    with pytest.raises(DataError, match="is there already"):
        write_yolo(dataset, {"train": images}, tmp_path / "a", copies=False)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["0001.jpg"]
