"""Wraps detectors in the form that is exported: images in, boxes out, and nothing of training left."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trainer.boxes import xyxy_from_cxcywh
from trainer.model.graph import DetectionModel
from trainer.model.postprocess import nms_operator


class ExportedDetector(nn.Module):
    """images_bchw of 0 to 1 to predictions (B, N, 5 + classes), float32; see DetectionModel."""

    def __init__(self, model: DetectionModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images_bchw: Tensor) -> Tensor:
        return self.model(images_bchw)[0]


class SuppressedDetector(nn.Module):
    """images_bchw of 0 to 1 to detections (K, 7): image, x1, y1, x2, y2, score, class.

    By image, then by falling score; as ``non_max_suppression`` with one class a box.
    """

    def __init__(
        self, model: DetectionModel, *, confidence_threshold: float, iou_threshold: float, max_detections: int
    ) -> None:
        super().__init__()
        # Loading it while the graph is recorded would become part of it.
        nms_operator()

        self.model = model
        self.confidence_threshold = confidence_threshold
        self.iou_threshold = iou_threshold
        self.max_detections = max_detections

    def forward(self, images_bchw: Tensor) -> Tensor:
        decoded = self.model(images_bchw)[0]
        boxes = xyxy_from_cxcywh(decoded[..., :4])
        scores = decoded[..., 5:] * decoded[..., 4:5]
        # A box stands for its best class only; the others score nothing.
        scores = torch.where(scores == scores.max(dim=2, keepdim=True)[0], scores, torch.zeros_like(scores))
        scores = scores.permute(0, 2, 1)
        selected = _OnnxNms.apply(boxes, scores, self.max_detections, self.iou_threshold, self.confidence_threshold)
        image, label, row = selected[:, 0], selected[:, 1], selected[:, 2]
        kept = torch.cat(
            (
                image[:, None].float(),
                boxes[image, row],
                scores[image, label, row][:, None],
                label[:, None].float(),
            ),
            dim=1,
        )
        # Equal keys keep their order in ONNX, so the second sort leaves scores falling within an image.
        kept = kept[kept[:, 5].sort(dim=0, descending=True)[1]]
        kept = kept[kept[:, 0].sort(dim=0)[1]]
        every_image = torch.arange(images_bchw.shape[0], device=kept.device)
        belongs = (kept[:, :1] == every_image[None, :].to(kept.dtype)).to(torch.int64)
        rank = (belongs.cumsum(0) * belongs).sum(1)
        return kept[rank <= self.max_detections]


class _OnnxNms(torch.autograd.Function):
    """ONNX's NonMaxSuppression: rows of image, class, box. It looks at each class by itself."""

    @staticmethod
    def forward(
        ctx: Any, boxes: Tensor, scores: Tensor, max_detections: int, iou_threshold: float, confidence_threshold: float
    ) -> Tensor:
        """Selects from boxes (B, N, 4), scores (B, C, N): (K, 3) int64; used while the graph is recorded."""
        nms = nms_operator()
        rows = [boxes.new_zeros((0, 3), dtype=torch.int64)]
        for image in range(boxes.shape[0]):
            for label in range(scores.shape[1]):
                of_class = scores[image, label]
                above = (of_class > confidence_threshold).nonzero().flatten()
                kept = above[nms(boxes[image][above], of_class[above], iou_threshold)[:max_detections]]
                where = kept.new_tensor([[image, label]]).expand(len(kept), 2)
                rows.append(torch.cat((where, kept[:, None]), dim=1))
        return torch.cat(rows)

    @staticmethod
    def symbolic(
        g: Any, boxes: Any, scores: Any, max_detections: int, iou_threshold: float, confidence_threshold: float
    ) -> Any:
        """Records ONNX's operator itself."""
        limits = (
            torch.tensor([max_detections], dtype=torch.int64),
            torch.tensor([iou_threshold], dtype=torch.float32),
            torch.tensor([confidence_threshold], dtype=torch.float32),
        )
        constants = [g.op("Constant", value_t=limit) for limit in limits]
        selected = g.op("NonMaxSuppression", boxes, scores, *constants)
        selected.setType(boxes.type().with_dtype(torch.int64).with_sizes([None, 3]))
        return selected
