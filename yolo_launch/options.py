"""The options of each command as data, and the Typer parameters made from them.

Those of ``train`` that shape learning come from the fields of TrainConfig: a new option is one field there.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from trainer.config import TrainConfig
from yolo_launch.errors import LaunchError
from yolo_launch.spec import LaunchRequest

DEVICES, LAUNCH = "Devices", "Launch"

DEMO_OPTIONS: dict[str, Any] = {"cfg": "yolov5n", "imgsz": 160, "epochs": 18, "batch_size": 16}
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
BATCH = Option("batch_size", ("--batch", "--batch-size"), "total batch over all workers, or auto", str, LAUNCH, "16")
IMGSZ = Option("imgsz", ("--imgsz", "--img", "--img-size"), "image side in pixels", int, LAUNCH, "640")
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
    Option("config", ("--config",), "options from a file, such as a run's config.yaml", str, LAUNCH, metavar="FILE"),
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


def with_options(options: Iterable[Option], *first: inspect.Parameter) -> Callable[[Callable[..., None]], Any]:
    """Give a function that takes a context and ``**values`` the signature from which Typer makes its parser."""
    context = inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)

    def decorate(function: Callable[..., None]) -> Any:
        parameters = [context, *first, *(_parameter(option) for option in options)]
        function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return function

    return decorate


def config_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """What was typed of the configuration, by field name; ``--batch auto`` gives None. Raises LaunchError."""
    given = {
        option.name: values[option.name] for option in config_field_options() if values.get(option.name) is not None
    }
    if "freeze" in given:
        given["freeze"] = _numbers("--freeze", given["freeze"])
    if "batch_size" in given:
        given["batch_size"] = parse_batch(given["batch_size"])
    return given


def parse_batch(text: str) -> int | None:
    """The total batch; None for ``auto``. Raises LaunchError for anything else."""
    if text.strip().lower() in ("auto", "-1"):
        return None
    if not text.strip().isdigit() or int(text) < 1:
        raise LaunchError("--batch cannot be used.", seen=f"--batch {text}", expected="a number above 0, or auto")
    return int(text)


def parse_overrides(pairs: Iterable[str] | None) -> dict[str, Any]:
    """Hyperparameters from ``--set name=value``. Raises LaunchError for a pair without its sign or its name."""
    overrides: dict[str, Any] = {}
    for pair in pairs or ():
        name, sign, value = pair.partition("=")
        if not sign or not name.strip():
            raise LaunchError("--set cannot be used.", seen=f"--set {pair}", expected="--set name=value")
        overrides[name.strip()] = value.strip()
    return overrides


def launch_request(values: Mapping[str, Any], typed: tuple[str, ...], **facts: Any) -> LaunchRequest:
    """What the launcher is asked, from its own options and from facts that the command adds by field name."""
    parallel = values.get("parallel") or "auto"
    if parallel not in ("auto", "ddp", "dp"):
        raise LaunchError("--parallel cannot be used.", seen=f"--parallel {parallel}", expected="ddp or dp")
    stall_timeout_s, max_restarts, port = values.get("stall_timeout"), values.get("max_restarts"), values.get("port")
    if port is not None and not 0 < port < 65536:
        raise LaunchError("--port cannot be used.", seen=f"--port {port}", expected="1 to 65535")
    if max_restarts is not None and max_restarts < 0:
        raise LaunchError("--max-restarts cannot be used.", seen=f"{max_restarts}", expected="0 or more")
    if stall_timeout_s is not None and stall_timeout_s <= 0:
        raise LaunchError("--stall-timeout cannot be used.", seen=f"{stall_timeout_s}", expected="seconds above 0")
    request: dict[str, Any] = {
        "gpus": values.get("gpus"),
        "nproc": values.get("nproc"),
        "parallel": parallel,
        "port": port,
        "max_restarts": 3 if max_restarts is None else max_restarts,
        "stall_timeout_s": 300.0 if stall_timeout_s is None else stall_timeout_s,
        "typed": typed,
    }
    return LaunchRequest(**{**request, **facts})


def _parameter(option: Option) -> inspect.Parameter:
    wanted: Any = option.type | None
    declared = typer.Option(
        *option.flags,
        help=_help(option),
        rich_help_panel=option.panel,
        show_default=False,
        metavar=option.metavar,
    )
    return inspect.Parameter(
        option.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[wanted, declared]
    )


def _help(option: Option) -> str:
    # Every option is absent unless typed, so Typer does not know the values that count then.
    is_told = not option.default_text or "default" in option.text
    return option.text if is_told else f"{option.text} (default: {option.default_text})"


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


def _numbers(flag: str, text: str) -> tuple[int, ...]:
    parts = [part for part in str(text).replace(",", " ").split() if part]
    if not all(part.isdigit() for part in parts):
        raise LaunchError(f"{flag} cannot be used.", seen=f"{flag} {text}", expected=f"{flag} 10, or {flag} 0 1 2")
    return tuple(int(part) for part in parts)
