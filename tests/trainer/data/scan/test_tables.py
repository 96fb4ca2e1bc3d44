"""Tables answer as the lists would that they stand for."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.scan.tables import PathTable, PolygonTable, RowTable

NAMES = st.lists(
    st.text(st.characters(blacklist_characters="\0/", blacklist_categories=["Cs"]), min_size=1), max_size=9
)


@given(NAMES)
def test_paths_are_those_that_were_given(names):
    table, paths = PathTable(names), [Path(name) for name in names]
    assert list(table) == paths
    assert list(table.texts()) == names
    assert [table[at] for at in range(len(table))] == paths
    assert [table[-at - 1] for at in range(len(table))] == paths[::-1]
    assert list(table[1:5:2]) == paths[1:5:2]
    assert table == PathTable(paths)
    assert table == paths
    assert pickle.loads(pickle.dumps(table)) == table


def test_a_path_that_is_no_text_stays_as_it_is():
    raw = os.fsdecode(b"/data/caf\xe9.jpg")
    assert PathTable([raw])[0] == Path(raw)


def test_paths_differ_where_only_their_borders_do():
    assert PathTable(["ab", "c"]) != PathTable(["a", "bc"])


def test_there_is_nothing_behind_the_end():
    for table in (PathTable(["a"]), RowTable.of([np.zeros((2, 5))], 5), PolygonTable.of([[]], np.array([0]))):
        assert len(table) == 1
        for index in (1, -2):
            with pytest.raises(IndexError):
                table[index]


@given(st.lists(st.integers(0, 4), max_size=8))
def test_rows_are_views_by_image(counts):
    each = [np.random.default_rng(at).random((count, 5), np.float32) for at, count in enumerate(counts)]
    table = RowTable.of(each, 5)
    assert len(table) == len(each)
    for at, expected in enumerate(each):
        assert np.array_equal(table[at], expected)
    for found, expected in zip(table, each, strict=True):
        assert np.array_equal(found, expected)
        assert not len(found) or np.shares_memory(found, table.rows)
    assert [len(one) for one in table[1:3]] == counts[1:3]


def test_rows_and_counts_must_agree():
    with pytest.raises(ValueError, match="3 rows for counts of 2"):
        RowTable(np.zeros((3, 5)), np.array([1, 1]))


def test_polygons_are_one_a_box_where_an_image_has_any():
    square, plain = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32), np.zeros((0, 2), np.float32)
    table = PolygonTable.of([[], [square, plain], [], [plain, square, square]], np.array([2, 2, 0, 3]))
    assert [len(row) for row in table] == [0, 2, 0, 3]
    assert [[len(polygon) for polygon in row] for row in table] == [[], [4, 0], [], [0, 4, 4]]
    assert np.array_equal(table[3][2], square)
