"""Makes the launcher's request of typed options."""

from __future__ import annotations

from typing import Any, Literal, cast

from yolo_launch.errors import LaunchError
from yolo_launch.request.launch_options import LaunchOptions
from yolo_launch.request.machine_options import DoctorOptions, PlanOptions
from yolo_launch.request.option_values import parse_batch
from yolo_launch.spec import LaunchRequest

DEMO_OPTIONS: dict[str, Any] = {"cfg": "yolov5n", "imgsz": 160, "epochs": 18, "batch_size": 16}
"""What suits the embedded data set, if the user says nothing else."""


def launch_request(options: LaunchOptions, typed: tuple[str, ...], **facts: Any) -> LaunchRequest:
    """Returns the request of the launcher's own options and of facts that the command adds by field name.

    Raises LaunchError for a value out of range.
    """
    parallel = options.parallel or "auto"
    if parallel not in ("auto", "ddp", "dp"):
        raise LaunchError("--parallel cannot be used.", seen=f"--parallel {parallel}", expected="ddp or dp")
    if options.port is not None and not 0 < options.port < 65536:
        raise LaunchError("--port cannot be used.", seen=f"--port {options.port}", expected="1 to 65535")
    if options.max_restarts < 0:
        raise LaunchError("--max-restarts cannot be used.", seen=f"{options.max_restarts}", expected="0 or more")
    if options.stall_timeout <= 0:
        raise LaunchError(
            "--stall-timeout cannot be used.", seen=f"{options.stall_timeout}", expected="seconds above 0"
        )
    return LaunchRequest(
        gpus=options.gpus,
        nproc=options.nproc,
        parallel=cast(Literal["auto", "ddp", "dp"], parallel),
        port=options.port,
        max_restarts=options.max_restarts,
        stall_timeout_s=options.stall_timeout,
        typed=typed,
        **facts,
    )


def shape_facts(options: PlanOptions | DoctorOptions) -> dict[str, Any]:
    """Returns batch, image size and loader processes by field name, without a configuration. Raises LaunchError."""
    facts: dict[str, Any] = {"image_size": options.imgsz, "workers": options.workers}
    if options.batch_size is None:
        return {**facts, "batch_is_default": True}
    return {**facts, "global_batch_size": parse_batch(options.batch_size)}
