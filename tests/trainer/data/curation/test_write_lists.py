"""Lists and the YAML file that are written are read back as what was meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.data.curation.write_lists import write_splits
from trainer.data.dataset import load_dataset_file
from trainer.data.split_files import find_images
from trainer.errors import DataError


@pytest.fixture
def dataset(tmp_path):
    for name in ("a.jpg", "b c.jpg", "\u00fc.jpg"):
        (tmp_path / "set" / "images").mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / "images" / name).touch()
    (tmp_path / "set" / "data.yaml").write_text("train: images\nnames: ['no', 'a: b']\nkpt_shape: [4, 2]\n")
    return load_dataset_file(tmp_path / "set" / "data.yaml")


def test_what_is_written_is_read_back(dataset, tmp_path):
    images = [str(path) for path in find_images(dataset, "train")]
    elsewhere = tmp_path / "elsewhere.jpg"
    elsewhere.touch()
    file = write_splits(dataset, {"train": images[1:], "val": [images[0], str(elsewhere)]}, tmp_path / "out")
    read = load_dataset_file(file)
    assert (read.names, read.keypoint_numbers) == (dataset.names, 8)
    assert sorted(map(str, find_images(read, "train"))) == sorted(images[1:])
    assert sorted(find_images(read, "val")) == sorted([Path(images[0]), elsewhere])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["data.yaml", "train.txt", "val.txt"]


def test_a_fold_has_lists_of_its_own(dataset, tmp_path):
    images = [str(path) for path in find_images(dataset, "train")]
    for name in ("fold1.yaml", "fold2.yaml"):
        write_splits(dataset, {"train": images}, tmp_path / "out", name)
    assert (tmp_path / "out" / "fold2-train.txt").is_file()


def test_nothing_is_written_over(dataset, tmp_path):
    write_splits(dataset, {"train": ["a.jpg"]}, tmp_path / "out")
    with pytest.raises(DataError, match=r"train.txt is there already"):
        write_splits(dataset, {"train": ["a.jpg"]}, tmp_path / "out")


@pytest.mark.parametrize("name", ["#a.jpg", " a.jpg", "a\nb.jpg", "a\\b.jpg"])
def test_a_name_that_no_line_holds_is_refused_before_anything_is_written(dataset, tmp_path, name):
    with pytest.raises(DataError, match="No list can name"):
        write_splits(dataset, {"train": [str(dataset.root / name)]}, tmp_path / "out")
    assert not (tmp_path / "out").exists()
