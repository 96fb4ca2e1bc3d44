"""Draws charts of a run: training curves, precision-recall and F1 curves, confusion matrix, label statistics.

Each function takes plain arrays and writes one file. matplotlib is imported when a chart is drawn, and only its
object interface is used, so that no global figure or backend is touched. Each function raises OSError if its file
cannot be written; a caller that trains should catch that error.
"""

from __future__ import annotations

import csv
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from trainer.evaluation.fonts import family_names, warn_of_missing
from trainer.evaluation.plot_boxes import class_color

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAX_LEGEND_CLASSES = 20
_MAX_ANNOTATED_CLASSES = 25
_MAX_OVERLAID_BOXES = 1000
_MEAN_COLOR = "#1f4e9c"
_LOSS_TITLES = {"box_loss": "Box loss", "obj_loss": "Objectness loss", "cls_loss": "Class loss"}
_METRIC_TITLES = {
    "metrics/precision": "Precision",
    "metrics/recall": "Recall",
    "metrics/mAP_0.5": "mAP50",
    "metrics/mAP_0.5:0.95": "mAP50-95",
}


def save_training_curves(path: Path, results_csv: Path) -> None:
    """Draws results.csv: losses and learning rates above, precision, recall and mean average precision below.

    Columns are YOLOv5's (``epoch``, ``train/box_loss``, ... ``x/lr2``), padded or not. A missing column leaves its
    panel empty; values that are not numbers are gaps.
    """
    columns = _read_results(results_csv)
    epochs = columns.get("epoch", np.zeros(0))
    figure = _new_figure(15, 7)
    axes = figure.subplots(2, 4)
    for panel, (suffix, title) in zip(axes[0], _LOSS_TITLES.items(), strict=False):
        _draw_series(panel, epochs, {part: columns.get(f"{part}/{suffix}") for part in ("train", "val")})
        panel.set_title(title)
    _draw_series(axes[0][3], epochs, {f"group {i}": columns.get(f"x/lr{i}") for i in range(3)})
    axes[0][3].set_title("Learning rate")
    for panel, (column, title) in zip(axes[1], _METRIC_TITLES.items(), strict=True):
        values = columns.get(column)
        _draw_series(panel, epochs, {"": values})
        if values is not None and np.isfinite(values).any():
            best = int(np.nanargmax(values))
            panel.plot(epochs[best], values[best], "o", color="#d1495b")
            title += f": best {values[best]:.3f} at epoch {epochs[best]:.0f}"
        panel.set_title(title)
        panel.set_xlabel("Epoch")
        panel.set_ylim(0, 1.02)
    _save(figure, path)


def save_pr_curve(
    path: Path,
    recall: np.ndarray,
    precision_curves: np.ndarray,
    names: Sequence[str],
    average_precisions: np.ndarray,
) -> None:
    """Draws precision over recall at IoU 0.5 for each class, and the mean over classes.

    ``recall`` is (points,), ``precision_curves`` (classes, points), ``names`` and ``average_precisions`` (classes,)
    have the same rows.
    """
    scores = np.asarray(average_precisions, np.float64)
    mean = f"{scores.mean():.3f}" if scores.size else "-"
    labels = [f"{name} {score:.3f}" for name, score in zip(names, scores.tolist(), strict=False)]
    figure, panel = _draw_class_curves(recall, precision_curves, labels, f"all classes {mean}")
    panel.set_title("Precision and recall at IoU 0.5 (average precision in the legend)")
    panel.set_xlabel("Recall")
    panel.set_ylabel("Precision")
    _save(figure, path)


def save_f1_curve(path: Path, confidence: np.ndarray, f1_curves: np.ndarray, names: Sequence[str]) -> None:
    """Draws F1 over the confidence threshold for each class, and the mean with its best threshold marked.

    ``confidence`` is (points,), ``f1_curves`` (classes, points), ``names`` have the same rows.
    """
    curves = np.asarray(f1_curves, np.float64).reshape(-1, len(confidence))
    labels = [f"{name} {best:.3f}" for name, best in zip(names, curves.max(axis=1, initial=0).tolist(), strict=False)]
    best, threshold = 0.0, math.nan
    if curves.size:
        top = int(curves.mean(axis=0).argmax())
        best, threshold = float(curves.mean(axis=0)[top]), float(confidence[top])
    figure, panel = _draw_class_curves(confidence, curves, labels, f"all classes {best:.3f} at {threshold:.3f}")
    if curves.size:
        panel.axvline(threshold, color=_MEAN_COLOR, linestyle=":", linewidth=1.2)
    panel.set_title("F1 over the confidence threshold (best F1 in the legend)")
    panel.set_xlabel("Confidence")
    panel.set_ylabel("F1")
    _save(figure, path)


