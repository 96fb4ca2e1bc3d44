"""Defines YOLOv5's hyperparameters: their names, ranges and the four published sets."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainer.errors import ConfigError
from trainer.reading.text_file import printable


class Hyperparameters(BaseModel):
    """Values that shape learning and augmentation, under YOLOv5's names. The defaults are its set ``low``."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True, allow_inf_nan=False)

    lr0: float = Field(0.01, gt=0, description="learning rate after warm-up")
    lrf: float = Field(0.01, ge=0, description="last learning rate as a fraction of lr0")
    momentum: float = Field(0.937, ge=0, lt=1, description="SGD momentum, or Adam's beta1")
    weight_decay: float = Field(0.0005, ge=0, description="decay of convolution weights at batch 64")
    warmup_epochs: float = Field(3.0, ge=0, description="length of the warm-up in epochs")
    warmup_momentum: float = Field(0.8, ge=0, lt=1, description="momentum at the first step")
    warmup_bias_lr: float = Field(0.1, ge=0, description="learning rate of biases at the first step")
    box: float = Field(0.05, ge=0, description="gain of the box loss")
    cls: float = Field(0.5, ge=0, description="gain of the class loss")
    cls_pw: float = Field(1.0, gt=0, description="weight of positives in the class loss")
    obj: float = Field(1.0, ge=0, description="gain of the objectness loss")
    obj_pw: float = Field(1.0, gt=0, description="weight of positives in the objectness loss")
    iou_t: float = Field(0.2, ge=0, le=1, description="kept for YOLOv5's files; its trainer does not use it")
    anchor_t: float = Field(4.0, gt=1, description="largest ratio of a box side to its anchor's")
    anchors: float | None = Field(None, ge=0, description="anchors per level, to be fitted to the data")
    fl_gamma: float = Field(0.0, ge=0, description="focal-loss gamma; 0 is plain cross-entropy")
    hsv_h: float = Field(0.015, ge=0, le=1, description="hue jitter, fraction")
    hsv_s: float = Field(0.7, ge=0, le=1, description="saturation jitter, fraction")
    hsv_v: float = Field(0.4, ge=0, le=1, description="brightness jitter, fraction")
    degrees: float = Field(0.0, ge=0, le=180, description="rotation, +- degrees")
    translate: float = Field(0.1, ge=0, le=0.9, description="shift, +- fraction of the image")
    scale: float = Field(0.5, ge=0, description="scale, +- gain")
    shear: float = Field(0.0, ge=0, le=90, description="shear, +- degrees")
    perspective: float = Field(0.0, ge=0, le=0.01, description="perspective, +- fraction")
    flipud: float = Field(0.0, ge=0, le=1, description="probability of an upside-down flip")
    fliplr: float = Field(0.5, ge=0, le=1, description="probability of a left-right flip")
    mosaic: float = Field(1.0, ge=0, le=1, description="probability of a mosaic of four images")
    mixup: float = Field(0.0, ge=0, le=1, description="probability of blending two mosaics")
    copy_paste: float = Field(0.0, ge=0, le=1, description="probability of pasting segmented objects")

    def chosen(self) -> frozenset[str]:
        """Names of the values that are not the published defaults, so that somebody chose them."""
        fields = type(self).model_fields.items()
        return frozenset(name for name, field in fields if getattr(self, name) != field.default)


_MED = {"lrf": 0.1, "cls": 0.3, "obj": 0.7, "scale": 0.9, "mixup": 0.1}
_COLOR_AND_SHAPE = ("hsv_h", "hsv_s", "hsv_v", "translate", "scale", "fliplr", "mosaic")

BUILT_IN_SETS: dict[str, dict[str, float]] = {
    "low": {},
    "med": _MED,
    "high": {**_MED, "copy_paste": 0.1},
    "none": {"lrf": 0.1, "cls": 0.3, "obj": 0.7, **dict.fromkeys(_COLOR_AND_SHAPE, 0.0)},
}
"""The published sets, each as its difference from ``low``."""


def load_hyperparameters(source: str, overrides: Mapping[str, Any]) -> Hyperparameters:
    """Hyperparameters of a built-in set or of a YAML file in YOLOv5's schema, with single values replaced.

    Raises ConfigError for a missing file, an unknown name (naming the nearest one) or a value out of range.
    """
    if source in BUILT_IN_SETS:
        values: dict[str, Any] = dict(BUILT_IN_SETS[source])
    else:
        values = _read_file(Path(source))
    return make_hyperparameters({**values, **overrides})


def make_hyperparameters(values: Mapping[str, Any]) -> Hyperparameters:
    """Validates hyperparameters by name; those not named are of the set ``low``. Raises ConfigError."""
    for name in values:
        if name not in Hyperparameters.model_fields:
            near = difflib.get_close_matches(str(name), Hyperparameters.model_fields, n=1)
            raise ConfigError(
                f"there is no hyperparameter {_short(name)}",
                seen=f"{_short(name)}={_short(values[name])}",
                expected=f"did you mean {near[0]!r}?" if near else f"one of {', '.join(Hyperparameters.model_fields)}",
                next_command=f"--set {near[0] if near else 'lr0'}=VALUE, or correct the file",
            )
    try:
        return Hyperparameters(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        raise ConfigError(
            f"hyperparameter {name} cannot be used",
            seen=f"{name}={_short(first['input'])}",
            expected=first["msg"],
            next_command=f"--set {name}=VALUE, or correct the file",
        ) from None


def _read_file(path: Path) -> dict[str, Any]:
    if not os.path.exists(path):
        raise ConfigError(
            "the hyperparameter file is missing",
            seen=f"--hyp {printable(path)}",
            expected=f"a YAML file, or a built-in set: {', '.join(BUILT_IN_SETS)}",
            next_command="--hyp low",
        )
    from trainer.reading.yaml_file import read_yaml  # it loads YAML, which --help does not need

    values = read_yaml(path, f"{printable(path)} is not YAML", error=ConfigError)
    if not isinstance(values, dict):
        raise ConfigError(
            f"{printable(path)} holds no hyperparameters",
            seen=type(values).__name__,
            expected="lines such as 'lr0: 0.01'",
            next_command="--hyp low",
        )
    return values


def _short(value: Any) -> str:
    return repr(value)[:200]
