"""Trains on the nodes of a job: what the master offers and what a member makes of it."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainer.config.fields import write_config
from trainer.config.hyperparameters import make_hyperparameters
from trainer.config.train import TrainConfig, make_config
from trainer.protocol import CONFIG_FILE, RunFiles, replace_text
from yolo_launch.checks.context import Context
from yolo_launch.checks.preflight import refuse_failures, run_checks
from yolo_launch.errors import LaunchError
from yolo_launch.jobs import run_directory
from yolo_launch.jobs.resume_changes import PLACE_FIELDS
from yolo_launch.jobs.sources import Sources, fetch_sources
from yolo_launch.jobs.training_job import TrainingJob, make_job, with_demo_data
from yolo_launch.nodes.context import NodeContext
from yolo_launch.nodes.work import Introduction
from yolo_launch.planning.plan import make_plan, settle_batch
from yolo_launch.rendezvous.admission import JobOffer
from yolo_launch.rendezvous.messages import JoinRequest, Round, Seen
from yolo_launch.rendezvous.server import RendezvousServer
from yolo_launch.request.launch_request import launch_request
from yolo_launch.request.node_options import NodeOptions
from yolo_launch.request.options import config_field_options
from yolo_launch.spec import Finding, LaunchPlan, LaunchRequest, WorkerCommand
from yolo_launch.supervision.supervisor import source_of_restart

LOCAL_FIELDS = PLACE_FIELDS | {"data", "val_data", "workers"}
"""What each node may set for itself, or what only the master uses."""
PATH_FIELDS = frozenset({"weights", "cfg", "hyp"})


def make_master_job(options: NodeOptions, context: NodeContext, say: Callable[[str], None]) -> TrainingJob:
    """Returns the job that the master's options describe; its plan is a draft. Raises LaunchError.

    ``say`` gets what is read from elsewhere.
    """
    low_and_most = context.identity.nodes or (1, 1)
    job = make_job(replace(options, port=None), context.typed, context.host, say, nnodes=low_and_most[1])
    if job.plan.batch_is_auto:
        raise LaunchError("--batch auto measures the GPUs of one machine.", expected="--batch with the total of all")
    return job


class MasterTraining:
    """The training of a job whose run directory is open."""

    foreign = False

    def __init__(self, job: TrainingJob, say: Callable[[str], None]) -> None:
        self.job = job
        self.request, self.plan, self.run_dir = job.request, job.plan, job.run_dir
        self._say = say
        self._fingerprint = fingerprint_of(job.config)

    def offer(self, own: JoinRequest) -> JobOffer:
        """Describes the job: its configuration, and the functions that the coordinator calls."""
        run_id = str(run_directory.read_plan(self.run_dir).get("run_id") or uuid.uuid4().hex)
        return JobOffer(
            own=own,
            description=describe_job(self.job, run_id),
            fingerprint=self._fingerprint,
            settle=self._settle,
            source_of_restart=lambda: source_of_restart(self.run_dir),
            even=not self.job.is_resume,
        )

    def introduce(self, server: RendezvousServer) -> Introduction:
        """Returns the fingerprint of the master's data set, with which those of the others are compared."""
        return Introduction(self._fingerprint)

    def command(self, start: Round, plan: LaunchPlan) -> WorkerCommand:
        """Writes what a round settled to the run's own configuration; only the first round changes it."""
        self.plan = plan
        config = settled_config(self.job.config, start, plan)
        if config != self.job.config:
            with run_directory.writing_to(self.run_dir):
                write_config(config, self.run_dir / CONFIG_FILE)
        self.job = replace(self.job, config=config, plan=plan)
        return self.job.command

    def receive_findings(self, message: Seen) -> None:
        """Does nothing: a training has no findings."""

    def _settle(self, by_node: tuple[int, ...]) -> int:
        """Returns the global batch for these nodes; warns if it was not typed so. Raises LaunchError with totals."""
        request = replace(self.request, nnodes=len(by_node), node_rank=0, nproc_by_node=by_node)
        batch, findings = settle_batch(
            replace(request, uneven_batch_ok=self.job.is_resume), self.job.host, self.plan.devices
        )
        for found in findings:
            if found.level == "warning":
                self._say(f"warning {found.check}: {found.seen}")
        return batch


