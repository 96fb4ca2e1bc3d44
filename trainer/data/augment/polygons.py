"""Cuts outlines of objects at the border of an image, and computes their boxes."""

from __future__ import annotations

import numpy as np


def clip_polygon(polygon: np.ndarray, shape_hw: tuple[int, int]) -> np.ndarray:
    """Returns the part of a polygon (n, 2) within an image of this size, without points if no part lies within.

    Cuts at one border after the other: Sutherland and Hodgman, "Reentrant polygon clipping" (1974).
    """
    points = polygon
    for axis, limit in ((0, shape_hw[1]), (1, shape_hw[0])):
        for sign, border in ((1, 0), (-1, limit)):
            distance = sign * (points[:, axis] - border)
            if distance.min() < 0:
                points = _cut(points, distance)
                if not len(points):
                    return points
    return points


def bounds_xyxy(polygon: np.ndarray) -> np.ndarray:
    """Returns left, top, right, bottom of a polygon; zeros for a polygon without points."""
    if not len(polygon):
        return np.zeros(4, polygon.dtype)
    return np.concatenate((polygon.min(axis=0), polygon.max(axis=0)))


def _cut(points: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Returns the polygon's part on the inner side of a line, given each point's distance from the line."""
    following, distance_following = np.roll(points, -1, axis=0), np.roll(distance, -1)
    inside = distance >= 0
    crosses = inside != (distance_following >= 0)
    share = distance[crosses] / (distance[crosses] - distance_following[crosses])
    crossings = points[crosses] + share[:, None] * (following[crosses] - points[crosses])
    # A crossing comes after the point that its edge starts from.
    order = np.argsort(np.concatenate((np.flatnonzero(inside) * 2, np.flatnonzero(crosses) * 2 + 1)), kind="stable")
    return np.concatenate((points[inside], crossings))[order].astype(points.dtype)