def save_confusion_matrix(path: Path, matrix: np.ndarray, names: Sequence[str]) -> None:
    """Draws a confusion matrix (C + 1, C + 1): rows predicted, columns true, the last of each background.

    Each column is divided by its sum, so a cell is the share of a true class that was predicted as the row's class.
    """
    counts = np.asarray(matrix, np.float64)
    sums = counts.sum(axis=0, keepdims=True)
    shares = np.divide(counts, sums, out=np.full_like(counts, np.nan), where=sums > 0)
    ticks = [*_plain(names), "background"]
    many = len(ticks) > _MAX_ANNOTATED_CLASSES
    side = min(15.0, 4.5 + 0.55 * len(ticks))
    figure = _new_figure(side + 1, side)
    panel = figure.subplots()
    picture = panel.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(picture, ax=panel, shrink=0.6, fraction=0.04, pad=0.01)
    size = 9.0 if not many else max(3.0, min(9.0, 520 / len(ticks)))
    panel.set_xticks(range(len(ticks)), ticks, rotation=90 if len(ticks) > 5 else 0, fontsize=size)
    panel.set_yticks(range(len(ticks)), ticks, fontsize=size)
    panel.set_xlabel("True")
    panel.set_ylabel("Predicted")
    panel.set_title("Confusion matrix, each true class as shares")
    if not many:
        for row, column in np.argwhere(shares >= 0.005).tolist():
            share = shares[row, column]
            ink = "white" if share > 0.5 else "#333333"
            panel.text(column, row, f"{share:.2f}", ha="center", va="center", color=ink, fontsize=8)
    _save(figure, path)


def save_label_statistics(path: Path, boxes: np.ndarray, names: Sequence[str]) -> None:
    """Draws statistics of a data set's labels: boxes a class, box shapes, positions of centers, widths and heights.

    ``boxes`` is (n, 5): class, then center x, center y, width, height as shares of the image.
    """
    rows = np.asarray(boxes, np.float64).reshape(-1, 5)
    figure = _new_figure(14, 9)
    axes = figure.subplot_mosaic([["counts"] * 3, ["shapes", "centers", "sizes"]], height_ratios=[0.8, 1])
    _draw_class_counts(axes["counts"], rows[:, 0].astype(int), names)
    axes["shapes"].imshow(_overlaid_boxes(rows), extent=(0, 1, 1, 0), interpolation="bilinear")
    axes["shapes"].set(title="Box shapes, centered", xlabel="Share of image width", ylabel="Share of image height")
    _draw_heat_map(axes["centers"], rows[:, 1], rows[:, 2], 1.0)
    axes["centers"].invert_yaxis()
    axes["centers"].set(title="Box centers", xlabel="x (share of image width)", ylabel="y (share of image height)")
    largest = float(rows[:, 3:].max(initial=0.0)) or 1.0
    _draw_heat_map(axes["sizes"], rows[:, 3], rows[:, 4], min(1.0, largest * 1.05))
    axes["sizes"].set(title="Box sizes", xlabel="Width (share of image width)", ylabel="Height (share of image height)")
    _save(figure, path)


def _new_figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=100, layout="constrained")


def _save(figure: Figure, path: Path) -> None:
    from matplotlib.text import Text

    texts: list[Text] = figure.findobj(Text)
    words = [text.get_text() for text in texts]
    warn_of_missing(words)
    families = family_names(words)
    for text in texts:
        text.set_fontfamily(families)
    with warnings.catch_warnings():
        # matplotlib warns of each character that no font has, which has been said.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(path)


def _plain(names: Sequence[str]) -> list[str]:
    """Returns names that matplotlib draws unchanged: no formula between dollars, no leading underscore, one line."""
    safe = [name.replace("\\", "/").replace("$", r"\$").replace("\n", " ")[:32] for name in names]
    return [f" {name}" if name.startswith("_") else name for name in safe]


def _hex_color(class_id: int) -> str:
    blue, green, red = class_color(class_id)
    return f"#{red:02x}{green:02x}{blue:02x}"