def describe_job(job: TrainingJob, run_id: str) -> dict[str, Any]:
    """Returns what the other nodes need to know of the job, as plain values."""
    config = job.config.model_copy(update={"workers": job.wanted_workers})
    return {
        "config": config.model_dump(mode="json"),
        "is_demo": job.is_demo,
        "run_dir": str(job.run_dir),
        "run_id": run_id,
        "stall_timeout_s": job.request.stall_timeout_s,
        # Each machine reads them for itself.
        "sources": {name: url for name, url in job.sources.urls.items() if name == "data"},
    }


class MemberTraining:
    """A node's part in the training that the master describes."""

    foreign = False
    run_dir: Path
    """Set once the job is accepted."""

    def __init__(self, options: NodeOptions, context: NodeContext, show: Callable[[Iterable[Finding]], None]) -> None:
        self.request = draft_request(options, context.typed)
        self.plan = make_plan(self.request, context.host)
        self._options, self._context, self._show = options, context, show
        self._config: TrainConfig | None = None
        self._sources = Sources()

    def accept(self, description: Mapping[str, Any]) -> Introduction:
        """Checks the job on this node and shows the warnings. Raises UserError if this node cannot do it."""
        rank = self._context.identity.rank
        config, self._sources = job_config(description, self._options, self._context.status_line.over)
        self._config = config
        self.request = member_request(self.request, config, description)
        self.run_dir = own_run_dir(description, rank, self._options.given.get("project"))
        warnings = self._check(config)
        introduction = Introduction(fingerprint_of(config))
        self._show(warnings)
        return introduction

    def command(self, start: Round, plan: LaunchPlan) -> WorkerCommand:
        """Writes this node's configuration of the round."""
        assert self._config is not None, "the job was accepted"
        self.plan = plan
        return member_command(settled_config(self._config, start, plan), self.run_dir, self._context.identity.rank)

    def receive_findings(self, message: Seen) -> None:
        """Does nothing: a training has no findings."""

    def _check(self, config: TrainConfig) -> list[Finding]:
        """Runs the checks before a start on this node; returns their warnings. Raises LaunchError for a failure."""
        host, chosen = self._context.host, [one for one in self.plan.findings if one.check == "devices"]
        self.plan = make_plan(self.request, host, self.plan.devices)
        # Model and weights are read on the master, which sends them; the batch is the master's affair.
        context = Context(host, self.plan, config, self.run_dir)
        found = [one for one in run_checks(context) if one.check not in ("model", "weights")]
        refuse_failures(found)
        seen = dict.fromkeys([*chosen, *self.plan.findings, *found])
        return [one for one in warnings_of(seen) if one.check != "batch"]


def draft_request(options: NodeOptions, typed: tuple[str, ...]) -> LaunchRequest:
    """Returns the request for the devices, which is known before the job is."""
    local = replace(options, port=None, max_restarts=0, stall_timeout=LaunchRequest.stall_timeout_s)
    return launch_request(local, typed, workers=options.given.get("workers"), uneven_batch_ok=True, nnodes=2)


def settled_config(config: TrainConfig, start: Round, plan: LaunchPlan) -> TrainConfig:
    """Returns the configuration of a round, with its batch and its loader processes for each worker."""
    return config.model_copy(update={"batch_size": start.batch_size, "workers": plan.workers_per_rank})


def fingerprint_of(config: TrainConfig) -> str:
    """Returns a fingerprint of the data set, equal if classes, images and labels are."""
    from trainer.data.formats.load import load_dataset
    from trainer.data.split_files import fingerprint

    return fingerprint(load_dataset(config.data, val=config.val_data, leave_out=config.leave_out))


