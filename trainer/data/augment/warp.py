"""Warps images and their boxes and polygons by random affine and perspective transforms."""

from __future__ import annotations

import math

import cv2
import numpy as np

from trainer.data.augment.basic import AugmentationSettings, Sample
from trainer.data.augment.canvas import Canvas
from trainer.data.augment.polygons import bounds_xyxy, clip_polygon
from trainer.data.images import FILL

_MIN_SIDE_PX = 2.0
_MAX_ASPECT = 100.0
_MIN_AREA_SHARE = 0.10
_MIN_AREA_SHARE_POLYGON = 0.01


def random_warp(
    canvas: Canvas, settings: AugmentationSettings, generator: np.random.Generator, output_hw: tuple[int, int]
) -> Sample:
    """Rotates, scales, shears, shifts and tilts a canvas around its center into an image of ``output_hw``.

    Objects are cut at the output's border and dropped if too little of them is visible. The result has no polygons:
    each polygon becomes the box around its visible part.
    """
    matrix, scale = draw_matrix(settings, generator, canvas.canvas_hw, output_hw)
    is_upright = not matrix[[0, 1, 2, 2], [1, 0, 0, 1]].any()
    image, matrix = _crop_upright(canvas, matrix, output_hw) if is_upright else _warp(canvas, matrix, output_hw)
    return Sample(image, _warp_objects(canvas, matrix, scale, output_hw))


def draw_matrix(
    settings: AugmentationSettings,
    generator: np.random.Generator,
    canvas_hw: tuple[int, int],
    output_hw: tuple[int, int],
) -> tuple[np.ndarray, float]:
    """Draws a 3 x 3 matrix from canvas to output, in pixel coordinates, and returns it with its scale.

    Always draws eight numbers, so that one setting does not change the numbers of another.
    """
    tilt_x, tilt_y, turn, grow, shear_x, shear_y, move_x, move_y = generator.uniform(-1.0, 1.0, 8)
    center = _shift(-canvas_hw[1] / 2, -canvas_hw[0] / 2)
    perspective = np.eye(3)
    perspective[2, :2] = tilt_x * settings.perspective, tilt_y * settings.perspective
    scale = max(1.0 + grow * settings.scale, 0.01)
    rotation = np.eye(3)
    rotation[:2] = cv2.getRotationMatrix2D((0.0, 0.0), turn * settings.degrees, scale)
    shear = np.eye(3)
    shear[0, 1] = math.tan(math.radians(shear_x * settings.shear))
    shear[1, 0] = math.tan(math.radians(shear_y * settings.shear))
    translation = _shift(
        (0.5 + move_x * settings.translate) * output_hw[1], (0.5 + move_y * settings.translate) * output_hw[0]
    )
    return translation @ shear @ rotation @ perspective @ center, scale


def _shift(x: float, y: float) -> np.ndarray:
    matrix = np.eye(3)
    matrix[:2, 2] = x, y
    return matrix


def _crop_upright(canvas: Canvas, matrix: np.ndarray, output_hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the output of a matrix that only scales and shifts, and the rounded matrix.

    The output's window of the canvas is rounded to whole pixels, which changes the scale by a thousandth. Then the
    window can be resized, for a third of the cost of a warp, and boxes still fit to the pixel.
    """
    height, width = output_hw
    (left, right), (top, bottom) = (
        (round(-shift / scale), round((size - shift) / scale))
        for scale, shift, size in ((matrix[0, 0], matrix[0, 2], width), (matrix[1, 1], matrix[1, 2], height))
    )
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    window = canvas.paint(left, top, right, bottom)
    if window.shape[:2] != output_hw:
        window = cv2.resize(window, (width, height), interpolation=cv2.INTER_LINEAR)
    rounded = np.diag((width / (right - left), height / (bottom - top), 1.0))
    return window, rounded @ _shift(-left, -top)


def _warp(canvas: Canvas, matrix: np.ndarray, output_hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the output of any matrix, gray outside the canvas, and the matrix unchanged."""
    height, width = output_hw
    painted = canvas.paint(0, 0, canvas.canvas_hw[1], canvas.canvas_hw[0])
    # OpenCV's coordinates are those of pixel centers, this project's those of pixel edges.
    centered = _shift(-0.5, -0.5) @ matrix @ _shift(0.5, 0.5)
    warp, used = (cv2.warpPerspective, centered) if matrix[2, :2].any() else (cv2.warpAffine, centered[:2])
    return warp(painted, used, (width, height), borderValue=(FILL, FILL, FILL)), matrix


def _warp_objects(canvas: Canvas, matrix: np.ndarray, scale: float, output_hw: tuple[int, int]) -> np.ndarray:
    """Returns the boxes (m, 5) that are still visible, cut at the border."""
    before = canvas.boxes
    if not len(before):
        return np.zeros((0, 5), np.float32)
    height, width = output_hw
    corners = before[:, [1, 2, 3, 4, 1, 4, 3, 2]].reshape(-1, 4, 2)
    warped, in_front = _warp_points(corners.reshape(-1, 2), matrix)
    warped, visible = warped.reshape(-1, 4, 2), np.all(in_front.reshape(-1, 4), axis=1)
    after: np.ndarray = np.concatenate((warped.min(axis=1), warped.max(axis=1)), axis=1)
    after[:, 0::2] = np.clip(after[:, 0::2], 0, width)
    after[:, 1::2] = np.clip(after[:, 1::2], 0, height)
    min_share = np.full(len(before), _MIN_AREA_SHARE)
    for at, polygon in enumerate(canvas.segments):
        if len(polygon):
            points, in_front = _warp_points(polygon, matrix)
            visible[at] = bool(in_front.all())
            after[at] = bounds_xyxy(clip_polygon(points, output_hw))
            min_share[at] = _MIN_AREA_SHARE_POLYGON
    keep = visible & _is_large_enough(before[:, 1:] * scale, after, min_share)
    return np.concatenate((before[keep, :1], after[keep].astype(np.float32)), axis=1)


def _warp_points(points: np.ndarray, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Maps points (n, 2) by ``matrix``; returns the points and which of them lie in front of the viewer, bool (n,)."""
    homogeneous = points.astype(np.float64) @ matrix[:, :2].T + matrix[:, 2]
    depth = homogeneous[:, 2]
    in_front = depth > 1e-6
    return homogeneous[:, :2] / np.where(in_front, depth, 1.0)[:, None], in_front


def _is_large_enough(before_xyxy: np.ndarray, after_xyxy: np.ndarray, min_share: np.ndarray) -> np.ndarray:
    """Returns which boxes are large enough in pixels and as a share of their former area, and not narrow: bool (n,)."""
    w1, h1 = (before_xyxy[:, 2:] - before_xyxy[:, :2]).T
    w2, h2 = (after_xyxy[:, 2:] - after_xyxy[:, :2]).T
    aspect = np.maximum(w2 / (h2 + 1e-16), h2 / (w2 + 1e-16))
    large = (w2 > _MIN_SIDE_PX) & (h2 > _MIN_SIDE_PX)
    return large & (w2 * h2 / (w1 * h1 + 1e-16) > min_share) & (aspect < _MAX_ASPECT)
