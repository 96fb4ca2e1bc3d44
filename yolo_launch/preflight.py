"""What is checked before anything is started: one small function a check. Used by train, run and doctor."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from trainer.config import TrainConfig, rounded_image_size
from trainer.errors import UserError
from yolo_launch import ports
from yolo_launch.errors import ExitCode, LaunchError
from yolo_launch.spec import Finding, Host, LaunchPlan
from yolo_launch.torch_support import check_torch, check_torchvision

PYTHON_FLOOR, PYTHON_NEWEST = (3, 10), (3, 13)
LOW_DISK_BYTES = 1 << 30
FEWEST_OPEN_FILES = 1024
SMALLEST_STRIDE = 32
USAGE_CHECKS = frozenset({"data", "model", "weights", "imgsz", "script"})
"""Checks whose failure is a mistake in what was typed, not in the machine."""
OFFICIAL_WEIGHTS = ("yolov5", "yolov3")


@dataclass(frozen=True)
class Context:
    """What the checks look at. What a command does not have is None, and its checks say nothing."""

    host: Host
    plan: LaunchPlan | None = None
    config: TrainConfig | None = None
    run_dir: Path | None = None
    is_resume: bool = False
    script: str | None = None


Check = Callable[[Context], Iterable[Finding]]


def run_checks(context: Context) -> list[Finding]:
    """The findings of every check, failures and all, in the order of CHECKS."""
    found: list[Finding] = []
    for check in CHECKS:
        found.extend(check(context))
    return found


def exit_code_of(findings: Iterable[Finding]) -> ExitCode:
    """0 without a failure, 2 where all failures are of what was typed, 3 where the machine has a part in it."""
    failures = [finding for finding in findings if finding.level == "failure"]
    if not failures:
        return ExitCode.DONE
    return ExitCode.USAGE if all(finding.check in USAGE_CHECKS for finding in failures) else ExitCode.ENVIRONMENT


def refuse_failures(findings: Sequence[Finding]) -> None:
    """Raise LaunchError that names every failure, if there is one."""
    exit_code = exit_code_of(findings)
    if exit_code == ExitCode.DONE:
        return
    failures = [finding for finding in findings if finding.level == "failure"]
    advice = "\n".join(dict.fromkeys(finding.advice for finding in failures if finding.advice))
    raise LaunchError(
        "\n".join(finding.seen for finding in failures),
        next_command=advice or ("yolo-launch doctor" if exit_code == ExitCode.ENVIRONMENT else ""),
        exit_code=exit_code,
    )


def check_python(context: Context) -> Iterable[Finding]:
    """Python's version against those that are tested."""
    version = tuple(int(part) for part in context.host.python_version.split(".")[:2])
    if version < PYTHON_FLOOR:
        yield Finding(
            "python", "failure", f"Python {context.host.python_version} is too old", "use Python 3.10 to 3.13"
        )
    elif version > PYTHON_NEWEST:
        yield Finding("python", "warning", f"Python {context.host.python_version} is newer than those tested")
    else:
        yield Finding("python", "ok", context.host.python_version)


def check_torch_packages(context: Context) -> Iterable[Finding]:
    """torch and torchvision: there, recent enough, made for each other."""
    plan, builtin = context.plan, context.script is None
    count = len(plan.devices) if plan is not None else len(context.host.devices)
    on_gpu = plan.devices[0].kind == "cuda" if plan is not None else bool(context.host.devices)
    is_ddp = plan is not None and plan.mode == "ddp"
    yield from check_torch(context.host.torch, device_count=count, builtin_trainer=builtin, is_ddp=is_ddp)
    yield from check_torchvision(context.host.torch, builtin_trainer=builtin, on_gpu=on_gpu)


def check_gpus(context: Context) -> Iterable[Finding]:
    """A driver that does not answer, which would otherwise look like a machine without GPUs."""
    if context.host.gpu_problem:
        advice = "after a driver upgrade restart the machine; in a container use --gpus all of docker run"
        yield Finding("gpus", "warning", context.host.gpu_problem, advice)


def check_data(context: Context) -> Iterable[Finding]:
    """The data-set file: there, readable, with training and validation images named."""
    config = context.config
    if config is None or not config.data:
        return
    try:
        counts = _count_data(config.data)
    except UserError as error:
        yield Finding("data", "failure", _in_one(error), error.next_command)
        return
    text = f"{counts.classes} classes, {counts.training} training and {counts.validation} validation images"
    yield Finding("data", "ok", text)


def check_model(context: Context) -> Iterable[Finding]:
    """The model's definition: a built-in name or a YAML file that can be read."""
    config = context.config
    if config is None:
        return
    from trainer.model.definition import load_definition

    try:
        load_definition(config.cfg)
    except UserError as error:
        yield Finding("model", "failure", _in_one(error), error.next_command)
        return
    yield Finding("model", "ok", config.cfg)


def check_weights(context: Context) -> Iterable[Finding]:
    """The weights to start from: there. Nothing is ever downloaded."""
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
            "(mind its licence) and give its path",
            "--weights path/to/" + path.name + ", or --weights '' to train from scratch",
        )
        return
    yield Finding("weights", "failure", seen, "give the path of a .pt file, or --weights '' to train from scratch")


def check_image_size(context: Context) -> Iterable[Finding]:
    """The image side as a multiple of the stride; the trainer rounds up, and here it is said."""
    config = context.config
    if config is None:
        return
    rounded = rounded_image_size(config.imgsz, SMALLEST_STRIDE)
    if rounded != config.imgsz:
        text = f"--imgsz {config.imgsz} is not a multiple of the stride {SMALLEST_STRIDE}; {rounded} is used"
        yield Finding("imgsz", "warning", text, f"--imgsz {rounded}")