def _read_results(results_csv: Path) -> dict[str, np.ndarray]:
    """Reads the columns of a CSV file by name, float64; cells that are no numbers or are missing become NaN."""
    with results_csv.open(newline="") as file:
        whole = (line.replace("\0", "") for line in file)  # a crash can leave zero bytes, which Python 3.10 refuses
        lines = [[cell.strip() for cell in line] for line in csv.reader(whole) if line]
    if not lines:
        return {}
    columns: Mapping[int, list[float]] = {index: [] for index in range(len(lines[0]))}
    for line in lines[1:]:
        for index, values in columns.items():
            values.append(_number(line[index]) if index < len(line) else math.nan)
    return {name: np.array(columns[index], np.float64) for index, name in enumerate(lines[0])}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _draw_series(panel: Axes, epochs: np.ndarray, series: Mapping[str, np.ndarray | None]) -> None:
    """Draws lines over epochs, with points on them for fewer than 25 epochs, so that a single epoch is visible."""
    shown = 0
    for (label, values), color in zip(series.items(), (_MEAN_COLOR, "#e07a1f", "#5a9e3f"), strict=False):
        if values is not None and np.isfinite(values).any():
            panel.plot(epochs, values, color=color, label=label, linewidth=1.6, marker="." if len(epochs) < 25 else "")
            shown += 1
    if not shown:
        panel.text(0.5, 0.5, "no data", transform=panel.transAxes, ha="center", va="center", color="#888888")
    if shown and any(series):
        panel.legend(fontsize=8)
    panel.grid(alpha=0.3)


def _draw_class_curves(
    grid: np.ndarray, curves: np.ndarray, labels: Sequence[str], mean_label: str
) -> tuple[Figure, Axes]:
    """Draws one line a class under a bold mean: few classes colored and named, many thin and gray."""
    figure = _new_figure(10, 6.5)
    panel = figure.subplots()
    rows = np.asarray(curves, np.float64).reshape(-1, len(grid))
    few = len(rows) <= _MAX_LEGEND_CLASSES
    handles, texts = [], []
    for row, values in enumerate(rows):
        color = _hex_color(row) if few else "#b0b0b0"
        (line,) = panel.plot(grid, values, color=color, linewidth=1.4 if few else 0.6)
        if few and row < len(labels):
            handles.append(line)
            texts.append(labels[row])
    if len(rows):
        (line,) = panel.plot(grid, rows.mean(axis=0), color=_MEAN_COLOR, linewidth=3)
        figure.legend([line, *handles], [mean_label, *_plain(texts)], loc="outside right upper", fontsize=9)
    else:
        panel.text(0.5, 0.5, "no data", ha="center", va="center", color="#888888")
    panel.set_xlim(0, 1)
    panel.set_ylim(0, 1.02)
    panel.grid(alpha=0.3)
    return figure, panel


def _draw_class_counts(panel: Axes, class_ids: np.ndarray, names: Sequence[str]) -> None:
    """Draws a bar a class with its number of boxes."""
    counts = np.bincount(class_ids[(class_ids >= 0) & (class_ids < len(names))], minlength=len(names))
    bars = panel.bar(range(len(names)), counts, color=[_hex_color(i) for i in range(len(names))])
    many = len(names) > _MAX_ANNOTATED_CLASSES
    if not many:
        panel.bar_label(bars, fontsize=8)
    size = 9.0 if not many else max(3.0, min(9.0, 600 / len(names)))
    panel.set_xticks(range(len(names)), _plain(names), rotation=90 if len(names) > 12 else 0, fontsize=size)
    panel.set_xlim(-0.7, max(len(names), 1) - 0.3)
    panel.set(title=f"Boxes a class ({len(class_ids)} in all)", ylabel="Boxes")


def _overlaid_boxes(rows: np.ndarray, size: int = 800) -> np.ndarray:
    """Draws boxes over one another around the middle, large ones first: uint8 RGB (size, size, 3)."""
    canvas = np.full((size, size, 3), 255, np.uint8)
    chosen = rows[np.isfinite(rows).all(axis=1)]
    chosen = chosen[np.linspace(0, len(chosen) - 1, min(len(chosen), _MAX_OVERLAID_BOXES)).astype(int)]
    for class_id, _, _, width, height in chosen[np.argsort(-chosen[:, 3] * chosen[:, 4])].tolist():
        half = (round(width * size / 2), round(height * size / 2))
        corner = (size // 2 - half[0], size // 2 - half[1])
        cv2.rectangle(canvas, corner, (size // 2 + half[0], size // 2 + half[1]), class_color(int(class_id))[::-1], 1)
    return canvas


def _draw_heat_map(panel: Axes, x: np.ndarray, y: np.ndarray, limit: float) -> None:
    """Draws the number of points in each of 50 by 50 cells from 0 to ``limit``, as its root so that rare ones show."""
    edges = np.linspace(0, limit, 51)
    counts, _, _ = np.histogram2d(x, y, bins=(edges, edges))
    panel.pcolormesh(edges, edges, np.sqrt(counts.T), cmap="Blues", rasterized=True)
    panel.set_aspect("equal")
