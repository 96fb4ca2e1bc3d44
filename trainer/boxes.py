"""Computes with boxes. Formats are in the names: ``xyxy`` corners, ``cxcywh`` center and size.

Functions without a suffix take and return torch tensors of shape (..., 4) and keep dtype and device.
Those ending in ``_numpy`` do the same for arrays.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def xyxy_from_cxcywh(boxes_cxcywh: Tensor) -> Tensor:
    """Corners of boxes given by center and size."""
    center, half = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:4] / 2
    return torch.cat((center - half, center + half), dim=-1)


def xyxy_from_cxcywh_numpy(boxes_cxcywh: np.ndarray) -> np.ndarray:
    """Corners of boxes given by center and size."""
    center, half = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:4] / 2
    return np.concatenate((center - half, center + half), axis=-1)


def cxcywh_from_xyxy_numpy(boxes_xyxy: np.ndarray) -> np.ndarray:
    """Returns center and size of boxes given by corners."""
    low, high = boxes_xyxy[..., :2], boxes_xyxy[..., 2:4]
    return np.concatenate(((low + high) / 2, high - low), axis=-1)


def pairwise_iou(boxes1_xyxy: Tensor, boxes2_xyxy: Tensor, eps: float = 1e-7) -> Tensor:
    """Returns the IoU of every box of the first set, (n, 4), with every box of the second, (m, 4): (n, m)."""
    low = torch.maximum(boxes1_xyxy[:, None, :2], boxes2_xyxy[None, :, :2])
    high = torch.minimum(boxes1_xyxy[:, None, 2:4], boxes2_xyxy[None, :, 2:4])
    intersection = (high - low).clamp(min=0).prod(dim=2)
    area1 = (boxes1_xyxy[:, 2:4] - boxes1_xyxy[:, :2]).prod(dim=1)
    area2 = (boxes2_xyxy[:, 2:4] - boxes2_xyxy[:, :2]).prod(dim=1)
    return intersection / (area1[:, None] + area2[None, :] - intersection + eps)


def complete_iou(boxes1_cxcywh: Tensor, boxes2_cxcywh: Tensor, eps: float = 1e-7) -> Tensor:
    """Returns the CIoU of box pairs, (n, 4) with (n, 4): (n,), 1 for equal boxes and below 0 for distant ones.

    Zheng et al., "Distance-IoU Loss" (2020), equations 7 to 11; the trade-off factor takes no gradient.
    """
    x1, y1, w1, h1 = boxes1_cxcywh.unbind(-1)
    x2, y2, w2, h2 = boxes2_cxcywh.unbind(-1)
    left1, right1, top1, bottom1 = x1 - w1 / 2, x1 + w1 / 2, y1 - h1 / 2, y1 + h1 / 2
    left2, right2, top2, bottom2 = x2 - w2 / 2, x2 + w2 / 2, y2 - h2 / 2, y2 + h2 / 2

    overlap_w = (torch.minimum(right1, right2) - torch.maximum(left1, left2)).clamp(min=0)
    overlap_h = (torch.minimum(bottom1, bottom2) - torch.maximum(top1, top2)).clamp(min=0)
    intersection = overlap_w * overlap_h
    iou = intersection / (w1 * h1 + w2 * h2 - intersection + eps)

    hull_w = torch.maximum(right1, right2) - torch.minimum(left1, left2)
    hull_h = torch.maximum(bottom1, bottom2) - torch.minimum(top1, top2)
    diagonal_squared = hull_w**2 + hull_h**2 + eps
    distance_squared = (x1 - x2) ** 2 + (y1 - y2) ** 2

    aspect = (4 / math.pi**2) * (torch.atan(w2 / (h2 + eps)) - torch.atan(w1 / (h1 + eps))) ** 2
    with torch.no_grad():
        trade_off = aspect / (aspect - iou + (1 + eps))
    return iou - (distance_squared / diagonal_squared + aspect * trade_off)
