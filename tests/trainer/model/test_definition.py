"""Mistakes in a definition get one clear error, which names the file, the row and what would be right."""

from __future__ import annotations

import pytest

from trainer.errors import ConfigError
from trainer.model.graph import build_model, load_definition


@pytest.mark.parametrize(
    "line",
    ["nn.Rellu()", "__import__('os').system('true')", "nn.LeakyReLU(open('x'))", "nn.ReLU(1, 2, 3)", "nn.", "os"],
)
def test_other_activations_are_refused_and_not_run(line):
    with pytest.raises(ConfigError, match=r"'activation' of the model definition yolov5n"):
        build_model({**load_definition("yolov5n"), "activation": line})


@pytest.mark.parametrize(
    ("name", "nearest"), [("yolov5ss", "yolov5s"), ("YOLOv5m", "yolov5m"), ("yolo3-tiny", "yolov3-tiny")]
)
def test_an_unknown_name_gets_the_nearest(name, nearest):
    with pytest.raises(ConfigError) as caught:
        load_definition(name)
    assert caught.value.next_command == f"--cfg {nearest}"


@pytest.mark.parametrize(
    "text", ["just words", "", "- a\n- b", "a: [", "nc: 3\nhead: []", "\x00\x01", "backbone: 3\nhead: 4"]
)
def test_files_that_are_no_definition(text, write_yaml):
    with pytest.raises(ConfigError, match=r"mine\.yaml"):
        load_definition(write_yaml(text))


BAD_ROWS = {
    "unknown layer": ("[-1, 3, C3, [64]]", "[-1, 3, C33, [64]]", "backbone row 4 (layer 4)", "C3"),
    "code as a layer": ("[-1, 3, C3, [64]]", "[-1, 3, \"exec('1')\", [64]]", "backbone row 4 (layer 4)", "one of Conv"),
    "three columns": ("[-1, 3, C3, [64]]", "[-1, 3, C3]", "backbone row 4 (layer 4)", "[from, number"),
    "reference ahead": ("[[-1, 7], 1, Concat", "[[-1, 17], 1, Concat", "head row 3 (layer 14)", "below 14"),
    "reference before the start": ("[[-1, 7], 1, Concat", "[[-1, -15], 1, Concat", "head row 3", "-1 to -14"),
    "reference in words": ("[[-1, 7], 1, Concat", "[[-1, seven], 1, Concat", "head row 3", "a layer's number"),
    "strides that differ": ("[[-1, 7], 1, Concat", "[[-1, 4], 1, Concat", "layer 4: 8", "one stride"),
    "two inputs to one": (
        "[-1, 3, C3, [64, False]]",
        "[[-1, 7], 3, C3, [64, False]]",
        "head row 4",
        "one layer's number",
    ),
    "no channels": ("[-1, 1, Conv, [128, 3, 2]]", "[-1, 1, Conv, []]", "backbone row 8", "output channels first"),
    "too many arguments": ("[-1, 1, SPPF, [128, 5]]", "[-1, 1, SPPF, [128, 5, 5, 5]]", "backbone row 10", "SPPF"),
    "number of nothing": ("[-1, 3, C3, [64]]", "[-1, 0, C3, [64]]", "backbone row 4", "from 1"),
    "bad mode": ("'nearest'", "'nearst'", "head row 2 (layer 13)", "nearst"),
    "lost padding": ("[-1, 1, nn.ZeroPad2d, [[0, 1, 0, 1]]]", "[-1, 1, nn.ZeroPad2d, [0]]", "head row 3", "fails on"),
    "no head": ("[[15, 16], 1, Detect, [nc, anchors]]", "[-1, 1, Conv, [64]]", "head row 6", "one Detect"),
    "head of other classes": ("Detect, [nc, anchors]", "Detect, [80, anchors]", "head row 6", "[nc, anchors]"),
    "levels": ("anchors: 3", "anchors: [[1, 2, 3, 4]]", "head row 6", "one row per level"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_named(case, write_yaml, every_layer):
    good, bad, place, hint = BAD_ROWS[case]
    assert good in every_layer
    with pytest.raises(ConfigError) as caught:
        build_model(load_definition(write_yaml(every_layer.replace(good, bad))))
    message = str(caught.value)
    assert "mine.yaml" in message
    assert place in message
    assert hint in message


@pytest.mark.parametrize(
    "change",
    [
        {"nc": 0},
        {"nc": "many"},
        {"width_multiple": -1},
        {"depth_multiple": "deep"},
        {"anchors": 0},
        {"anchors": [[1, 2, 3]]},
        {"anchors": [[1, 2], [1, 2], [3, -4]]},
        {"anchors": "three"},
        {"anchors": [[1, 2], [1, 2, 3, 4], [1, 2]]},
        {"ch": 4},
    ],
    ids=str,
)
def test_a_bad_value_is_named(change):
    with pytest.raises(ConfigError) as caught:
        build_model({**load_definition("yolov5n"), **change})
    assert next(iter(change)) in str(caught.value)
    assert "yolov5n" in str(caught.value)
