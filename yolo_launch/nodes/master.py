"""Machine 0 of a job: it makes the job, opens the rendezvous, and takes part like any other."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from trainer.config.train import write_config
from trainer.protocol import CONFIG_FILE
from yolo_launch.errors import ExitCode, LaunchError
from yolo_launch.jobs import run_directory
from yolo_launch.jobs.training_job import TrainingJob
from yolo_launch.nodes.identity import NodeIdentity, listening_address
from yolo_launch.planning.plan import make_plan
from yolo_launch.rendezvous.admission import JobOffer, RendezvousSettings
from yolo_launch.rendezvous.coordinator import Coordinator
from yolo_launch.rendezvous.messages import JoinRequest, Round
from yolo_launch.rendezvous.server import RendezvousServer
from yolo_launch.spec import Host, LaunchPlan, Outcome


def make_settings(values: Mapping[str, Any], identity: NodeIdentity, max_restarts: int) -> RendezvousSettings:
    """What the options say about waiting. Raises LaunchError for a time that is not positive."""
    low, high = identity.nodes or (1, 1)
    given = {}
    for option, name in (
        ("join_timeout", "join_timeout_s"),
        ("rejoin_timeout", "rejoin_timeout_s"),
        ("join_grace", "join_grace_s"),
    ):
        value = values.get(option)
        if value is not None and value < 0:
            flag = "--" + option.replace("_", "-")
            raise LaunchError(f"{flag} cannot be used.", seen=f"{flag} {value:g}", expected="seconds, 0 or more")
        if value is not None:
            given[name] = value
    return RendezvousSettings(low, high, max_restarts=max_restarts, **given)


def describe_job(job: TrainingJob, run_id: str) -> dict[str, Any]:
    """What the other machines need to know of the job: plain values."""
    config = job.config.model_copy(update={"workers": job.wanted_workers})
    return {
        "config": config.model_dump(mode="json"),
        "is_demo": job.is_demo,
        "run_dir": str(job.run_dir),
        "run_id": run_id,
        "stall_timeout_s": job.request.stall_timeout_s,
    }


def settle(job: TrainingJob, by_node: tuple[int, ...], say: Callable[[str], None]) -> int:
    """The global batch for these machines, and a word where it is not the one typed. Raises LaunchError with totals."""
    request = replace(job.request, nnodes=len(by_node), node_rank=0, nproc_by_node=by_node)
    plan = make_plan(replace(request, uneven_batch_ok=job.is_resume), job.host)
    for found in plan.findings:
        if found.check == "batch" and found.level == "warning":
            say(f"warning {found.check}: {found.seen}")
    return plan.global_batch_size


@contextmanager
def open_rendezvous(
    facts: JobOffer, identity: NodeIdentity, host: Host, settings: RendezvousSettings, say: Callable[[str], None]
) -> Iterator[RendezvousServer]:
    """A rendezvous; it closes when everybody has heard the end. Raises LaunchError for a busy port."""
    rendezvous = RendezvousServer(Coordinator(settings, facts, time.monotonic()), uuid.uuid4().hex, identity.token, say)
    address = listening_address(identity, host)
    rendezvous.open(address, identity.port, "the same command with another --port, on every machine")
    if not identity.token:
        say(
            f"whoever reaches port {identity.port} of this machine can join: "
            "--token-file FILE refuses unauthenticated connections"
        )
    try:
        yield rendezvous
    finally:
        rendezvous.end(Outcome("master_lost", ExitCode.MASTER_LOST, detail="the master has left"))
        rendezvous.close()


@contextmanager
def rendezvous_of(
    job: TrainingJob,
    identity: NodeIdentity,
    join_request: JoinRequest,
    settings: RendezvousSettings,
    fingerprint: str,
    source_of_restart: Callable[[], str],
    say: Callable[[str], None],
) -> Iterator[RendezvousServer]:
    """The open rendezvous of a training job. Raises LaunchError for a busy port."""
    run_id = str(run_directory.read_plan(job.run_dir).get("run_id") or uuid.uuid4().hex)
    facts = JobOffer(
        own=join_request,
        description=describe_job(job, run_id),
        fingerprint=fingerprint,
        settle=lambda by_node: settle(job, by_node, say),
        source_of_restart=source_of_restart,
        even=not job.is_resume,
    )
    with open_rendezvous(facts, identity, job.host, settings, say) as rendezvous:
        yield rendezvous


def write_round(job: TrainingJob, start: Round, plan: LaunchPlan) -> TrainingJob:
    """Keep what a round settled in the run's own configuration; only the first one changes it."""
    config = job.config.model_copy(update={"batch_size": start.batch_size, "workers": plan.workers_per_rank})
    if config != job.config:
        with run_directory.writing_to(job.run_dir):
            write_config(config, job.run_dir / CONFIG_FILE)
    return replace(job, config=config, plan=plan)
