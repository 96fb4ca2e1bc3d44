"""Holds what a user asked about a data set."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.protocol import DEFAULT_IMAGE_SIZE
from yolo_launch.request.launch_options import DEBUG_TEXT, JSON_TEXT
from yolo_launch.request.options import argument, option

DATA_TEXT = "the data set's YAML file, or a file or folder of another format"
OUT_TEXT = "folder of the lists and the YAML file that are written"


@dataclass(frozen=True)
class CheckOptions:
    """What ``data check`` was asked."""

    data: str = argument(text=DATA_TEXT, metavar="DATA")
    imgsz: int = option(DEFAULT_IMAGE_SIZE, "--imgsz", "--img", "--img-size", text="image side at which it is trained")
    json: bool = option(False, "--json", text=JSON_TEXT)
    debug: bool = option(False, "--debug", text=DEBUG_TEXT)


@dataclass(frozen=True)
class SplitOptions:
    """What ``data split`` was asked."""

    data: str = argument(text=DATA_TEXT, metavar="DATA")
    val: float | None = option(None, "--val", text="share of the images to validate on", default_text="0.2")
    test: float = option(0.0, "--test", text="share of the images to test on")
    folds: int = option(0, "--folds", text="instead, so many YAML files, each with another part to validate on")
    group_by: str | None = option(
        None,
        "--group-by",
        text="images whose paths match with the same text, such as 'video\\d+', stay together",
        metavar="REGEX",
    )
    seed: int = option(0, "--seed", text="the same seed gives the same split")
    out: str | None = option(None, "--out", text=OUT_TEXT, metavar="FOLDER", default_text="NAME-split")
    json: bool = option(False, "--json", text=JSON_TEXT)
    debug: bool = option(False, "--debug", text=DEBUG_TEXT)


@dataclass(frozen=True)
class ConvertOptions:
    """What ``data convert`` was asked."""

    data: str = argument(text=DATA_TEXT, metavar="DATA")
    to: str = option("yolo", "--to", text="format to write: yolo, a label file an image")
    out: str | None = option(None, "--out", text="folder to write", metavar="FOLDER", default_text="NAME-yolo")
    copy: bool = option(False, "--copy", text="copy the images; without it they are links")
    json: bool = option(False, "--json", text=JSON_TEXT)
    debug: bool = option(False, "--debug", text=DEBUG_TEXT)


@dataclass(frozen=True)
class DedupeOptions:
    """What ``data dedupe`` was asked."""

    data: str = argument(text=DATA_TEXT, metavar="DATA")
    near: bool = option(False, "--near", text="images that look the same too, not only equal files")
    out: str | None = option(None, "--out", text=OUT_TEXT, metavar="FOLDER", default_text="NAME-dedupe")
    json: bool = option(False, "--json", text=JSON_TEXT)
    debug: bool = option(False, "--debug", text=DEBUG_TEXT)
