"""Which images belong together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trainer.data.dataset import DatasetFile
from trainer.errors import DataError
from yolo_launch.data_sets.scanned import grouped_by_pattern, grouped_by_text, joined

DATASET = DatasetFile(Path("/d/a.yaml"), Path("/d"), ("a",), {})
PATHS = ["/d/v1_01.jpg", "/d/v1_02.jpg", "/d/v2_01.jpg", "/d/still.jpg", "/d/other.jpg"]


def test_groups_are_joined_through_others():
    first, second = np.array([0, 0, 1, 2, 3]), np.array([5, 6, 6, 7, 8])
    groups = joined(first, second)
    assert groups[0] == groups[1] == groups[2]
    assert len(set(groups.tolist())) == 3


def test_a_pattern_puts_frames_together_and_leaves_others_alone():
    groups = grouped_by_pattern(DATASET, PATHS, r"v(\d+)_")
    assert groups.tolist() == [0, 0, 1, 2, 3]
    assert grouped_by_text(["a", "b", "a"]).tolist() == [0, 1, 0]


@pytest.mark.parametrize(("pattern", "words"), [("(", "is no regular expression"), ("clip", "matches no image")])
def test_a_pattern_that_does_nothing_is_refused(pattern, words):
    with pytest.raises(DataError, match=words):
        grouped_by_pattern(DATASET, PATHS, pattern)
