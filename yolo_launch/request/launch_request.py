"""Makes typed requests of the values that were given on the command line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from yolo_launch.errors import LaunchError
from yolo_launch.request.options import config_field_options
from yolo_launch.spec import LaunchRequest

DEMO_OPTIONS: dict[str, Any] = {"cfg": "yolov5n", "imgsz": 160, "epochs": 18, "batch_size": 16}


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


def _numbers(flag: str, text: str) -> tuple[int, ...]:
    parts = [part for part in str(text).replace(",", " ").split() if part]
    if not all(part.isdigit() for part in parts):
        raise LaunchError(f"{flag} cannot be used.", seen=f"{flag} {text}", expected=f"{flag} 10, or {flag} 0 1 2")
    return tuple(int(part) for part in parts)