def job_config(
    description: Mapping[str, Any], options: NodeOptions, say: Callable[[str], None]
) -> tuple[TrainConfig, Sources]:
    """Returns the job's configuration with this node's own paths, and what this node read from elsewhere for it.

    Raises LaunchError that names options that differ.
    """
    if "config" not in description:
        raise LaunchError(
            "The master runs a script, and this machine was told to train.",
            seen=f"yolo-launch node here, yolo-launch run {description.get('script', '')} on the master",
            expected="the same command on every machine",
        )
    config, given = make_config(dict(description["config"])), options.given
    refuse_other_options(config, options)
    if description.get("is_demo") and given.get("data"):
        raise LaunchError(
            "This machine was started with other data than the job.",
            seen=f"--data {given['data']} here, the embedded data set in the job",
            expected="--data on the master",
        )
    if description.get("is_demo"):
        return with_demo_data(config), Sources()
    own = {name: given[name] for name in ("data", "val_data", "workers") if given.get(name) is not None}
    own, sources = fetch_sources({**description.get("sources", {}), **own}, say)
    for name in own.keys() & {"data", "val_data"}:
        own[name] = os.path.abspath(os.path.expanduser(own[name]))
    return config.model_copy(update=own), sources


def refuse_other_options(config: TrainConfig, options: NodeOptions) -> None:
    """Raises LaunchError if options of training that were typed here are not the job's."""
    flags = {option.name: option.flags[0].split("/")[0] for option in config_field_options(TrainConfig)}
    rows = []
    for name, typed in options.given.items():
        job = getattr(config, name)
        same = Path(str(typed)).name == Path(str(job)).name if name in PATH_FIELDS else _plain(typed) == _plain(job)
        if name not in LOCAL_FIELDS and not same:
            rows.append(f"{flags.get(name, name)} {typed} here, {job} in the job")
    overrides = options.hyperparameters
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
    """Returns this node's request with the values of the job."""
    return replace(
        draft,
        global_batch_size=config.batch_size,
        image_size=config.imgsz,
        sync_bn=config.sync_bn,
        workers=config.workers,
        stall_timeout_s=float(description["stall_timeout_s"]),
        max_restarts=0,
    )


def warnings_of(findings: Iterable[Finding]) -> list[Finding]:
    """Returns the warnings to show before a start, without those about host names: literal addresses are used."""
    return [found for found in findings if found.level == "warning" and found.check != "host name"]


def own_run_dir(description: Mapping[str, Any], rank: int, project: str | None = None) -> Path:
    """Returns the folder of this node's logs: the master's if both see it, else one of its own with that name.

    ``project`` is another folder for it on this node. Raises LaunchError if it cannot be written.
    """
    folder = Path(str(description["run_dir"]))
    if project:
        folder = Path(project) / folder.name
    run_id = description["run_id"]
    for number in range(1, 1000):
        numbered = f"-{number - 1}" if number > 2 else ""
        name = folder.name if number == 1 else f"{folder.name}-machine{rank}{numbered}"
        candidate = folder.with_name(name)
        known = run_directory.read_plan(candidate).get("run_id")
        if known == run_id:
            return candidate
        if not candidate.exists():
            with run_directory.writing_to(candidate):
                RunFiles(candidate).logs.folder.mkdir(parents=True)
                plan = {"run_id": run_id, run_directory.MASTERS_FOLDER: str(folder)}
                replace_text(candidate / run_directory.PLAN_FILE, json.dumps(plan) + "\n")
            return candidate
    raise LaunchError("There are too many folders of earlier runs.", seen=str(folder))


def member_command(config: TrainConfig, run_dir: Path, rank: int) -> WorkerCommand:
    """Writes this node's configuration beside its logs; returns the command of its workers."""
    path = RunFiles(run_dir).logs.folder / f"machine{rank}.yaml"
    with run_directory.writing_to(run_dir):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_config(config, path)
    return WorkerCommand(("-m", "trainer", str(path), "--run-dir", str(run_dir)))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
