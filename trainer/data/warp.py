"""Random affine and perspective transforms: pixels, boxes and polygons move together."""

from __future__ import annotations

import math

import cv2
import numpy as np

from trainer.data.augment import AugmentationSettings, Sample
from trainer.data.images import FILL

_MIN_SIDE_PX = 2.0
_MAX_ASPECT = 100.0
_MIN_AREA_SHARE = 0.10
_MIN_AREA_SHARE_POLYGON = 0.01


def random_warp(
    sample: Sample,
    settings: AugmentationSettings,
    generator: np.random.Generator,
    *,
    output_hw: tuple[int, int],
    canvas_hw: tuple[int, int] | None = None,
    left_top: tuple[int, int] = (0, 0),
) -> Sample:
    """Rotates, scales, shears, shifts and tilts a sample around its centre into an image of ``output_hw``.

    The sample's image may lie at ``left_top`` of a larger grey canvas of ``canvas_hw``, which is never made. Objects
    are cut at the output's border and dropped where too little is left of them. Polygons are used up: each becomes
    the box around what can be seen of it.
    """
    canvas_hw = canvas_hw or sample.shape_hw
    matrix, scale = draw_matrix(settings, generator, canvas_hw, output_hw)
    placed = matrix @ _shift(*left_top)
    image = _warp_image(sample.image, placed, output_hw)
    boxes = _warp_objects(sample, placed, scale, output_hw)
    return Sample(image, boxes)


def draw_matrix(
    settings: AugmentationSettings,
    generator: np.random.Generator,
    canvas_hw: tuple[int, int],
    output_hw: tuple[int, int],
) -> tuple[np.ndarray, float]:
    """A random 3 x 3 matrix from canvas to output, in pixel coordinates, and how much it enlarges.

    Always draws eight numbers, so that one setting does not change what another draws.
    """
    tilt_x, tilt_y, turn, grow, shear_x, shear_y, move_x, move_y = generator.uniform(-1.0, 1.0, 8)
    centre = _shift(-canvas_hw[1] / 2, -canvas_hw[0] / 2)
    perspective = np.eye(3)
    perspective[2, :2] = tilt_x * settings.perspective, tilt_y * settings.perspective
    scale = max(1.0 + grow * settings.scale, 0.01)
    rotation = np.eye(3)
    rotation[:2] = cv2.getRotationMatrix2D((0.0, 0.0), turn * settings.degrees, scale)
    shear = np.eye(3)
    shear[0, 1] = math.tan(math.radians(shear_x * settings.shear))
    shear[1, 0] = math.tan(math.radians(shear_y * settings.shear))
    place = _shift(
        (0.5 + move_x * settings.translate) * output_hw[1], (0.5 + move_y * settings.translate) * output_hw[0]
    )
    return place @ shear @ rotation @ perspective @ centre, scale


def _shift(x: float, y: float) -> np.ndarray:
    matrix = np.eye(3)
    matrix[:2, 2] = x, y
    return matrix


def _warp_image(image: np.ndarray, matrix: np.ndarray, output_hw: tuple[int, int]) -> np.ndarray:
    """The image seen through ``matrix``, grey where there is none; nothing is interpolated for a whole-pixel shift."""
    height, width = output_hw
    left, top = (round(float(v)) for v in matrix[:2, 2])
    if np.allclose(matrix, _shift(left, top), atol=1e-9) and min(left, top) >= 0:
        bottom, right = height - top - image.shape[0], width - left - image.shape[1]
        if min(bottom, right) >= 0:
            return cv2.copyMakeBorder(image, top, bottom, left, right, cv2.BORDER_CONSTANT, value=(FILL,) * 3)
    if matrix[2, 0] == 0 and matrix[2, 1] == 0:
        return cv2.warpAffine(image, matrix[:2], (width, height), borderValue=(FILL, FILL, FILL))
    return cv2.warpPerspective(image, matrix, (width, height), borderValue=(FILL, FILL, FILL))


def _warp_objects(sample: Sample, matrix: np.ndarray, scale: float, output_hw: tuple[int, int]) -> np.ndarray:
    """The boxes (m, 5) that can still be seen, cut at the border."""
    before = sample.boxes
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
    for at, polygon in enumerate(sample.segments):
        if len(polygon):
            points, in_front = _warp_points(polygon, matrix)
            visible[at] = bool(in_front.all())
            after[at] = visible_bounds(points, output_hw)
            min_share[at] = _MIN_AREA_SHARE_POLYGON
    keep = visible & _is_worth_keeping(before[:, 1:] * scale, after, min_share)
    return np.concatenate((before[keep, :1], after[keep].astype(np.float32)), axis=1)


def _warp_points(points: np.ndarray, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points (n, 2) through ``matrix``, and which of them lie in front of the viewer."""
    homogeneous = points.astype(np.float64) @ matrix[:, :2].T + matrix[:, 2]
    depth = homogeneous[:, 2]
    in_front = depth > 1e-6
    return homogeneous[:, :2] / np.where(in_front, depth, 1.0)[:, None], in_front


def _is_worth_keeping(before_xyxy: np.ndarray, after_xyxy: np.ndarray, min_share: np.ndarray) -> np.ndarray:
    """Which boxes (n,) are still large enough, in themselves and beside what they were, and not mere slivers."""
    w1, h1 = (before_xyxy[:, 2:] - before_xyxy[:, :2]).T
    w2, h2 = (after_xyxy[:, 2:] - after_xyxy[:, :2]).T
    aspect = np.maximum(w2 / (h2 + 1e-16), h2 / (w2 + 1e-16))
    large = (w2 > _MIN_SIDE_PX) & (h2 > _MIN_SIDE_PX)
    return large & (w2 * h2 / (w1 * h1 + 1e-16) > min_share) & (aspect < _MAX_ASPECT)


def visible_bounds(polygon: np.ndarray, output_hw: tuple[int, int]) -> np.ndarray:
    """left, top, right, bottom of the part of a polygon inside the image; zeros where nothing is.

    Sutherland and Hodgman, "Reentrant polygon clipping" (1974): against one border after the other.
    """
    points = np.asarray(polygon, np.float64)
    for axis, limit in ((0, output_hw[1]), (1, output_hw[0])):
        for sign, border in ((1.0, 0.0), (-1.0, float(limit))):
            distance = sign * (points[:, axis] - border)
            if distance.min() >= 0:
                continue
            points = _clip(points, distance)
            if not len(points):
                return np.zeros(4)
    return np.concatenate((points.min(axis=0), points.max(axis=0)))


def _clip(points: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """The points of a polygon on the inner side of a line, and where its edges cross it, in no particular form."""
    following, distance_following = np.roll(points, -1, axis=0), np.roll(distance, -1)
    crosses = (distance >= 0) != (distance_following >= 0)
    share = distance[crosses] / (distance[crosses] - distance_following[crosses])
    crossings = points[crosses] + share[:, None] * (following[crosses] - points[crosses])
    slots = np.concatenate((np.flatnonzero(distance >= 0) * 2, np.flatnonzero(crosses) * 2 + 1))
    clipped = np.concatenate((points[distance >= 0], crossings))
    return clipped[np.argsort(slots, kind="stable")]
