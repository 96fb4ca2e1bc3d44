"""Draws pictures with boxes: training batches, and validation batches with labels beside predictions.

OpenCV draws them, and names in any script that an installed font has. Boxes of a mosaic are rows of class, x1, y1, x2,
y2 in pixels of the batch's images; predictions have a confidence as sixth value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from trainer.evaluation.fonts import warn_of_missing
from trainer.evaluation.text import Color, drawable, put_text, text_size
from trainer.protocol import PREDICT_CONFIDENCE

# Ten hues that most color-blind readers can tell apart (BGR).
_BASE_COLORS: tuple[Color, ...] = (
    (32, 105, 230),
    (200, 130, 20),
    (75, 160, 40),
    (60, 40, 210),
    (190, 90, 150),
    (30, 185, 225),
    (170, 165, 30),
    (150, 60, 235),
    (60, 95, 130),
    (110, 110, 110),
)
_WHITE: Color = (255, 255, 255)
_INK: Color = (40, 40, 40)
_MOSAIC_WIDTH_PX = 1600
_MAX_TILE_PX = 480
_CAPTION_PX = 22
_HEADER_PX = 40
_MAX_LABELLED_BOXES = 12
"""If a tile has more boxes than this, they are drawn without names, which would cover the picture."""


def class_color(class_id: int) -> Color:
    """Returns the BGR color of a class, the same in every picture; colors repeat after 30 classes."""
    base = _BASE_COLORS[class_id % len(_BASE_COLORS)]
    lightness = (class_id // len(_BASE_COLORS)) % 3
    if lightness == 0:
        return base
    target = 255 if lightness == 1 else 0
    blue, green, red = (round(channel + (target - channel) * 0.45) for channel in base)
    return blue, green, red


def class_name(names: Sequence[str], class_id: int) -> str:
    """Returns the name of a class, or "class 7" if the list has no such entry."""
    return names[class_id] if 0 <= class_id < len(names) else f"class {class_id}"


def draw_boxes(
    image_hwc_bgr: np.ndarray,
    boxes_xyxy: np.ndarray,
    class_ids: np.ndarray,
    names: Sequence[str],
    confidences: np.ndarray | None = None,
    *,
    show_names: bool = True,
) -> np.ndarray:
    """Returns a copy of the image with boxes (n, 4) in pixels drawn on it, a color a class, with names and scores.

    Line width and text grow with the image. Boxes of higher confidence are drawn later, on top. Non-finite boxes are
    left out.
    """
    image = np.ascontiguousarray(image_hwc_bgr).copy()
    boxes = np.asarray(boxes_xyxy, np.float64).reshape(-1, 4)
    classes = np.asarray(class_ids).reshape(-1).astype(int).tolist()
    extent = math.sqrt(image.shape[0] * image.shape[1])
    width = max(1, round(extent / 260))
    order = np.arange(len(boxes)) if confidences is None else np.argsort(confidences, kind="stable")
    drawn = [row for row in order.tolist() if np.isfinite(boxes[row]).all()]
    limit = 4.0 * max(image.shape[:2])  # drawing far outside the image overflows OpenCV's integers
    corners = np.clip(np.nan_to_num(boxes), -limit, limit).round().astype(int).tolist()
    for row in drawn:
        x1, y1, x2, y2 = corners[row]
        cv2.rectangle(image, (x1, y1), (x2 - 1, y2 - 1), class_color(classes[row]), width)
    warn_of_missing(class_name(names, classes[row]) for row in drawn if show_names)
    # Names come after all boxes, so that no line runs through a name; the most confident boxes choose first.
    taken: list[list[int]] = []
    for row in reversed(drawn) if show_names else ():
        text = drawable(class_name(names, classes[row]), f"class {classes[row]}")
        if confidences is not None:
            text += f" {float(confidences[row]):.2f}"
        scale = float(np.clip(extent / 900, 0.38, 1.4))
        _draw_tag(image, text, corners[row], class_color(classes[row]), scale, taken)
    return image


def save_image_mosaic(
    path: Path,
    images_bchw: np.ndarray,
    boxes: Sequence[np.ndarray],
    names: Sequence[str],
    captions: Sequence[str],
    max_images: int = 16,
    *,
    title: str = "",
) -> None:
    """Writes a grid of a batch's images with their boxes.

    ``images_bchw`` is uint8 RGB (B, 3, H, W); ``boxes`` and ``captions`` have one entry an image. A header names the
    classes of the boxes. Raises OSError if the file cannot be written.
    """
    _write(path, _mosaic(images_bchw, boxes, names, captions, max_images, title, _MOSAIC_WIDTH_PX))


def save_labels_and_predictions(
    path: Path,
    images_bchw: np.ndarray,
    labels: Sequence[np.ndarray],
    predictions: Sequence[np.ndarray],
    names: Sequence[str],
    captions: Sequence[str],
    max_images: int = 16,
) -> None:
    """Writes a batch twice in one picture: labels on the left, confident predictions on the right.

    Arrays as in save_image_mosaic. Raises OSError if the file cannot be written.
    """
    shown = [_rows(found) for found in predictions]
    shown = [found[found[:, 5] >= PREDICT_CONFIDENCE] if found.shape[1] > 5 else found for found in shown]
    width = _MOSAIC_WIDTH_PX * 3 // 4
    left = _mosaic(images_bchw, labels, names, captions, max_images, "Labels", width)
    title = f"Predictions (confidence {PREDICT_CONFIDENCE:g} and above)"
    right = _mosaic(images_bchw, shown, names, captions, max_images, title, width)
    gap = np.full((left.shape[0], 16, 3), 255, np.uint8)
    _write(path, np.hstack([left, gap, right]))


def _rows(boxes: np.ndarray) -> np.ndarray:
    """Returns boxes as a float array with a row a box, also if there are none."""
    array = np.asarray(boxes, np.float64)
    return array if array.ndim == 2 and array.shape[1] >= 5 else array.reshape(-1, 5)


def _mosaic(
    images_bchw: np.ndarray,
    boxes: Sequence[np.ndarray],
    names: Sequence[str],
    captions: Sequence[str],
    max_images: int,
    title: str,
    width_px: int,
) -> np.ndarray:
    """Draws a header over a grid of tiles, uint8 BGR."""
    count = min(len(images_bchw), max_images)
    columns = max(1, math.ceil(math.sqrt(count)))
    tile_width = min(_MAX_TILE_PX, width_px // columns)
    tiles = [
        _tile(images_bchw[i], _rows(boxes[i]), names, captions[i] if i < len(captions) else "", tile_width)
        for i in range(count)
    ]
    seen = sorted({int(class_id) for i in range(count) for class_id in _rows(boxes[i])[:, 0]})
    if not tiles:
        tiles = [np.full((_MAX_TILE_PX // 4, _MAX_TILE_PX, 3), 255, np.uint8)]
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % columns)
    grid = np.vstack([np.hstack(tiles[start : start + columns]) for start in range(0, len(tiles), columns)])
    return np.vstack([_header(title, seen, names, grid.shape[1]), grid])


def _tile(image_chw: np.ndarray, boxes: np.ndarray, names: Sequence[str], caption: str, width_px: int) -> np.ndarray:
    """Draws one image scaled to a width, with its boxes, a caption below, and a white border."""
    image = cv2.cvtColor(np.ascontiguousarray(image_chw.transpose(1, 2, 0)), cv2.COLOR_RGB2BGR)
    scale = width_px / image.shape[1]
    size = (width_px, max(1, round(image.shape[0] * scale)))
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    confidences = boxes[:, 5] if boxes.shape[1] > 5 else None
    few = len(boxes) <= _MAX_LABELLED_BOXES
    image = draw_boxes(image, boxes[:, 1:5] * scale, boxes[:, 0], names, confidences, show_names=few)
    strip = np.full((_CAPTION_PX, width_px, 3), 255, np.uint8)
    text = _shortened(drawable(caption, ""), width_px - 12, 0.42)
    put_text(strip, text, (6, _CAPTION_PX - 7), 0.42, _INK, 1)
    tile = np.vstack([image, strip])
    cv2.rectangle(tile, (0, 0), (tile.shape[1] - 1, tile.shape[0] - 1), _WHITE, 2)
    return tile


def _header(title: str, class_ids: Sequence[int], names: Sequence[str], width_px: int) -> np.ndarray:
    """Draws a white strip with the title and the colors of as many of the classes as fit."""
    strip = np.full((_HEADER_PX, width_px, 3), 255, np.uint8)
    warn_of_missing(class_name(names, class_id) for class_id in class_ids)
    x, base = 10, _HEADER_PX - 14
    if title:
        put_text(strip, title, (x, base), 0.65, _INK, 2)
        x += _text_width(title, 0.65, 2) + 30
    for position, class_id in enumerate(class_ids):
        text = drawable(class_name(names, class_id), f"class {class_id}")
        rest = f"and {len(class_ids) - position} more"
        if x + 26 + _text_width(text, 0.5) + 20 + _text_width(rest, 0.5) > width_px:
            put_text(strip, rest, (x, base), 0.5, _INK, 1)
            break
        cv2.rectangle(strip, (x, base - 13), (x + 16, base + 3), class_color(class_id), -1)
        put_text(strip, text, (x + 22, base), 0.5, _INK, 1)
        x += 22 + _text_width(text, 0.5) + 20
    return strip


def _draw_tag(
    image: np.ndarray, text: str, box: Sequence[int], color: Color, scale: float, taken: list[list[int]]
) -> None:
    """Draws text on a filled bar at ``box``, inside the image and, if possible, clear of the bars in ``taken``."""
    thickness = 2 if scale > 0.8 else 1
    width, height, base = text_size(text, scale, thickness)
    width, height = width + 4, height + base + 2
    places = [
        (min(max(0, x), max(0, image.shape[1] - width)), min(max(0, y), max(0, image.shape[0] - height)))
        for x, y in ((box[0], box[1] - height), (box[0], box[1]), (box[2] - width, box[3]), (box[0], box[3] - height))
    ]
    free = [(x, y) for x, y in places if not any(_overlap([x, y, x + width, y + height], bar) for bar in taken)]
    x, y = (free or places)[0]
    taken.append([x, y, x + width, y + height])
    cv2.rectangle(image, (x, y), (x + width - 1, y + height - 1), color, -1)
    brightness = 0.114 * color[0] + 0.587 * color[1] + 0.299 * color[2]
    ink = _INK if brightness > 150 else _WHITE
    put_text(image, text, (x + 2, y + height - base), scale, ink, thickness)


def _overlap(first: Sequence[int], second: Sequence[int]) -> bool:
    across = min(first[2], second[2]) > max(first[0], second[0])
    return across and min(first[3], second[3]) > max(first[1], second[1])


def _text_width(text: str, scale: float, thickness: int = 1) -> int:
    return text_size(text, scale, thickness)[0]


def _shortened(text: str, width_px: int, scale: float) -> str:
    """Cuts the middle of ``text`` until it fits; the two ends of a file name tell files apart."""
    keep = len(text)
    short = text
    while keep > 4 and _text_width(short, scale) > width_px:
        keep -= 1
        short = f"{text[: keep // 2]}..{text[-(keep - keep // 2) :]}"
    return short


def _write(path: Path, image: np.ndarray) -> None:
    # OpenCV's own writer returns only False if a write fails; Python's raises OSError with the reason.
    _, encoded = cv2.imencode(path.suffix, image)
    path.write_bytes(encoded.tobytes())
