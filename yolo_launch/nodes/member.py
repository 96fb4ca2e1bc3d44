"""Any machine of a job but the master: it takes the job from the rendezvous and does its part."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainer.config.hyperparameters import make_hyperparameters
from trainer.config.train import TrainConfig, make_config, write_config
from yolo_launch.checks.context import Context
from yolo_launch.checks.preflight import refuse_failures, run_checks
from yolo_launch.errors import LaunchError
from yolo_launch.jobs import run_directory
from yolo_launch.jobs.resume_changes import PLACE_FIELDS
from yolo_launch.jobs.training_job import with_demo_data
from yolo_launch.planning.plan import make_plan
from yolo_launch.request.launch_request import config_options, launch_request
from yolo_launch.request.option_values import parse_overrides
from yolo_launch.request.options import config_field_options
from yolo_launch.spec import Finding, Host, LaunchRequest, WorkerCommand

LOCAL_FIELDS = PLACE_FIELDS | {"data", "workers"}
"""What each machine may set for itself, or what only the master uses."""
PATH_FIELDS = frozenset({"weights", "cfg", "hyp"})


def draft_request(values: Mapping[str, Any], typed: tuple[str, ...]) -> LaunchRequest:
    """What can be said before the job is known: the devices."""
    local = {**values, "port": None, "max_restarts": None, "stall_timeout": None}
    return launch_request(local, typed, workers=values.get("workers"), uneven_batch_ok=True, nnodes=2)


def job_config(description: Mapping[str, Any], values: Mapping[str, Any]) -> TrainConfig:
    """The job's configuration with this machine's own paths. Raises LaunchError for options that differ by name."""
    config = make_config(dict(description["config"]))
    refuse_other_options(config, values)
    if description.get("is_demo") and values.get("data"):
        raise LaunchError(
            "This machine was started with other data than the job.",
            seen=f"--data {values['data']} here, the embedded data set in the job",
            expected="--data on the master",
        )
    if description.get("is_demo"):
        return with_demo_data(config)
    own = {name: values[name] for name in ("data", "workers") if values.get(name) is not None}
    if "data" in own:
        own["data"] = os.path.abspath(os.path.expanduser(own["data"]))
    return config.model_copy(update=own)


def refuse_other_options(config: TrainConfig, values: Mapping[str, Any]) -> None:
    """Options of training that were typed here have to be the job's."""
    flags = {option.name: option.flags[0].split("/")[0] for option in config_field_options(TrainConfig)}
    rows = []
    for name, typed in config_options(values).items():
        job = getattr(config, name)
        same = Path(str(typed)).name == Path(str(job)).name if name in PATH_FIELDS else _plain(typed) == _plain(job)
        if name not in LOCAL_FIELDS and not same:
            rows.append(f"{flags.get(name, name)} {typed} here, {job} in the job")
    overrides = parse_overrides(values.get("hyperparameters"))
    here = make_hyperparameters({**config.hyperparameters.model_dump(), **overrides})
    for name, typed in overrides.items():
        job = getattr(config.hyperparameters, name)
        if getattr(here, name) != job:
            rows.append(f"--set {name}={typed} here, {job} in the job")
    if rows:
        raise LaunchError(
            "This machine was started with other options than the job.",
            seen="\n".join(rows),
            expected="options of training on the master alone, or the same ones everywhere",
        )


def member_request(draft: LaunchRequest, config: TrainConfig, description: Mapping[str, Any]) -> LaunchRequest:
    """This machine's request with what the job says."""
    return replace(
        draft,
        global_batch_size=config.batch_size,
        image_size=config.imgsz,
        sync_bn=config.sync_bn,
        workers=config.workers,
        stall_timeout_s=float(description["stall_timeout_s"]),
        max_restarts=0,
    )


def check_node(host: Host, request: LaunchRequest, config: TrainConfig, run_dir: Path) -> list[Finding]:
    """The checks before a start, on this machine: its warnings. Raises LaunchError for a failure."""
    plan = make_plan(request, host)
    context = Context(host, plan, config, run_dir)
    # Model and weights are read on the master, which sends them; the batch is the master's affair.
    found = [one for one in run_checks(context) if one.check not in ("model", "weights")]
    refuse_failures(found)
    return [one for one in warnings_of([*plan.findings, *found]) if one.check != "batch"]


def warnings_of(findings: Iterable[Finding]) -> list[Finding]:
    """What is worth a word before a start. Names of machines are not: literal addresses are used."""
    return [found for found in findings if found.level == "warning" and found.check != "host name"]


def own_run_dir(description: Mapping[str, Any], rank: int, project: str | None = None) -> Path:
    """Where this machine's logs go: the master's folder where both see it, else one of its own with that name.

    ``project`` is another folder for it on this machine. Raises LaunchError where it cannot be written.
    """
    folder = Path(str(description["run_dir"]))
    if project:
        folder = Path(project) / folder.name
    run_id = description["run_id"]
    for number in range(1, 1000):
        name = folder.name if number == 1 else f"{folder.name}-machine{rank}" + f"-{number - 1}" * (number > 2)
        candidate = folder.with_name(name)
        known = run_directory.read_plan(candidate).get("run_id")
        if known == run_id:
            return candidate
        if not candidate.exists():
            with run_directory.writing_to(candidate):
                (candidate / "logs").mkdir(parents=True)
                plan = {"run_id": run_id, "master_run_dir": str(folder)}
                run_directory.replace_text(candidate / run_directory.PLAN_FILE, json.dumps(plan) + "\n")
            return candidate
    raise LaunchError("There are too many folders of earlier runs.", seen=str(folder))


def member_command(config: TrainConfig, run_dir: Path, rank: int) -> WorkerCommand:
    """Write this machine's configuration beside its logs, and say what its workers run."""
    path = run_dir / "logs" / f"machine{rank}.yaml"
    with run_directory.writing_to(run_dir):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_config(config, path)
    return WorkerCommand(("-m", "trainer", str(path), "--run-dir", str(run_dir)))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
