"""Takes a smaller batch after ``--batch auto`` chose one that did not fit after all."""

from __future__ import annotations

import re
from dataclasses import replace

from trainer.config.fields import write_config
from trainer.protocol import CONFIG_FILE, OUT_OF_GPU_MEMORY
from yolo_launch.diagnosis.causes import halved_batch
from yolo_launch.jobs import run_directory
from yolo_launch.jobs.training_job import TrainingJob, settled
from yolo_launch.planning.plan import make_plan, plan_facts
from yolo_launch.spec import Outcome

MOST_TRIES = 3


def with_smaller_batch(job: TrainingJob, outcome: Outcome) -> TrainingJob | None:
    """Returns the job with half the batch, gathered to the same number of images an update, written to its run.

    None if it did not end in its first epoch for lack of the device's memory, or its batch cannot be halved.
    """
    failure = outcome.failure
    if failure is None or (failure.epoch or 0) > 0:
        return None
    if re.search(OUT_OF_GPU_MEMORY, f"{failure.message}\n{failure.traceback}") is None:
        return None
    fewer = halved_batch(job.config.batch_size, job.plan.world_size)
    if not fewer:
        return None
    plan = make_plan(replace(job.request, global_batch_size=fewer), job.host)
    gathered = max(job.config.batch_size, job.config.nominal_batch or 0)
    config = settled(job.config.model_copy(update={"nominal_batch": gathered}), plan)
    smaller = replace(job, plan=plan, config=config)
    with run_directory.writing_to(job.run_dir):
        run_directory.reopen_run(job.run_dir)
        write_config(config, job.run_dir / CONFIG_FILE)
    facts = {**run_directory.read_plan(job.run_dir), **plan_facts(plan, smaller.command)}
    run_directory.write_plan(job.run_dir, facts)
    return smaller
