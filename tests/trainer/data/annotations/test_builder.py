"""The tables of a split: rows of each image, their places, and what comes back from the cache."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.data.annotations.builder import ImageRows, bounds, build, names_in
from trainer.data.annotations.cache import key_of, read_annotations, write_annotations
from trainer.errors import DataError


def two_images() -> list[ImageRows]:
    second = ImageRows("/set/b.jpg", (40, 60), "/set/b.xml")
    second.add("dog", 12, (6, 4, 18, 12))
    first = ImageRows("/set/a.jpg", (0, 0), "/set/a.xml")
    first.add("cat", 3, (0, 0, 30, 20), [(0, 0), (30, 0), (30, 20)])
    first.add("dog", 9, (30, 20, 60, 40))
    return [second, first, ImageRows("/set/c.jpg")]


def test_rows_are_fractions_of_the_size_that_is_known():
    table = build(two_images(), ("cat", "dog"), "line", {})
    first = list(table.rows("/set/a.jpg", (40, 60)))
    assert [(number, values) for number, values, _ in first] == [
        (3, (0, 0.25, 0.25, 0.5, 0.5)),
        (9, (1, 0.75, 0.75, 0.5, 0.5)),
    ]
    np.testing.assert_allclose(first[0][2], [[0, 0], [0.5, 0], [0.5, 0.5]])
    assert first[1][2].shape == (0, 2)
    ((number, values, _),) = table.rows("/set/b.jpg", (400, 600))
    assert (number, values) == (12, (1, 0.2, 0.2, 0.2, 0.2))
    assert table.place("/set/b.jpg", 12) == "/set/b.xml:12"
    assert (table.source("/set/c.jpg"), list(table.rows("/set/c.jpg", (4, 4)))) == ("", [])
    assert list(table.with_classes([5, 6]).boxes.rows[:, 0]) == [5, 6, 6]


def test_names_bounds_and_an_image_twice():
    assert names_in({"train": two_images()}) == ("cat", "dog")
    assert bounds([(3, 9), (1, 4)]) == (1, 4, 3, 9)
    with pytest.raises(DataError, match=r"(?s)b.jpg stands twice.*b.xml"):
        build([*two_images(), two_images()[0]], ("cat", "dog"), "line", {})


def test_the_cache_gives_back_what_it_got_and_nothing_for_another_key(tmp_path):
    table = build(two_images(), ("cat", "dog"), "line", {"difficult": 2})
    path = tmp_path / "cache" / "a.npz"
    write_annotations(path, "key", ("cat", "dog"), {"train": table})
    names, splits = read_annotations(path, "key")
    assert names == ("cat", "dog")
    back = splits["train"]
    assert list(back.images) == list(table.images)
    assert np.array_equal(back.boxes.rows, table.boxes.rows)
    assert (back.left_out, back.place("/set/a.jpg", 9)) == ({"difficult": 2}, "/set/a.xml:9")
    assert read_annotations(path, "other") is None
    path.write_bytes(path.read_bytes()[:-50])
    assert read_annotations(path, "key") is None


def test_a_key_changes_with_a_file(tmp_path):
    file = tmp_path / "a.json"
    file.write_text("{}")
    before = key_of([file], "way")
    assert before == key_of([file], "way") != key_of([file], "other way")
    file.write_text("{ }")
    assert key_of([file], "way") != before
