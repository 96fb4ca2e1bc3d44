"""Checks what was typed: data, model, weights, sizes, scripts."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterable
from functools import lru_cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import NamedTuple

from trainer.config.train import rounded_image_size
from trainer.errors import UserError
from yolo_launch.checks.context import Context
from yolo_launch.errors import ExitCode
from yolo_launch.planning.loader_workers import size_text
from yolo_launch.spec import Finding

SMALLEST_STRIDE = 32
OFFICIAL_WEIGHTS = ("yolov5", "yolov3")


def check_data(context: Context) -> Iterable[Finding]:
    """Checks that the data-set file exists, can be read, and names training and validation images."""
    config = context.config
    if config is None or not config.data:
        return
    try:
        counts = _count_data(config.data, config.val_data, config.leave_out)
    except UserError as error:
        yield Finding("data", "failure", _in_one(error), error.next_command)
        return
    text = (
        f"{counts.classes} classes, {counts.training} training and {counts.validation} validation images{counts.kind}"
    )
    yield Finding("data", "ok", text)
    if counts.unlabeled is not None:
        yield Finding(
            "validation",
            "warning",
            f"no validation image has a label (looked for {counts.unlabeled}): the run cannot be judged, so no epoch "
            f"is the best one, none ends it early, and the exit code is {ExitCode.NOT_JUDGED:d}",
            "add the labels, or name images that have some as val in the YAML file",
        )


def check_model(context: Context) -> Iterable[Finding]:
    """Checks the model's definition: a built-in name or a YAML file that can be read; a resumed run has its own."""
    config = context.config
    if config is None:
        return
    from trainer.model.definition import load_definition

    if context.is_resume or (config.weights and not config.cfg):
        yield Finding("model", "ok", config.model_name)
        return
    try:
        load_definition(config.model_name)
    except UserError as error:
        yield Finding("model", "failure", _in_one(error), error.next_command)
        return
    yield Finding("model", "ok", config.model_name)


def check_weights(context: Context) -> Iterable[Finding]:
    """Checks that the weights to start from exist. Nothing is ever downloaded."""
    config = context.config
    if config is None or not config.weights or context.is_resume:
        return
    path = Path(config.weights)
    if path.is_file():
        yield Finding("weights", "ok", f"{path} ({path.stat().st_size / 2**20:.1f} MB)")
        return
    seen = f"the weights file {config.weights} is missing"
    if path.is_dir():
        seen = f"{config.weights} is a folder, not a weights file"
    elif path.name.startswith(OFFICIAL_WEIGHTS) and path.suffix == ".pt":
        repository = "ultralytics/yolov3" if path.name.startswith("yolov3") else "ultralytics/yolov5"
        yield Finding(
            "weights",
            "failure",
            f"{seen}; nothing is downloaded here: get {path.name} from the releases page of github.com/{repository} "
            "(mind its license) and give its path",
            "--weights path/to/" + path.name + ", or --weights '' to train from scratch",
        )
        return
    yield Finding("weights", "failure", seen, "give the path of a .pt file, or --weights '' to train from scratch")


def check_image_size(context: Context) -> Iterable[Finding]:
    """Checks that the image side is a multiple of the stride; the trainer rounds up, and the finding says so."""
    config = context.config
    if config is None:
        return
    rounded = rounded_image_size(config.imgsz, SMALLEST_STRIDE)
    if rounded != config.imgsz:
        text = f"--imgsz {config.imgsz} is not a multiple of the stride {SMALLEST_STRIDE}; {rounded} is used"
        yield Finding("imgsz", "warning", text, f"--imgsz {rounded}")


def check_script(context: Context) -> Iterable[Finding]:
    """Checks that the script or module of ``run`` exists."""
    script = context.script
    if script is None:
        return
    if script.startswith("-m "):
        name = script.removeprefix("-m ")
        if not _is_module(name):
            advice = "run from the folder that holds it, with the Python that has it"
            yield Finding("script", "failure", f"there is no module {name} here", advice)
        return
    path = Path(script)
    if path.is_dir() and not (path / "__main__.py").is_file():
        advice = "give the script in it, or a folder that python runs: one with a __main__.py"
        yield Finding("script", "failure", f"{script} is a folder without a __main__.py", advice)
    elif not path.exists():
        yield Finding("script", "failure", f"the script {script} is missing", "give its path from this folder")
    elif path.is_file() and (kind := _foreign_kind(path)):
        advice = f"start the Python script that it starts; or, as a program of its own: ./{path.name}"
        yield Finding("script", "failure", f"{script} is {kind}, not a Python script", advice)


