"""Says what val, predict and export do: three frozen values, validated, free of torch. The defaults are YOLOv5's."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, model_validator

from trainer.config.fields import marks, option, read_options, validated
from trainer.errors import ConfigError
from trainer.protocol import (
    DEFAULT_IMAGE_SIZE,
    MAX_BAD_SHARE,
    MAX_DETECTIONS,
    PREDICT_BATCH_SIZE,
    PREDICT_CONFIDENCE,
    PREDICT_IOU,
    PREDICT_MAX_DETECTIONS,
    VAL_BATCH_SIZE,
    VAL_CONFIDENCE,
    VAL_IOU,
)

T = TypeVar("T", bound="InferenceConfig")
MODEL, RESULTS, LAUNCH = "Model", "Results", "Launch"


def _weights() -> Any:
    text = "a .pt file of yolo-launch or YOLOv5, or a .safetensors file"
    return option(..., "--weights", panel=MODEL, text=text, min_length=1)


def _image_size() -> Any:
    return option(
        None,
        *("--imgsz", "--img", "--img-size"),
        panel=MODEL,
        text="image side in pixels",
        default_text=f"as trained, else {DEFAULT_IMAGE_SIZE}",
        gt=0,
    )


def _batch(default: int, text: str) -> Any:
    return option(default, "--batch", "--batch-size", panel=MODEL, text=text, gt=0)


def _confidence(default: float, when: str = "") -> Any:
    text = "least confidence of a detection"
    return option(
        default, "--conf", "--conf-thres", panel=MODEL, text=text, default_text=f"{default}{when}", ge=0, le=1
    )


def _overlap(default: float, when: str = "") -> Any:
    text = "overlap at which the weaker of two boxes goes"
    return option(default, "--iou", "--iou-thres", panel=MODEL, text=text, default_text=f"{default}{when}", ge=0, le=1)


def _most_detections(default: int, when: str = "") -> Any:
    text = "most detections an image"
    return option(default, "--max-det", panel=MODEL, text=text, default_text=f"{default}{when}", gt=0)


def _switch(*flags: str, text: str, panel: str) -> Any:
    return option(False, *flags, panel=panel, text=text)


class InferenceConfig(BaseModel):
    """What the configurations of all three programs have in common."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True, validate_default=True)

    @classmethod
    def read(cls: type[T], path: Path) -> T:
        """Reads what ``fields.write_config`` wrote. Raises ConfigError for a missing or damaged file."""
        return validated(cls, read_options(path))


class ValConfig(InferenceConfig):
    """How trained weights are measured on a data set."""

    weights: str = _weights()
    data: str = option(
        ..., "--data", panel=MODEL, text="the data set: a YAML file, or what docs/data.md lists", min_length=1
    )
    split: Literal["train", "val", "test"] = option(
        "val", "--split", "--task", panel=MODEL, text="which images: train, val or test"
    )
    skip_difficult: bool = _switch("--skip-difficult", text="leave objects out that VOC calls difficult", panel=MODEL)
    skip_truncated: bool = _switch("--skip-truncated", text="leave objects out that VOC calls truncated", panel=MODEL)
    max_bad_share: float = option(
        MAX_BAD_SHARE, "--max-bad-share", panel=MODEL, ge=0, le=1, text="share of the images that may be unusable"
    )
    imgsz: int | None = _image_size()
    # Batches depend on data, image size and this number alone, so the result does not depend on the devices.
    batch: int = _batch(VAL_BATCH_SIZE, "images a batch, of each worker")
    conf: float = _confidence(VAL_CONFIDENCE)
    iou: float = _overlap(VAL_IOU)
    max_det: int = _most_detections(MAX_DETECTIONS)
    half: bool = _switch("--half", text="float16 (on a GPU)", panel=MODEL)
    workers: int | None = option(
        None,
        "--workers",
        panel=LAUNCH,
        text="loader processes of each worker",
        default_text="what the cores allow",
        ge=0,
    )
    coco_json: str | None = option(
        None, "--coco-json", panel=RESULTS, text="write COCO results, and COCO's own numbers with the extra"
    )
    noplots: bool = _switch("--noplots", text="draw no pictures", panel=RESULTS)

    @property
    def leave_out(self) -> tuple[str, ...]:
        """Returns the marks of objects that are not counted."""
        return marks(difficult=self.skip_difficult, truncated=self.skip_truncated)


class PredictConfig(InferenceConfig):
    """What is looked for in pictures and films, and what is written about it."""

    weights: str = _weights()
    sources: tuple[str, ...] = ()
    imgsz: int | None = _image_size()
    batch: int = _batch(PREDICT_BATCH_SIZE, "pictures at a time; changes no result")
    conf: float = _confidence(PREDICT_CONFIDENCE)
    iou: float = _overlap(PREDICT_IOU)
    max_det: int = _most_detections(PREDICT_MAX_DETECTIONS)
    classes: str | None = option(None, "--classes", panel=MODEL, text="only these: 0,2 or person,car")
    half: bool = _switch("--half", text="float16 (on a GPU)", panel=MODEL)
    save_txt: bool = _switch("--save-txt", text="write a label file a picture, in YOLO's format", panel=RESULTS)
    save_conf: bool = _switch("--save-conf", text="with the confidence as sixth column", panel=RESULTS)
    save_crop: bool = _switch("--save-crop", text="write each object as a picture", panel=RESULTS)
    nosave: bool = _switch("--nosave", text="draw no pictures", panel=RESULTS)
    show: bool = _switch("--show", "--view-img", text="show each picture in a window", panel=RESULTS)
    json_lines: bool = _switch(
        "--json", text="a line of JSON a picture on stdout, everything else on stderr", panel=RESULTS
    )


_FOR_NMS = ", for --with-nms"


class ExportConfig(InferenceConfig):
    """The file that is made of trained weights for other programs."""

    weights: str = _weights()
    format: Literal["onnx", "torchscript"] = option(
        "onnx", "--format", "--include", panel=RESULTS, text="onnx or torchscript"
    )
    out: str | None = option(None, "--out", panel=RESULTS, text="the file to write", default_text="beside the weights")
    imgsz: int | None = _image_size()
    batch: int = _batch(1, "images that the file takes at once")
    dynamic: bool = _switch(
        "--dynamic", text="any number of images, and any sides in steps of the stride (ONNX)", panel=MODEL
    )
    half: bool = _switch("--half", text="float16", panel=MODEL)
    opset: int = option(17, "--opset", panel=MODEL, text="ONNX operator set", gt=0)
    with_nms: bool = _switch("--with-nms", text="non-maximum suppression in the graph (ONNX)", panel=MODEL)
    conf: float = _confidence(PREDICT_CONFIDENCE, _FOR_NMS)
    iou: float = _overlap(PREDICT_IOU, _FOR_NMS)
    max_det: int = _most_detections(MAX_DETECTIONS, _FOR_NMS)
    image: str | None = option(
        None,
        "--image",
        panel=RESULTS,
        text="picture that the file is checked on",
        default_text="an embedded one",
    )

    @model_validator(mode="after")
    def _suppression_is_for_onnx(self) -> ExportConfig:
        if self.with_nms and self.format != "onnx":
            raise ConfigError("--with-nms is for ONNX", seen=f"--format {self.format}", expected="--format onnx")
        return self
