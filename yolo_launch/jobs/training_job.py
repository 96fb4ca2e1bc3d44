"""Decides a training run before it starts: of options and a host, its configuration, plan, findings and directory."""

from __future__ import annotations

import os
import shlex
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trainer.config.fields import read_options, write_config
from trainer.config.train import TrainConfig, make_config, read_config
from trainer.protocol import CONFIG_FILE
from yolo_launch.checks.context import Context
from yolo_launch.checks.preflight import run_checks
from yolo_launch.errors import LaunchError
from yolo_launch.jobs import run_directory, run_lock
from yolo_launch.jobs.resume_changes import Difference, find_differences, refuse_changed_result, resumed_config
from yolo_launch.jobs.sources import Say, Sources, copied_to_mirror, fetch_run, fetch_sources, sources_of_resume
from yolo_launch.planning.plan import make_plan, plan_facts
from yolo_launch.remote.address import is_url
from yolo_launch.request.launch_request import DEMO_OPTIONS, launch_request
from yolo_launch.request.train_options import JobOptions
from yolo_launch.request.yolov5_arguments import NEWEST_RUN
from yolo_launch.spec import Finding, Host, LaunchPlan, LaunchRequest, WorkerCommand


@dataclass(frozen=True)
class TrainingJob:
    """One training run, decided but not started."""

    host: Host
    config: TrainConfig
    request: LaunchRequest
    plan: LaunchPlan
    run_dir: Path
    """For a new run the folder that it would get."""
    findings: list[Finding] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    is_resume: bool = False
    is_demo: bool = False
    wanted_workers: int | None = None
    """Loader processes as typed; None leaves them to each machine."""
    sources: Sources = field(default_factory=Sources)
    """What was read from other machines, and is kept here as long as the job."""
    mirror: str | None = None
    """The URL that results are copied to."""

    @property
    def command(self) -> WorkerCommand:
        """Returns what each worker runs."""
        config_path = self.run_dir / CONFIG_FILE
        return WorkerCommand(("-m", "trainer", str(config_path), "--run-dir", str(self.run_dir)))


def make_job(options: JobOptions, typed: tuple[str, ...], host: Host, say: Say, *, nnodes: int = 1) -> TrainingJob:
    """Returns the job that the options of ``train`` describe. On several machines its plan is a draft for this one.

    ``say`` gets what is read from elsewhere. Raises LaunchError for what cannot work.
    """
    make = _new_job if options.resume is None else _resumed_job
    return make(options, typed, host, nnodes, say)


def _new_job(asked: JobOptions, typed: tuple[str, ...], host: Host, nnodes: int, say: Say) -> TrainingJob:
    """Returns the job of a fresh start: defaults, then ``--config``, then what was typed."""
    given = asked.given
    settings = dict(read_options(Path(asked.config))) if asked.config else {}
    if "hyp" in given:
        # A set named now goes before the resolved values of the file.
        settings.pop("hyperparameters", None)
    is_demo = not (given.get("data") or settings.get("data"))
    settings, sources = fetch_sources({**(DEMO_OPTIONS if is_demo else {}), **settings, **given}, say)
    wants_auto = "batch_size" in settings and settings["batch_size"] is None
    if wants_auto:
        del settings["batch_size"]
    config = _with_absolute_paths(make_config(settings, dict(asked.hyperparameters)))
    request = launch_request(
        replace(asked, parallel=asked.parallel or config.parallel),
        typed,
        workers=config.workers,
        global_batch_size=None if wants_auto else config.batch_size,
        batch_is_default="batch_size" not in given and not wants_auto and not asked.config,
        nnodes=nnodes,
        **_facts(config),
    )
    plan = make_plan(_draft(request), host)
    wanted = config.workers
    config = settled(config, plan)
    run_dir = run_directory.next_run_dir(config.project, config.name, exist_ok=config.exist_ok)
    job = TrainingJob(host, config, request, plan, run_dir, is_demo=is_demo, wanted_workers=wanted, sources=sources)
    return replace(job, findings=_check(job), mirror=asked.mirror)


def _resumed_job(asked: JobOptions, typed: tuple[str, ...], host: Host, nnodes: int, say: Say) -> TrainingJob:
    """Returns the job of a run that goes on: its own configuration, and what may change of it."""
    given = asked.given
    if asked.config:
        raise LaunchError("--resume takes the run's own configuration.", seen="--config", expected="--resume alone")
    assert asked.resume is not None
    project = given.get("project", TrainConfig.model_fields["project"].default)
    if is_url(asked.resume):
        run_dir = fetch_run(asked.resume, project, dry_run=asked.dry_run)
    else:
        run_dir = run_directory.find_run_to_resume(project, asked.resume, NEWEST_RUN)
    saved = read_config(run_dir / CONFIG_FILE)
    given, sources = fetch_sources(sources_of_resume(given, run_directory.read_plan(run_dir)), say)
    config = _with_absolute_paths(resumed_config(saved, given, asked.hyperparameters))
    if run_directory.is_finished(run_dir) and config.epochs <= saved.epochs:
        raise LaunchError(
            f"{run_dir} is finished; there is nothing to resume.",
            seen=f"{saved.epochs} epochs done",
            expected="more epochs than it had",
            next_command=f"yolo-launch train --resume {run_dir} --epochs {2 * saved.epochs}",
        )
    differences = find_differences(saved, config)
    if not asked.override:
        refuse_changed_result(differences, str(run_dir), shlex.join(typed))
    request = launch_request(
        replace(asked, parallel=asked.parallel or config.parallel),
        typed,
        workers=given.get("workers"),
        global_batch_size=config.batch_size,
        uneven_batch_ok=True,
        nnodes=nnodes,
        **_facts(config),
    )
    request, plan = _plan_on_same_devices(request, host, run_dir)
    job = TrainingJob(
        host,
        settled(config, plan),
        request,
        plan,
        run_dir,
        differences=differences,
        is_resume=True,
        wanted_workers=given.get("workers"),
        sources=sources,
        mirror=asked.mirror or run_directory.read_plan(run_dir).get("mirror"),
    )
    return replace(job, findings=_check(job))


