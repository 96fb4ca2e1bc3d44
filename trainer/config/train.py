"""Defines what a training run is made of: one frozen value, validated, free of torch, written to the run directory.

A field made by ``fields.option`` is an option of the command line. Global numbers are stored; what one rank does with
them is derived in the worker, since a restart can change the world size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from trainer.config.fields import marks, option, read_options, validated
from trainer.config.hyperparameters import Hyperparameters, load_hyperparameters, make_hyperparameters
from trainer.errors import ConfigError
from trainer.protocol import DEFAULT_BATCH_SIZE, DEFAULT_IMAGE_SIZE, MAX_BAD_SHARE

DEFAULT_MODEL = "yolov5s"

DATA, MODEL, LEARNING, RUN = "Data", "Model", "Learning", "Run directory"


class TrainConfig(BaseModel):
    """Everything that decides what a run learns and which folder it writes to."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True, validate_default=True, allow_inf_nan=False)

    data: str = option(
        "",
        "--data",
        panel=DATA,
        text="data set: a YAML file, or what docs/data.md lists; without it a small one is made",
    )
    val_data: str = option(
        "", "--val-data", panel=DATA, text="file or folder of the validation split, if it is not found"
    )
    skip_difficult: bool = option(
        False, "--skip-difficult", panel=DATA, text="leave objects out that VOC calls difficult"
    )
    skip_truncated: bool = option(
        False, "--skip-truncated", panel=DATA, text="leave objects out that VOC calls truncated"
    )
    imgsz: int = option(
        DEFAULT_IMAGE_SIZE, "--imgsz", "--img", "--img-size", panel=DATA, gt=0, text="image side in pixels"
    )
    batch_size: int = option(
        DEFAULT_BATCH_SIZE,
        "--batch",
        "--batch-size",
        panel=LEARNING,
        gt=0,
        text="total batch over all workers, or 'auto'",
    )
    nominal_batch: int | None = option(
        None,
        "--nominal-batch",
        "--nbs",
        panel=LEARNING,
        gt=0,
        text="images an update learns from at least, gathered over batches; default: the recipe's",
    )
    epochs: int = option(100, "--epochs", panel=LEARNING, gt=0, text="passes over the training set")
    cfg: str = option(
        "",
        "--cfg",
        panel=MODEL,
        text=f"model: a built-in name or a YAML file; default: that of the weights, else {DEFAULT_MODEL}",
    )
    weights: str = option("", "--weights", panel=MODEL, text="weights to start from; '' trains from scratch")
    hyp: str = option(
        "low", "--hyp", panel=LEARNING, text="hyperparameters: low, med, high, none or a YAML in YOLOv5's schema"
    )
    recipe: Literal["auto", "yolov5"] = option(
        "auto",
        "--recipe",
        panel=LEARNING,
        text="auto scales warm-up, EMA and accumulation with the number of steps; yolov5 keeps its fixed constants",
    )
    optimizer: Literal["auto", "SGD", "Adam", "AdamW"] = option(
        "auto", "--optimizer", panel=LEARNING, text="optimizer; auto is the recipe's choice"
    )
    cos_lr: bool = option(False, "--cos-lr", panel=LEARNING, text="cosine instead of linear decay")
    label_smoothing: float = option(0.0, "--label-smoothing", panel=LEARNING, ge=0, lt=1, text="epsilon")
    patience: int = option(
        100, "--patience", panel=LEARNING, ge=0, text="stop after so many epochs without a better one; 0 never stops"
    )
    freeze: tuple[int, ...] = option(
        (), "--freeze", panel=MODEL, text="layers to freeze: 10 is the first ten, several numbers are just those"
    )
    seed: int = option(0, "--seed", panel=LEARNING, ge=0, text="seed of initialization, order and augmentation")
    amp: Literal["auto", "off", "fp16", "bf16"] = option(
        "auto", "--amp", panel=LEARNING, text="mixed precision; auto is bf16 or fp16 on CUDA, off on a CPU"
    )
    deterministic: bool = option(False, "--deterministic", panel=LEARNING, text="deterministic kernels on CUDA; slower")
    compile: bool = option(
        False, "--compile", panel=LEARNING, text="torch.compile for full batches of one size; minutes to the first step"
    )
    sync_bn: bool = option(False, "--sync-bn", panel=LEARNING, text="batch norm over all workers (DDP)")
    multi_scale: bool = option(False, "--multi-scale", panel=DATA, text="vary the image size by +-50 %")
    rect: bool = option(False, "--rect", panel=DATA, text="rectangular training batches, without mosaic")
    single_cls: bool = option(False, "--single-cls", panel=DATA, text="train all classes as one")
    max_bad_share: float = option(
        MAX_BAD_SHARE, "--max-bad-share", panel=DATA, ge=0, le=1, text="share of a split's images that may be unusable"
    )
    allow_leakage: bool = option(False, "--allow-leakage", panel=DATA, text="validate on training images, knowingly")
    image_weights: bool = option(
        False, "--image-weights", panel=DATA, text="draw images by the errors of their classes"
    )
    cache: Literal["", "ram", "disk"] = option(
        "", "--cache", panel=DATA, text="keep decoded images, one copy per machine: ram or disk"
    )
    autoanchor: bool = option(
        True, "--autoanchor/--noautoanchor", panel=MODEL, text="fit anchors if the given ones do not suit"
    )
    workers: int | None = option(
        None, "--workers", panel=DATA, ge=0, text="loader processes of each worker; default: what the cores allow"
    )
    val: bool = option(True, "--val/--noval", panel=RUN, text="validate each epoch, not only the last")
    save: bool = option(True, "--save/--nosave", panel=RUN, text="keep checkpoints, not only the last")
    plots: bool = option(True, "--plots/--noplots", panel=RUN, text="draw pictures and curves")
    save_period: int = option(
        -1, "--save-period", panel=RUN, ge=-1, text="keep a checkpoint every so many epochs; -1 never"
    )
    checkpoint_interval_s: float = option(
        60.0, "--checkpoint-interval", panel=RUN, gt=0, text="seconds of training between checkpoints"
    )
    project: str = option("runs/train", "--project", panel=RUN, text="folder of runs")
    name: str = option("exp", "--name", panel=RUN, text="name of the run; a number is added if it exists")
    exist_ok: bool = option(False, "--exist-ok", panel=RUN, text="write into the folder though it exists")

    parallel: Literal["auto", "ddp", "dp"] = Field("auto", description="how several devices work together")
    hyperparameters: Hyperparameters = Field(
        default_factory=lambda: Hyperparameters(), description="the resolved values of hyp and its overrides"
    )

    @property
    def leave_out(self) -> tuple[str, ...]:
        """Returns the marks of objects that are not trained on."""
        return marks(difficult=self.skip_difficult, truncated=self.skip_truncated)

    @field_validator("amp", mode="before")
    @classmethod
    def _yaml_off_is_a_word(cls, value: object) -> object:
        # YAML 1.1 reads a bare off as false.
        return "off" if value is False else value

    @model_validator(mode="after")
    def _compiles_one_plain_model(self) -> TrainConfig:
        if self.compile and (self.sync_bn or self.parallel == "dp"):
            other = "--sync-bn" if self.sync_bn else "--parallel dp"
            raise ConfigError(
                f"--compile does not work with {other}",
                seen=f"--compile {other}",
                expected="one of the two: the layers of the other talk to other devices in the middle of the model",
                next_command=f"leave --compile or {other} out",
            )
        return self

    @property
    def model_name(self) -> str:
        """Returns what ``cfg`` means: itself, the model of the weights, or yolov5s."""
        return self.cfg or (f"the model of {Path(self.weights).name}" if self.weights else DEFAULT_MODEL)

    def local_batch_size(self, world_size: int) -> int:
        """Returns the images of a full step that the busiest of ``world_size`` ranks takes."""
        return -(-self.batch_size // world_size)


def make_config(options: dict[str, Any], overrides: dict[str, Any] | None = None) -> TrainConfig:
    """Validates option values by field name and ``--set`` overrides by hyperparameter name into a configuration.

    Resolved ``hyperparameters`` among the options, as a configuration file has them, go before the set ``hyp`` names.
    Raises ConfigError that names the option, the value seen and the value expected.
    """
    values = dict(options)
    resolved = values.get("hyperparameters")
    if isinstance(resolved, dict):
        values["hyperparameters"] = make_hyperparameters({**resolved, **(overrides or {})})
    else:
        values["hyperparameters"] = load_hyperparameters(str(values.get("hyp", "low")), overrides or {})
    return validated(TrainConfig, values)


def read_config(path: Path) -> TrainConfig:
    """Reads the configuration that ``fields.write_config`` wrote. Raises ConfigError for a missing or damaged file."""
    return make_config(read_options(path))


def rounded_image_size(imgsz: int, stride: int) -> int:
    """Returns the smallest multiple of ``stride`` that is not below ``imgsz``, and at least two strides."""
    return max(-(-imgsz // stride) * stride, 2 * stride)
