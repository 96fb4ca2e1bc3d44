"""Turns YOLOv5's spellings into those of this program before any parser sees them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from trainer.protocol import METRICS_FILE
from yolo_launch.errors import LaunchError

REFUSED = {
    "--adam": "choose the optimizer by name: --optimizer Adam",
    "--artifact_alias": "this program logs to files and TensorBoard only, so there are no Weights & Biases artifacts",
    "--bbox_interval": "this program logs to files and TensorBoard only; pictures of boxes are in the run directory",
    "--bucket": "nothing is ever uploaded; copy the run directory instead",
    "--entity": "this program logs to files and TensorBoard only, so there is no Weights & Biases entity",
    "--evolve": "hyperparameters are not evolved here; try --hyp low, med or high, or --set name=value",
    "--evolve_population": "hyperparameters are not evolved here; try --hyp low, med or high, or --set name=value",
    "--linear-lr": "linear decay is the default; --cos-lr asks for the cosine",
    "--local_rank": "workers get their rank from the environment; --gpus chooses the devices",
    "--log-artifacts": "this program logs to files and TensorBoard only",
    "--log-imgs": "this program logs to files and TensorBoard only; pictures are in the run directory",
    "--ndjson-console": f"use --json for one JSON object at the end, or read {METRICS_FILE} in the run directory",
    "--ndjson-file": f"{METRICS_FILE} in the run directory holds one JSON object a line",
    "--nohf": "nothing is ever uploaded",
    "--notest": "YOLOv5 calls it --noval now, and so does this program",
    "--quad": "the quad loader is not offered; --imgsz, --multi-scale and a larger --batch serve the same end",
    "--resume_evolve": "hyperparameters are not evolved here; --resume goes on with a run",
    "--save_dir": "--project and --name choose the run directory",
    "--upload_dataset": "nothing is ever uploaded",
}
"""Options that YOLOv5 has or had and this program has not, each with the way out. Keys as YOLOv5 spells them."""

"""Spellings of one option, ours first; only of options that the launcher itself retypes."""

_CACHE_KINDS = ("ram", "disk")
_NUMBER = re.compile(r"\d+")
NEWEST_RUN = "newest"
"""The value of ``--resume`` typed without one."""


def normalize_arguments(arguments: Sequence[str]) -> list[str]:
    """Turns YOLOv5's optional values and underscores in the arguments of ``train`` into what the parser knows.

    ``--cache`` alone means ram, ``--resume`` alone the newest run, ``--freeze 0 1 2`` is one value, ``--batch -1``
    is auto. Anything after ``--`` stays as it is. Raises LaunchError for an option that YOLOv5 has and this has not.
    """
    end = arguments.index("--") if "--" in arguments else len(arguments)
    typed, rest = list(arguments[:end]), list(arguments[end:])
    result: list[str] = []
    position = 0
    while position < len(typed):
        flag, equals, value = typed[position].partition("=")
        position += 1
        if not flag.startswith("--"):
            result.append(flag + equals + value)
            continue
        _refuse(flag)
        flag = flag.replace("_", "-")
        taken = [] if equals else _values_that_follow(flag, typed[position:])
        position += len(taken)
        if equals:
            taken = [value]
        result += _rewritten(flag, taken)
    return result + rest


def _refuse(flag: str) -> None:
    for refused, way_out in REFUSED.items():
        if flag.replace("_", "-") == refused.replace("_", "-"):
            raise LaunchError(
                f"{refused} is an option of YOLOv5 that yolo-launch does not have: {way_out}.",
                seen=flag,
                next_command="yolo-launch train --help",
            )
    # Only now: pydantic takes longer to load than all that a command without a configuration needs.
    from trainer.config.hyperparameters import Hyperparameters

    name = flag.removeprefix("--")
    if name in Hyperparameters.model_fields:
        raise LaunchError(
            f"{flag} is not an option; {name} is a hyperparameter.", seen=flag, expected=f"--set {name}=VALUE"
        )


def _values_that_follow(flag: str, following: Sequence[str]) -> list[str]:
    """Returns the words that belong to a flag whose value may be left out or repeated; none for ordinary flags."""
    if not following or flag not in ("--cache", "--resume", "--freeze", "--batch", "--batch-size"):
        return []
    first = following[0]
    if flag == "--cache":
        return [first] if first in _CACHE_KINDS else []
    if flag == "--freeze":
        numbers: list[str] = []
        for word in following:
            if not re.fullmatch(r"\d+(,\d+)*", word):
                break
            numbers.append(word)
        return numbers
    if flag == "--resume":
        return [first] if not first.startswith("-") else []
    return [first]


def _rewritten(flag: str, values: list[str]) -> list[str]:
    if flag == "--cache":
        return [flag, values[0] if values and values[0] else "ram"]
    if flag == "--resume":
        return [flag, values[0] if values and values[0] else NEWEST_RUN]
    if flag == "--freeze" and values:
        return [flag, ",".join(_NUMBER.findall(" ".join(values)))]
    if flag in ("--batch", "--batch-size") and values == ["-1"]:
        return [flag, "auto"]
    return [flag, *values]