def _draft(request: LaunchRequest) -> LaunchRequest:
    """Returns the request for a draft: on several machines the batch is split once all of them are known."""
    return request if request.nnodes == 1 else replace(request, uneven_batch_ok=True)


def _facts(config: TrainConfig) -> dict[str, Any]:
    """Returns what the plan needs to know of a configuration."""
    return {"sync_bn": config.sync_bn, "image_size": config.imgsz}


def _plan_on_same_devices(request: LaunchRequest, host: Host, run_dir: Path) -> tuple[LaunchRequest, LaunchPlan]:
    """Plans on the devices that were chosen when the run began, unless others are typed or they are gone."""
    if request.gpus is not None or request.nproc is not None:
        return request, make_plan(request, host)
    chosen = run_directory.read_plan(run_dir).get("request", {})
    as_before = replace(request, gpus=chosen.get("gpus"), nproc=chosen.get("nproc"))
    try:
        return as_before, make_plan(as_before, host)
    except LaunchError as error:
        plan = make_plan(request, host)
        gone = Finding("devices", "warning", f"the run's own choice of devices is not possible here: {error.what}")
        return request, replace(plan, findings=(gone, *plan.findings))


def settled(config: TrainConfig, plan: LaunchPlan) -> TrainConfig:
    """Returns the configuration with what the plan decided."""
    parallel = "dp" if plan.mode == "dp" else "auto"
    return config.model_copy(
        update={
            "parallel": parallel,
            "workers": plan.workers_per_rank,
            **({} if plan.batch_is_auto else {"batch_size": plan.global_batch_size}),
        }
    )


def _check(job: TrainingJob) -> list[Finding]:
    context = Context(job.host, job.plan, job.config, job.run_dir, is_resume=job.is_resume)
    return [*job.plan.findings, *run_checks(context)]


def with_measured_batch(job: TrainingJob, say: Callable[[str], None]) -> TrainingJob:
    """Returns the job with ``--batch auto`` measured on its devices; ``say`` gets what was found."""
    if not job.plan.batch_is_auto:
        return job
    from yolo_launch.probes.batch_size import measure_batch

    batch = measure_batch(job.plan, job.config, say=say)
    plan = make_plan(replace(job.request, global_batch_size=batch), job.host)
    return replace(job, plan=plan, config=settled(job.config, plan))


def with_data(job: TrainingJob) -> TrainingJob:
    """Returns the job with the embedded data set drawn if no other was given."""
    return replace(job, config=with_demo_data(job.config)) if job.is_demo else job


def with_demo_data(config: TrainConfig) -> TrainConfig:
    """Returns the configuration with the path of the embedded data set, drawn if it is not there yet."""
    from trainer.data.demo.dataset import default_cache_dir, ensure_demo_dataset

    return config.model_copy(update={"data": str(ensure_demo_dataset(default_cache_dir()))})


@contextmanager
def opened(job: TrainingJob, say: Say) -> Iterator[TrainingJob]:
    """Returns the job with its run directory made and held by this launcher, and its configuration and plan written.

    What the run then writes is copied to its mirror, if it has one. Raises LaunchError if that takes nothing.
    """
    config, run_dir = job.config, job.run_dir
    if not job.is_resume:
        run_dir = run_directory.create_run_dir(config.project, config.name, exist_ok=config.exist_ok)
    is_new = not job.is_resume and not config.exist_ok
    with run_directory.discarded_if_refused(run_dir, is_new=is_new), run_lock.hold(run_dir):
        with run_directory.writing_to(run_dir):
            if job.is_resume:
                run_directory.reopen_run(run_dir)
            elif config.exist_ok:
                run_directory.clear_old_run(run_dir)
            write_config(config, run_dir / CONFIG_FILE)
        job = replace(job, run_dir=run_dir)
        chosen = {"gpus": job.request.gpus, "nproc": job.request.nproc}
        run_id = run_directory.read_plan(run_dir).get("run_id") if job.is_resume else None
        facts = {**plan_facts(job.plan, job.command), "request": chosen, "run_id": run_id or uuid.uuid4().hex}
        facts.update(sources=dict(job.sources.urls), mirror=job.mirror)
        run_directory.write_plan(run_dir, facts)
        with copied_to_mirror(run_dir, job.mirror, say):
            yield job


def _with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """Returns files as absolute paths, so that the written configuration works from any folder."""
    found = {
        name: os.path.abspath(os.path.expanduser(getattr(config, name)))
        for name in ("data", "val_data", "weights", "cfg")
        if getattr(config, name) and _is_there(Path(getattr(config, name)).expanduser(), name)
    }
    return config.model_copy(update=found)


def _is_there(path: Path, name: str) -> bool:
    """Returns whether a path is a file, or, for data, a folder as well."""
    return path.exists() if name in ("data", "val_data") else path.is_file()
