"""Lists the options of each command as data.

Those of ``train`` that shape learning come from the fields of TrainConfig: a new option is one field there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from trainer.config.train import TrainConfig
from trainer.protocol import CONFIG_FILE, DEFAULT_BATCH_SIZE, DEFAULT_IMAGE_SIZE

DEVICES, LAUNCH = "Devices", "Launch"

"""What suits the embedded data set, where the user says nothing else."""


@dataclass(frozen=True)
class Option:
    """One option of the command line, absent (None, or nothing in a list) unless typed."""

    name: str
    flags: tuple[str, ...]
    text: str
    type: Any = str
    panel: str = LAUNCH
    default_text: str = ""
    metavar: str | None = None


GPUS = Option(
    "gpus",
    ("--gpus", "--device"),
    "indices or UUIDs, such as 0,1; or all, idle, cpu",
    panel=DEVICES,
    default_text="every usable GPU, else the CPU",
)
NPROC = Option("nproc", ("--nproc",), "workers; on a CPU any number of cores", int, DEVICES, "one a device")
PARALLEL = Option("parallel", ("--parallel",), "ddp, or dp for DataParallel in one process", str, DEVICES, "ddp")
PORT = Option("port", ("--port",), "port where workers meet", int, LAUNCH, "a free one")
MAX_RESTARTS = Option("max_restarts", ("--max-restarts",), "restarts of a job after a failure", int, LAUNCH, "3")
STALL_TIMEOUT = Option(
    "stall_timeout", ("--stall-timeout",), "seconds without progress after which a job is stopped", float, LAUNCH, "300"
)
DRY_RUN = Option("dry_run", ("--dry-run",), "show the plan and start nothing", bool)
JSON = Option("json", ("--json",), "one JSON object on stdout, everything else on stderr", bool)
INLINE = Option("inline", ("--inline",), "train in this process, for a debugger (one worker)", bool)
DEBUG = Option("debug", ("--debug",), "show the traceback of an error", bool)
BATCH = Option(
    "batch_size",
    ("--batch", "--batch-size"),
    "total batch over all workers, or auto",
    str,
    LAUNCH,
    str(DEFAULT_BATCH_SIZE),
)
IMGSZ = Option(
    "imgsz", ("--imgsz", "--img", "--img-size"), "image side in pixels", int, LAUNCH, str(DEFAULT_IMAGE_SIZE)
)
WORKERS = Option("workers", ("--workers",), "loader processes of each worker", int, LAUNCH, "what the cores allow")
SYNC_BN = Option("sync_bn", ("--sync-bn",), "batch norm over all workers (DDP)", bool)

TRAIN_LAUNCHER_OPTIONS = (
    GPUS,
    NPROC,
    PARALLEL,
    PORT,
    MAX_RESTARTS,
    STALL_TIMEOUT,
    DRY_RUN,
    JSON,
    Option("resume", ("--resume",), "go on with a run: alone, the newest unfinished one", str, LAUNCH, metavar="[RUN]"),
    Option("override", ("--override",), "resume though changed options change the result", bool),
    Option("config", ("--config",), f"options from a file, such as a run's {CONFIG_FILE}", str, LAUNCH, metavar="FILE"),
    Option(
        "set_", ("--set",), "one hyperparameter, such as lr0=0.02; may be repeated", list[str], LAUNCH,
        metavar="NAME=VALUE",
    ),
    INLINE,
    DEBUG,
)  # fmt: skip


def train_options() -> list[Option]:
    """Every option of ``train``: the configuration's fields, then the launcher's own."""
    return [*config_field_options(), *TRAIN_LAUNCHER_OPTIONS]


def config_field_options() -> list[Option]:
    """One option for each field of TrainConfig that has flags."""
    options = []
    for name, field in TrainConfig.model_fields.items():
        extra = field.json_schema_extra
        if not isinstance(extra, dict) or not extra.get("flags"):
            continue
        flags = tuple(str(flag) for flag in extra["flags"])  # type: ignore[union-attr]
        kind = _option_type(name, field.annotation)
        options.append(
            Option(
                name,
                flags,
                field.description or "",
                kind,
                str(extra.get("panel", LAUNCH)),
                _default_text(field.default) if kind is not bool else "",
                _choices(field.annotation),
            )
        )
    return options


def _option_type(name: str, annotation: Any) -> Any:
    if name in ("batch_size", "freeze"):
        return str
    if get_origin(annotation) is Literal:
        return str
    simple = [kind for kind in (get_args(annotation) or (annotation,)) if kind is not type(None)]
    return simple[0] if simple and simple[0] in (bool, int, float, str) else str


def _choices(annotation: Any) -> str | None:
    if get_origin(annotation) is not Literal:
        return None
    return "|".join(str(choice) for choice in get_args(annotation) if choice)


def _default_text(default: Any) -> str:
    if default is None or default in ("", ()):
        return ""
    return str(default)