def check_script(context: Context) -> Iterable[Finding]:
    """The script or module of ``run``: there."""
    script = context.script
    if script is None:
        return
    if script.startswith("-m "):
        name = script.removeprefix("-m ")
        if importlib.util.find_spec(name.partition(".")[0]) is None and not Path(name.partition(".")[0]).exists():
            yield Finding("script", "failure", f"there is no module {name} here", "run from the folder that holds it")
    elif not Path(script).is_file():
        yield Finding("script", "failure", f"the script {script} is missing", "give its path from this folder")


def check_run_dir(context: Context) -> Iterable[Finding]:
    """The run directory, or its nearest parent that exists: writable, with space for checkpoints."""
    if context.run_dir is None:
        return
    folder = context.run_dir.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        yield Finding("run directory", "failure", f"{folder} is a file, not a folder", "--project DIR")
        return
    if not os.access(folder, os.W_OK | os.X_OK):
        advice = "choose a folder of your own: --project DIR"
        yield Finding("run directory", "failure", f"{folder} cannot be written by this user", advice)
        return
    free = shutil.disk_usage(folder).free
    seen = f"{folder} has {free / 2**30:.1f} GB free"
    if free == 0:
        yield Finding("run directory", "failure", seen, "free some space, or choose another disk: --project DIR")
    elif free < LOW_DISK_BYTES:
        yield Finding("run directory", "warning", seen, "checkpoints of large models may not fit: --project DIR")
    else:
        yield Finding("run directory", "ok", seen)


def check_open_files(context: Context) -> Iterable[Finding]:
    """The limit of open files, which loader processes share their tensors through."""
    limit = context.host.open_file_limit
    if limit < FEWEST_OPEN_FILES:
        yield Finding("open files", "warning", f"at most {limit} open files are allowed", "ulimit -n 4096")


def check_shared_memory(context: Context) -> Iterable[Finding]:
    """/dev/shm at its container default; the plan itself reckons what a run needs."""
    total = context.host.shm_total_bytes
    if 0 < total <= 64 << 20:
        advice = "in a container: --ipc=host, or --shm-size=4g"
        yield Finding("shm", "warning", f"/dev/shm has {total >> 20} MB, the default of Docker", advice)


def check_memory_for_cache(context: Context) -> Iterable[Finding]:
    """Memory against ``--cache ram``, where images take at most imgsz x imgsz x 3 bytes each, once per machine."""
    config = context.config
    if config is None or config.cache != "ram" or not config.data:
        return
    try:
        counts = _count_data(config.data)
    except UserError:
        return
    images = counts.training + counts.validation
    need, free = images * config.imgsz**2 * 3, context.host.memory_available_bytes
    if need > free:
        text = f"--cache ram needs up to {need / 2**30:.1f} GB for {images} images; {free / 2**30:.1f} GB are free"
        yield Finding("memory", "warning", text, "--cache disk")


def check_port(context: Context) -> Iterable[Finding]:
    """An explicit port: free, or held by a process that is named."""
    port = context.plan.port if context.plan is not None else None
    if port is not None and not ports.is_free(port):
        text = f"port {port} is busy: {ports.holder_of(port)} listens on it"
        yield Finding("port", "failure", text, "leave --port out, and a free one is chosen")


def check_host_name(context: Context) -> Iterable[Finding]:
    """Whether this machine's name leads to a loopback address, or nowhere; that breaks jobs of several machines."""
    if context.plan is not None and context.plan.nnodes == 1:
        return
    try:
        addresses = sorted({str(entry[4][0]) for entry in socket.getaddrinfo(context.host.name, None)})
    except (OSError, UnicodeError):
        yield Finding("host name", "warning", f"{context.host.name} resolves to no address; addresses are used instead")
        return
    if all(address.startswith("127.") or address == "::1" for address in addresses):
        own = [a for name, found in context.host.addresses.items() if name != "lo" for a in found if ":" not in a]
        instead = f"; {own[0]} is used instead" if own else ""
        yield Finding("host name", "warning", f"{context.host.name} resolves to {addresses[0]}{instead}")
    else:
        yield Finding("host name", "ok", f"{context.host.name} is {', '.join(addresses)}")


CHECKS: tuple[Check, ...] = (
    check_python,
    check_torch_packages,
    check_gpus,
    check_data,
    check_model,
    check_weights,
    check_image_size,
    check_script,
    check_run_dir,
    check_open_files,
    check_shared_memory,
    check_memory_for_cache,
    check_port,
    check_host_name,
)


class _DataCounts(NamedTuple):
    classes: int
    training: int
    validation: int


@lru_cache(maxsize=4)
def _count_data(data: str) -> _DataCounts:
    """What a data-set file names; remembered, since walking a large set takes seconds. Raises DataError."""
    from trainer.data.dataset_file import find_images, load_dataset_file

    dataset = load_dataset_file(data)
    return _DataCounts(len(dataset.names), *(len(find_images(dataset, split)) for split in ("train", "val")))


def _in_one(error: UserError) -> str:
    """An error's first three parts as lines; the fourth is the finding's advice."""
    parts = [error.what]
    parts += [f"{word:<10}{text}" for word, text in (("Seen:", error.seen), ("Expected:", error.expected)) if text]
    return "\n".join(parts)
