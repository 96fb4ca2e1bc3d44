from __future__ import annotations

import numpy as np
import pytest

from trainer.data.scan import label_file
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
        ("0 .5 1.06 .1 .1", 1, "not pixels"),
        ("0 .5 .5 -.01 .1", 1, "below 0"),
        ("0 .5 .5 .2 .2 .4 .4 2 0 0 0", 1, "coordinate 2 is above 1.*not pixels.*kpt_shape"),
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
    (tmp_path / "bytes.txt").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(LabelError, match="a PNG picture"):
        read_label_file(tmp_path / "bytes.txt")
    (tmp_path / "latin.txt").write_bytes(b"0 .5 .5 .1 .1\ncaf\xe9")
    with pytest.raises(LabelError, match="bytes in line 2 that are not UTF-8"):
        read_label_file(tmp_path / "latin.txt")
    (tmp_path / "shell.txt").write_bytes("0 .5 .5 .1 .1\r\n".encode("utf-16"))
    assert len(read_label_file(tmp_path / "shell.txt").boxes) == 1
    (tmp_path / "bom.txt").write_bytes(b"\xef\xbb\xbf0 .5 .5 .1 .1\r\n")
    assert len(read_label_file(tmp_path / "bom.txt").boxes) == 1


def test_a_folder_or_a_locked_file_is_no_missing_one(tmp_path, monkeypatch):
    (tmp_path / "0.txt").mkdir()
    with pytest.raises(LabelError, match="a folder"):
        read_label_file(tmp_path / "0.txt")

    def locked(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(label_file, "read_text", locked)
    with pytest.raises(LabelError, match="Permission denied") as caught:
        read_label_file(tmp_path / "1.txt")
    assert caught.value.unreadable


@pytest.mark.parametrize(
    ("row", "box"),
    [
        ("0 .5 .5 1.0021 .4", (0.5, 0.5, 1, 0.4)),
        ("0 1.02 .5 .1 .4", (0.985, 0.5, 0.03, 0.4)),
        ("0 -.02 .5 .1 .4", (0.015, 0.5, 0.03, 0.4)),
        ("0 .5 .5 .4 1.05", (0.5, 0.5, 0.4, 1)),
        ("0 -.02 .1 .2 1.03 .2 .5", (0.1, 0.55, 0.2, 0.9)),
    ],
)
def test_boxes_a_little_out_of_range_are_cut_and_counted(row, box):
    rows = parse_label_rows(f"1 .5 .5 .1 .1\n{row}")
    np.testing.assert_allclose(rows.boxes[1, 1:], box, atol=1e-6)
    assert [line for line, _ in rows.clipped] == [2]
    assert rows.clipped[0][1] == pytest.approx(max(-min(rest := list(map(float, row.split()[1:]))), max(rest) - 1))
    assert parse_label_rows("0 .5 .5 1.0009 .4").clipped == []


def test_with_keypoints_the_first_five_numbers_count():
    text = "0 .5 .5 .2 .2 .45 .45 1 0 0 0\n0 .5 .5 .1 .1\n0 .4 .4 .2 .2 7 -3 2 0 0 0"
    rows = parse_label_rows(text, 6)
    np.testing.assert_allclose(rows.boxes[:, 1:], [(0.5, 0.5, 0.2, 0.2), (0.5, 0.5, 0.1, 0.1), (0.4, 0.4, 0.2, 0.2)])
    assert (rows.polygons, rows.keypoint_like) == ([], [])
    for text in ("0 .5 .5 .2 .2 .45 .45 1", "0 .1 .1 .3 .1 .3 .5"):
        with pytest.raises(LabelError, match="columns: expected 11, a box and the 6 numbers of kpt_shape"):
            parse_label_rows(text, 6)


def test_polygons_that_look_like_keypoints_are_noticed():
    rows = parse_label_rows("0 .5 .5 .2 .2 .45 .45 1 .3 .3 0\n0 .1 .1 .3 .1 .3 .5 .2 .2 .1 .15\n1 .5 .5 .2 .2")
    assert rows.keypoint_like == [1]


def test_blank_files_say_that_nothing_is_there():
    assert parse_label_rows(" \n\n").is_blank
    assert not parse_label_rows("0 .5 .5 0 0").is_blank
