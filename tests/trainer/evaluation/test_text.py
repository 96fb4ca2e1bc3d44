"""Text in pictures: every script that a font of the machine has, and one word about the others."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

from trainer.evaluation import fonts, plot_boxes, plots
from trainer.evaluation.text import drawable, put_text, text_size

CELLS = ["红细胞", "白细胞", "血小板"]


def block(size):
    """A square as a sign."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, size), (size, size), (size, 0)):
        pen.lineTo(corner)
    pen.closePath()
    return pen.glyph()


def make_font(path, text):
    """A font in which each character of ``text`` is a black square."""
    signs = {ord(character): f"g{number}" for number, character in enumerate(sorted(set(text)))}
    order = [".notdef", *signs.values()]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(order)
    builder.setupCharacterMap(signs)
    builder.setupGlyf({name: block(700) for name in order})
    builder.setupHorizontalMetrics(dict.fromkeys(order, (800, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Squares", "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=800, usWinAscent=800, usWinDescent=200)
    builder.setupPost()
    builder.save(path)
    return path


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """Says which fonts the machine has besides matplotlib's: a text each."""

    def install(*texts):
        files = tuple(make_font(tmp_path / f"{number}.ttf", text) for number, text in enumerate(texts))
        monkeypatch.setattr(fonts, "_font_files", lambda: files)
        fonts._warn.cache_clear()
        fonts.font_of_size.cache_clear()

    return install


@pytest.mark.parametrize(
    ("text", "shown"),
    [("Äpfel", "Äpfel"), ("猫", "class 3"), ("café\n1", "café 1"), ("", "class 3"), ("猫x", "?x"), ("Жук", "Жук")],
)
def test_text_is_drawn_as_it_is_if_a_font_has_it(installed, text, shown):
    installed()
    assert drawable(text, "class 3") == shown


def test_a_font_of_the_machine_is_found(installed):
    installed("abc", "".join(CELLS) + "0. 9")
    assert [drawable(name, "-") for name in CELLS] == CELLS
    assert drawable("红 猫", "-") == "-"


def ink(image):
    return int((image < 128).any(axis=2).sum())


def test_chinese_names_fill_their_place(installed):
    installed("".join(CELLS))
    image = np.full((60, 200, 3), 255, np.uint8)
    put_text(image, CELLS[0], (10, 40), 1.0, (0, 0, 0))
    width, height, depth = text_size(CELLS[0], 1.0)
    assert 60 <= width <= 80
    # Three squares of 0.7 of 30 pixels.
    assert ink(image) == pytest.approx(3 * 21 * 21, rel=0.1)
    assert ink(image[40 - height : 40 + depth + 1, 10 : 10 + width]) == ink(image)
    assert ink(image[:, :10]) == 0


@pytest.mark.parametrize("at", [(-30, 20), (180, 5), (300, 300), (-500, -500)])
def test_text_may_stand_out_over_the_edge(installed, at):
    installed("".join(CELLS))
    put_text(np.zeros((30, 200, 3), np.uint8), CELLS[0], at, 1.0, (255, 255, 255), 2)


def pictures(folder):
    boxes = [np.array([[0, 10, 10, 60, 60], [2, 30, 30, 90, 90]], float)]
    images = np.full((1, 3, 96, 128), 114, np.uint8)
    plot_boxes.save_image_mosaic(folder / "mosaic.png", images, boxes, CELLS, ["红.jpg"])
    plots.save_confusion_matrix(folder / "matrix.png", np.eye(4), CELLS)
    plots.save_label_statistics(folder / "labels.png", np.full((3, 5), 0.4), CELLS)
    return [(folder / name).read_bytes() for name in ("mosaic.png", "matrix.png", "labels.png")]


def test_pictures_differ_from_those_without_a_font(installed, tmp_path, caplog):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    installed("".join(CELLS) + "红")
    with_font = pictures(tmp_path / "a")
    assert caplog.text == ""
    installed()
    without = pictures(tmp_path / "b")
    assert all(a != b for a, b in zip(with_font, without, strict=True))


def test_the_font_to_install_is_named_once(installed, tmp_path, caplog):
    installed()
    with caplog.at_level(logging.WARNING):
        plot_boxes.draw_boxes(np.zeros((99, 99, 3), np.uint8), np.array([[9, 9, 50, 50]]), np.array([0]), CELLS)
        plot_boxes.draw_boxes(np.zeros((99, 99, 3), np.uint8), np.array([[9, 9, 50, 50]]), np.array([0]), CELLS)
    assert len(caplog.records) == 1
    assert "no font on this machine has 红 细 胞" in caplog.text
    assert "Noto Sans CJK (Debian and Ubuntu: fonts-noto-cjk)" in caplog.text


@pytest.mark.parametrize(
    ("text", "font"), [("ไทย", "Noto Sans Thai"), ("한국어", "Noto Sans CJK"), ("कुत्ता", "Noto Sans Devanagari")]
)
def test_each_script_has_its_font(installed, text, font, caplog):
    installed()
    fonts.warn_of_missing([text])
    assert font in caplog.text


def test_right_to_left_scripts_are_drawn_with_matplotlibs_own_font(installed):
    installed()
    assert drawable("כלב", "-") == "כלב"
    image = np.full((60, 200, 3), 255, np.uint8)
    put_text(image, "כלב", (10, 40), 1.0, (0, 0, 0))
    assert ink(image) > 50
