"""Charts: the right numbers in the right place, and no harm from odd names, 80 classes or no data."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from trainer.evaluation import plots
from trainer.evaluation.plot_boxes import class_color

ODD_NAMES = ["\u732b", "$a_b^{$", "_hidden", "back\\slash", "caf\u00e9", "two\nlines", "x" * 200, ""]
HEADER = (
    "epoch,train/box_loss,train/obj_loss,train/cls_loss,metrics/precision,metrics/recall,metrics/mAP_0.5,"
    "metrics/mAP_0.5:0.95,val/box_loss,val/obj_loss,val/cls_loss,x/lr0,x/lr1,x/lr2"
)
MEAN_BGR = (0x9C, 0x4E, 0x1F)


def names_of(count):
    return (ODD_NAMES + [f"class {index}" for index in range(80)])[:count]


def picture(path):
    image = cv2.imread(str(path))
    assert image is not None
    assert min(image.shape[:2]) > 300
    assert image.std() > 5
    return image


def near(image, color, tolerance=12):
    return np.abs(image.astype(int) - np.array(color)).max(axis=2) <= tolerance


def drawn_by(monkeypatch, draw, *arguments):
    """The figure that a function draws, taken before it becomes a file."""
    figures = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: figures.append(figure))
    draw(Path("unused.png"), *arguments)
    return figures[0]


def write_results(path, epochs, pad=True):
    rows = [HEADER.split(",")]
    for epoch in range(epochs):
        share = (epoch + 1) / max(epochs, 1)
        losses = [0.1 / (epoch + 1)] * 3
        rows.append([str(epoch)] + [f"{v:.5f}" for v in [*losses, share, 0.5, 0.4, 0.3, *losses, 0.01, 0.01, 0.1]])
    path.write_text("\n".join(",".join(f"{cell:>20}" if pad else cell for cell in row) for row in rows) + "\n")


@pytest.mark.parametrize("pad", [True, False])
def test_training_curves_show_the_file(tmp_path, monkeypatch, pad):
    write_results(tmp_path / "results.csv", 10, pad)
    axes = drawn_by(monkeypatch, plots.save_training_curves, tmp_path / "results.csv").axes
    assert len(axes) == 8
    train, val = axes[0].get_lines()
    assert np.allclose(train.get_ydata(), [0.1 / (i + 1) for i in range(10)], atol=1e-5)
    assert val.get_label() == "val"
    assert axes[4].get_title() == "Precision: best 1.000 at epoch 9"
    assert axes[7].get_title().startswith("mAP50-95: best 0.300")
    assert [line.get_label() for line in axes[3].get_lines()] == ["group 0", "group 1", "group 2"]


@pytest.mark.parametrize("content", ["", HEADER, HEADER + "\n0,nan", "epoch,other\n0,1\n", "rubbish\n\x00,,,,\n"])
def test_training_curves_of_torn_files(tmp_path, monkeypatch, content):
    (tmp_path / "results.csv").write_text(content)
    axes = drawn_by(monkeypatch, plots.save_training_curves, tmp_path / "results.csv").axes
    assert [text.get_text() for panel in axes for text in panel.texts] == ["no data"] * 8


def test_training_curves_of_one_epoch(tmp_path):
    write_results(tmp_path / "results.csv", 1)
    plots.save_training_curves(tmp_path / "results.png", tmp_path / "results.csv")
    assert near(picture(tmp_path / "results.png"), MEAN_BGR).sum() > 30


@pytest.mark.parametrize("count", [0, 8, 80])
def test_pr_and_f1_curves_of_any_number_of_classes(tmp_path, recwarn, count):
    grid = np.linspace(0, 1, 1000)
    curves = np.linspace(1, 0.2, 1000)[None] * np.linspace(0.5, 1, count)[:, None]
    plots.save_pr_curve(tmp_path / "pr.png", grid, curves, names_of(count), curves.mean(axis=1))
    plots.save_f1_curve(tmp_path / "f1.png", grid, curves, names_of(count))
    for name in ("pr.png", "f1.png"):
        assert near(picture(tmp_path / name), MEAN_BGR).any() == (count > 0)
    assert not [warning for warning in recwarn if "lyph" in str(warning.message)]


def test_pr_legend_names_each_class_with_its_average_precision(monkeypatch):
    grid = np.linspace(0, 1, 101)
    curves = np.stack([1 - grid, 1 - grid**4])
    figure = drawn_by(monkeypatch, plots.save_pr_curve, grid, curves, ["mug", "_odd"], np.array([0.5, 0.8]))
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["all classes 0.650", "mug 0.500", " _odd 0.800"]
    first, second, mean = figure.axes[0].get_lines()
    assert np.allclose(mean.get_ydata(), (first.get_ydata() + second.get_ydata()) / 2)


def test_many_classes_leave_only_the_mean_in_the_legend(monkeypatch):
    grid = np.linspace(0, 1, 101)
    curves = np.tile(1 - grid, (80, 1))
    figure = drawn_by(monkeypatch, plots.save_pr_curve, grid, curves, names_of(80), np.full(80, 0.5))
    assert len(figure.legends[0].get_texts()) == 1
    assert len(figure.axes[0].get_lines()) == 81


def test_f1_marks_the_best_threshold_of_the_mean(monkeypatch):
    grid = np.linspace(0, 1, 1001)
    curves = np.stack([0.9 - np.abs(grid - 0.3), 0.7 - np.abs(grid - 0.3)])
    figure = drawn_by(monkeypatch, plots.save_f1_curve, grid, curves, ["a", "b"])
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["all classes 0.800 at 0.300", "a 0.900", "b 0.700"]


def test_confusion_columns_are_shares_of_the_true_class(monkeypatch):
    matrix = np.array([[8, 0, 1], [1, 0, 3], [1, 0, 0]])
    figure = drawn_by(monkeypatch, plots.save_confusion_matrix, matrix, ["a", "b"])
    panel = figure.axes[0]
    shown = {(round(t.get_position()[1]), round(t.get_position()[0])): t.get_text() for t in panel.texts}
    assert shown == {(0, 0): "0.80", (1, 0): "0.10", (2, 0): "0.10", (0, 2): "0.25", (1, 2): "0.75"}
    assert [label.get_text() for label in panel.get_yticklabels()] == ["a", "b", "background"]
    assert panel.get_xlabel() == "True"


@pytest.mark.parametrize("count", [1, 8, 80])
def test_confusion_matrix_of_any_number_of_classes(tmp_path, count):
    plots.save_confusion_matrix(tmp_path / "confusion.png", np.eye(count + 1, dtype=int) * 5, names_of(count))
    assert near(picture(tmp_path / "confusion.png"), (0x6B, 0x30, 0x08)).sum() > 500  # the darkest blue, for 1.0


def test_empty_confusion_matrix(tmp_path):
    plots.save_confusion_matrix(tmp_path / "confusion.png", np.zeros((4, 4), int), ["a", "b", "c"])
    picture(tmp_path / "confusion.png")


@pytest.mark.parametrize(("count", "boxes"), [(1, 0), (8, 1), (80, 3000)])
def test_label_statistics_of_any_size(tmp_path, count, boxes):
    generator = np.random.default_rng(0)
    rows = np.hstack([generator.integers(0, count, (boxes, 1)), generator.uniform(0.1, 0.9, (boxes, 4))])
    plots.save_label_statistics(tmp_path / "labels.png", rows, names_of(count))
    picture(tmp_path / "labels.png")


def test_label_statistics_count_what_is_there(monkeypatch, bccd_yaml):
    files = sorted((bccd_yaml.parent / "labels" / "train").glob("*.txt"))
    rows = np.concatenate([np.loadtxt(path, ndmin=2) for path in files])
    figure = drawn_by(monkeypatch, plots.save_label_statistics, rows, ["RBC", "WBC", "Platelets"])
    counts, shapes, centers, sizes = figure.axes
    assert [bar.get_height() for bar in counts.patches] == np.bincount(rows[:, 0].astype(int)).tolist()
    assert str(len(rows)) in counts.get_title()
    for panel in (centers, sizes):
        cells = np.square(panel.collections[0].get_array())
        assert round(float(cells.sum())) == len(rows)
    assert centers.yaxis_inverted()
    assert not sizes.yaxis_inverted()
    assert near(np.asarray(shapes.images[0].get_array())[:, :, ::-1], class_color(1)).sum() > 200


def test_charts_touch_no_global_state(tmp_path):
    """A fresh interpreter: matplotlib loads with the first chart, pyplot never, whatever backend the user asks for."""
    script = """
import sys, time
from pathlib import Path
import numpy as np
from trainer.evaluation import plots
assert "matplotlib" not in sys.modules
plots.save_confusion_matrix(Path(sys.argv[1]) / "warm.png", np.eye(3), ["a", "b"])
assert "matplotlib.pyplot" not in sys.modules
"""
    environment = {"PATH": "/usr/bin:/bin", "MPLBACKEND": "TkAgg", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    root = Path(__file__).resolve().parents[3]
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_unwritable_path_is_an_oserror(tmp_path):
    with pytest.raises(OSError, match="absent"):
        plots.save_confusion_matrix(tmp_path / "absent" / "a.png", np.eye(2), ["a"])
