"""Loads a trained detector ready for use: batch norms folded, on its device, at its precision."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trainer.errors import ConfigError, WeightsError
from trainer.model.graph import DetectionModel, fuse_batch_norm
from trainer.model.postprocess import non_max_suppression
from trainer.protocol import BEST_WEIGHTS, DEFAULT_IMAGE_SIZE
from trainer.runtime.reporter import Reporter
from trainer.weights.load import load_model


@dataclass(frozen=True)
class Detector:
    """A model for inference alone. The weights file stays as it is."""

    path: Path
    model: DetectionModel
    names: tuple[str, ...]
    device: torch.device
    dtype: torch.dtype
    trained_size: int | None
    """Pixels of the long side of the images it was trained on, if the file has them."""

    @property
    def stride(self) -> int:
        """Returns the number that the sides of its images are multiples of."""
        return self.model.size_grid

    @torch.inference_mode()
    def __call__(self, images_bchw: Tensor) -> Tensor:
        """Turns uint8 RGB images (B, 3, H, W) into predictions (B, N, 5 + classes), float32; see DetectionModel."""
        images = images_bchw.to(self.device, non_blocking=True, memory_format=torch.channels_last)
        decoded, _ = self.model(torch.mul(images, 1 / 255).to(self.dtype))
        return decoded

    def warm_up(self, image_size: int) -> None:
        """Runs an empty image once, so that no measured time contains first uses (imports, a GPU's start)."""
        empty = torch.zeros((1, 3, image_size, image_size), dtype=torch.uint8)
        non_max_suppression(self(empty), confidence_threshold=0.5, iou_threshold=0.5)

    def image_size(self, wanted: int | None, reporter: Reporter) -> int:
        """Returns ``wanted``, else the size trained on, else 640, as the next multiple of the stride from 2 on.

        Reports a ``wanted`` size that is no such multiple.
        """
        size = wanted or self.trained_size or DEFAULT_IMAGE_SIZE
        rounded = max(-(-size // self.stride), 2) * self.stride
        if wanted and rounded != wanted:
            reporter.say(f"--imgsz {wanted} cannot be used with the model's stride {self.stride}; {rounded} is used")
        return rounded


def load_detector(path: Path, device: torch.device, *, half: bool = False) -> Detector:
    """Returns the detector of a weights file. Raises WeightsError, also for weights that are not finite.

    ``half`` asks for float16, which raises ConfigError on a CPU: there it saves nothing.
    """
    if half and device.type == "cpu":
        raise ConfigError(
            "--half needs a GPU", seen="the CPU", expected="a CUDA device, or float32", next_command="leave --half out"
        )
    model, loaded = load_model(path)
    if not all(bool(torch.isfinite(tensor).all()) for tensor in model.state_dict().values()):
        raise WeightsError(
            f"{path.name} holds numbers that are not finite, as a failed training leaves them",
            seen=str(path),
            expected="an earlier checkpoint of that run",
            next_command=f"--weights path/to/{BEST_WEIGHTS}",
        )
    dtype = torch.float16 if half else torch.float32
    folded = as_dtype(fuse_batch_norm(model).requires_grad_(False), dtype)
    folded = folded.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Detector(path, folded, loaded.names, device, dtype, loaded.image_size)


def as_dtype(model: DetectionModel, dtype: torch.dtype) -> DetectionModel:
    """Converts the model to another precision, in place; anchors and strides, which place boxes, stay as they are."""
    anchors, stride = model.detect.anchors.clone(), model.detect.stride.clone()
    model.to(dtype)
    model.detect.anchors, model.detect.stride = anchors, stride
    return model
