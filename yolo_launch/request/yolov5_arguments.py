"""Turns the spellings of YOLOv5 and torchrun into those of this program before any parser sees them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from yolo_launch.errors import LaunchError
from yolo_launch.request import torchrun_arguments as torchrun
from yolo_launch.request.answers import YOLOV5

_CACHE_KINDS = ("ram", "disk")
_NUMBER = re.compile(r"\d+")
_SIZES = ("--imgsz", "--img", "--img-size")
_SMALLEST_SIZE = 32
"""A number below is no side of an image but a camera."""
_FORMATS = frozenset(
    ("torchscript", "onnx", "openvino", "engine", "coreml", "saved_model", "pb", "tflite", "edgetpu", "tfjs", "paddle")
)
_WEIGHTS = (".pt", ".pth", ".safetensors", ".onnx", ".engine", ".torchscript")
_ASSIGNED = {
    "model": "weights",
    **{name: name for name in ("data", "epochs", "imgsz", "batch", "device", "source", "conf", "iou")},
}
_ASSIGNED |= {
    name: name for name in ("project", "name", "workers", "patience", "optimizer", "resume", "format", "mode", "task")
}
"""Options of ultralytics, typed with a sign between, and what they are called here."""
NEWEST_RUN = "newest"
"""The value of ``--resume`` typed without one."""


def normalize_arguments(
    arguments: Sequence[str], command: str = "train", note: Callable[[str], None] = lambda text: None
) -> list[str]:
    """Turns optional and repeated values, underscores and torchrun's options into what the parser of a command knows.

    ``--cache`` alone means ram, ``--resume`` alone the newest run, ``--freeze 0 1 2`` and ``--classes 0 2`` are one
    value, ``--batch -1`` is auto, ``--nproc_per_node 2`` is ``--nproc 2``. Anything after ``--`` stays as it is.
    ``note`` is told of options of torchrun that change nothing here.

    Raises LaunchError for an option or a value that YOLOv5 or torchrun has and this program has not.
    """
    end = arguments.index("--") if "--" in arguments else len(arguments)
    typed, rest = list(arguments[:end]), list(arguments[end:])
    result: list[str] = []
    place = torchrun.place_of(command, typed)
    position = 0
    while position < len(typed):
        word = torchrun.long_spelling(typed[position]) if command == "run" else typed[position]
        flag, equals, value = word.partition("=")
        position += 1
        if not flag.startswith("--"):
            if not (result and result[-1].startswith("-")):  # which would make it a value
                _refuse_assignment(command, word)
            result.append(word)
            continue
        following = typed[position:]
        if command in torchrun.COMMANDS:
            followed = not equals and torchrun.takes_value(flag)
            words = torchrun.torchrun_option(place, flag, following[0] if followed and following else value, note)
            if words is not None:
                result += words
                position += followed
                continue
        _refuse(command, flag)
        flag = flag.replace("_", "-")
        taken = [] if equals else _values_that_follow(flag, following)
        position += len(taken)
        result += _rewritten(command, flag, [value] if equals else taken)
    return result + rest


def _refuse(command: str, flag: str) -> None:
    answers = YOLOV5.get(command, {})
    for refused, way_out in answers.items():
        if flag.replace("_", "-") == refused.replace("_", "-"):
            raise LaunchError(
                f"{refused} is an option of YOLOv5 that yolo-launch does not have: {way_out}.",
                seen=flag,
                expected=f"options of yolo-launch {command}",
                next_command=f"yolo-launch {command} --help",
            )
    if command not in ("train", "node", "plan", "doctor"):
        return
    # Only now: pydantic takes longer to load than all that a command without a configuration needs.
    from trainer.config.hyperparameters import Hyperparameters

    name = flag.removeprefix("--")
    if name in Hyperparameters.model_fields:
        raise LaunchError(
            f"{flag} is not an option; {name} is a hyperparameter.", seen=flag, expected=f"--set {name}=VALUE"
        )


def _refuse_assignment(command: str, word: str) -> None:
    """Raises LaunchError for an option as ultralytics spells it: ``data=coco.yaml``."""
    name, equals, value = word.partition("=")
    if equals and name in _ASSIGNED and command not in ("run", "weights"):
        raise LaunchError(
            f"'{word}' is no option of yolo-launch {command}.",
            seen=word,
            expected=f"options as in --{_ASSIGNED[name]} {value}",
            next_command=f"yolo-launch {command} --help",
        )


def _values_that_follow(flag: str, following: Sequence[str]) -> list[str]:
    """Returns the words that belong to a flag whose value may be left out or repeated; none for ordinary flags."""
    if not following:
        return []
    first = following[0]
    if flag == "--cache":
        return [first] if first in _CACHE_KINDS else []
    if flag == "--resume":
        return [first] if not first.startswith("-") else []
    if flag in ("--batch", "--batch-size"):
        return [first]
    belongs = _REPEATED.get(flag)
    if belongs is None:
        return []
    further = 1
    while further < len(following) and belongs(following[further]):
        further += 1
    return list(following[:further]) if flag != "--freeze" or belongs(first) else []


def _is_numbers(word: str) -> bool:
    return re.fullmatch(r"\d+(,\d+)*", word) is not None


def _is_weights(word: str) -> bool:
    return word.endswith(_WEIGHTS)


def _is_size(word: str) -> bool:
    return word.isdigit() and int(word) >= _SMALLEST_SIZE


_REPEATED: dict[str, Callable[[str], bool]] = {
    "--freeze": _is_numbers,
    "--classes": _is_numbers,
    "--weights": _is_weights,
    **dict.fromkeys(_SIZES, _is_size),
    **dict.fromkeys(("--include", "--format"), _FORMATS.__contains__),
}
"""Options that YOLOv5 takes several values for, each with whether a further word is one of them."""


def _rewritten(command: str, flag: str, values: list[str]) -> list[str]:
    if flag == "--cache":
        return [flag, values[0] if values and values[0] else "ram"]
    if flag == "--resume":
        return [flag, values[0] if values and values[0] else NEWEST_RUN]
    if flag == "--freeze" and values:
        return [flag, ",".join(_NUMBER.findall(" ".join(values)))]
    if flag == "--classes" and len(values) > 1:
        return [flag, ",".join(values)]
    if flag in ("--batch", "--batch-size") and values == ["-1"]:
        return [flag, "auto"]
    if len(values) > 1:
        return [flag, _only_value(command, flag, values)]
    return [flag, *values]


def _only_value(command: str, flag: str, values: Sequence[str]) -> str:
    """Returns the value that repeated values agree on. Raises LaunchError if they differ: they would be misread."""
    if len(set(values)) == 1:
        return values[0]
    expected = {
        "--weights": "one file: models are not run together here",
        "--include": "one format a command: onnx, or torchscript",
        "--format": "one format a command: onnx, or torchscript",
    }.get(flag, "one side: images keep their shape, and are filled up to a square or to what a batch needs")
    raise LaunchError(
        f"{flag} takes one value.",
        seen=f"{flag} {' '.join(values)}",
        expected=expected,
        next_command=f"yolo-launch {command} ... {flag} {max(values, key=lambda v: int(v) if v.isdigit() else 0)}",
    )
