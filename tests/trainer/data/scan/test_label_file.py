from __future__ import annotations

import numpy as np
import pytest

from trainer.data.scan.label_file import LabelError, parse_label_rows, read_label_file


def test_boxes_and_polygons():
    rows = parse_label_rows("1 .5 .5 .2 .4\n\n0 .1 .1 .3 .1 .3 .5 .1 .5\n")
    np.testing.assert_allclose(rows.boxes, [[1, 0.5, 0.5, 0.2, 0.4], [0, 0.2, 0.3, 0.2, 0.4]], atol=1e-6)
    assert [polygon.shape for polygon in rows.polygons] == [(0, 2), (4, 2)]
    assert rows.lines == [1, 3]
    assert parse_label_rows("1 .5 .5 .2 .4").polygons == []
    assert parse_label_rows(" \n").boxes.shape == (0, 5)


def test_repeats_and_empty_boxes_are_left_out():
    rows = parse_label_rows("0 .5 .5 .2 .2\n1 .5 .5 .2 .2\n0 .5 0.50 .2 .2\n0 .5 .5 0 .2\n")
    assert rows.boxes[:, 0].tolist() == [0, 1]
    assert (rows.duplicates, rows.empty_boxes) == ([3], [4])


def test_rounding_just_outside_is_moved_to_the_border():
    np.testing.assert_allclose(parse_label_rows("0 .5 .5 1.000001 -0.000001\n0 .5 .5 1.0001 1").boxes[0, 3], 1)


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ("0 .5 .5 .1 .1\nperson .5 .5 .1 .1", 2, "'person' is not a number"),
        ("0 .5 .5 .1", 1, "4 columns"),
        ("0 .5 .5 .1 .1 .9", 1, "6 columns"),
        ("0 .1 .1 .2 .2 .3 .3 .4", 1, "8 columns"),
        ("\n0 nan .5 .1 .1", 2, "NaN"),
        ("0 .5 inf .1 .1", 1, "NaN or infinity"),
        ("-1 .5 .5 .1 .1", 1, "class -1"),
        ("1.5 .5 .5 .1 .1", 1, "class 1.5"),
        ("0 -.5 .5 .1 .1", 1, "below 0"),
        ("0 .5 1.01 .1 .1", 1, "not pixels"),
        ("0 320 240 64 48", 1, "not pixels"),
    ],
)
def test_errors_have_a_line_and_a_reason(text, line, why):
    with pytest.raises(LabelError, match=why) as caught:
        parse_label_rows(text)
    assert caught.value.line == line
    assert caught.value.out_of_range == ("below" in why or "pixels" in why)


def test_files_that_are_absent_or_no_text(tmp_path):
    assert read_label_file(tmp_path / "none.txt") is None
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe0\x000\x00")
    with pytest.raises(LabelError, match="not a text file"):
        read_label_file(tmp_path / "bytes.txt")
    (tmp_path / "bom.txt").write_bytes(b"\xef\xbb\xbf0 .5 .5 .1 .1\r\n")
    assert len(read_label_file(tmp_path / "bom.txt").boxes) == 1