def _foreign_kind(path: Path) -> str:
    """Returns what a file is if Python cannot run it, else an empty text."""
    try:
        with path.open("rb") as file:
            head = file.read(1024)
    except OSError as error:
        return f"unreadable ({error.strerror})"
    first_line = head.partition(b"\n")[0]
    if first_line.startswith(b"#!") and b"python" not in first_line:
        return f"a script for {first_line[2:].decode(errors='replace').strip()}"
    if path.suffix in (".sh", ".bash", ".ipynb", ".yaml", ".yml"):
        return {".ipynb": "a notebook", ".yaml": "a YAML file", ".yml": "a YAML file"}.get(
            path.suffix, "a shell script"
        )
    is_archive = head.startswith(b"PK") or path.suffix == ".pyc"
    return "a binary file" if b"\0" in head and not is_archive else ""


def _is_module(name: str) -> bool:
    """Returns True if ``python -m`` would find a module; none of its packages is imported."""
    first, *rest = name.split(".")
    if not all((first, *rest)):
        return False
    spec = PathFinder.find_spec(first, [os.getcwd(), *sys.path]) or importlib.util.find_spec(first)
    path = first
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            return False
        path = f"{path}.{part}"
        spec = PathFinder.find_spec(path, list(spec.submodule_search_locations))
    return spec is not None


def check_memory_for_cache(context: Context) -> Iterable[Finding]:
    """Compares memory with ``--cache ram``, used or not: up to imgsz x imgsz x 3 bytes an image on each machine."""
    config = context.config
    if config is None or not config.data:
        return
    try:
        counts = _count_data(config.data, config.val_data, config.leave_out)
    except UserError:
        return
    images = counts.training + counts.validation
    need, free = images * config.imgsz**2 * 3, context.host.memory_available_bytes
    text = f"{free / 2**30:.1f} GB are free; --cache ram needs up to {size_text(need)} for {images} images"
    if config.cache == "ram" and need > free:
        yield Finding("memory", "warning", text, "--cache disk")
    else:
        yield Finding("memory", "ok", f"{text} and would not fit" if need > free else text)


class _DataCounts(NamedTuple):
    classes: int
    training: int
    validation: int
    unlabeled: str | None
    kind: str
    """Returns the first label file that is missing or empty if no validation image has a label, else None."""


@lru_cache(maxsize=4)
def _count_data(data: str, val: str, leave_out: tuple[str, ...]) -> _DataCounts:
    """Reads what a data set names; remembered, since walking a large set takes seconds. Raises DataError."""
    from trainer.data.dataset import YOLO_YAML, label_texts_for
    from trainer.data.formats.load import load_dataset
    from trainer.data.split_files import find_files

    dataset = load_dataset(data, val=val, leave_out=leave_out)
    training, validation = (find_files(dataset, split).images for split in ("train", "val"))
    kind = "" if dataset.format == YOLO_YAML else f" ({dataset.format})"
    if "val" in dataset.annotations:
        unlabeled = None if len(dataset.annotations["val"].ids) else str(dataset.splits["val"][0])
    else:
        labels = label_texts_for(validation)
        unlabeled = None if any(map(_has_content, labels)) else labels[0]
    return _DataCounts(len(dataset.names), len(training), len(validation), unlabeled, kind)


def _has_content(path: str) -> bool:
    try:
        return os.stat(path).st_size > 0
    except OSError:
        return False


def _in_one(error: UserError) -> str:
    """Returns an error's first three parts as lines; the fourth is the finding's advice."""
    parts = [error.what]
    parts += [f"{word:<10}{text}" for word, text in (("Seen:", error.seen), ("Expected:", error.expected)) if text]
    return "\n".join(parts)
