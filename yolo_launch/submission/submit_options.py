"""Holds what a user asked of a job on a cluster: submit's own options, and the command that they stand around."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

from yolo_launch import defaults
from yolo_launch.request.command_line import BETWEEN, with_script_apart
from yolo_launch.request.launch_options import DEBUG_TEXT, JSON_TEXT
from yolo_launch.request.options import LAUNCH, MACHINES, argument, arguments, option, options_of

SLURM, KUBERNETES = "Slurm", "Kubernetes"
KINDS = ("trainjob", "pytorchjob", "job")


@dataclass(frozen=True)
class SubmitOptions:
    """What ``submit`` was asked."""

    PANELS: ClassVar[tuple[str, ...]] = (LAUNCH, MACHINES, SLURM, KUBERNETES)

    scheduler: str = argument(text="slurm or kubernetes", metavar="slurm|kubernetes")
    command: str = argument(text="what each machine runs", metavar="train|node|run")
    words: tuple[str, ...] = arguments(
        text="that command's own options; all others here are submit's, and stand before a script",
        metavar="[OPTIONS OF train, node OR run]...",
    )
    nodes: str = option("1", "--nodes", "--nnodes", text="machines, or MIN:MAX", panel=MACHINES)
    gpus_per_node: int | None = option(
        None, "--gpus-per-node", text="GPUs of each machine", panel=MACHINES, default_text="none"
    )
    cpus_per_node: int | None = option(
        None,
        *("--cpus-per-node", "--cpus-per-task"),
        text="cores of each machine",
        panel=MACHINES,
        default_text=f"in Slurm {defaults.CORES_PER_GPU} for each GPU, else the cluster's",
    )
    job_name: str | None = option(
        None, "--job-name", text="name of the job", default_text="that of the data set or script"
    )
    time: str | None = option(
        None,
        "--time",
        text="time limit, after which the job is saved and queued again",
        panel=SLURM,
        default_text="the cluster's",
    )
    partition: str | None = option(None, "--partition", text="partition", panel=SLURM, default_text="the cluster's")
    account: str | None = option(None, "--account", text="account", panel=SLURM, default_text="yours")
    sbatch: str | None = option(
        None, "--sbatch", text="more options of sbatch, in quotes", panel=SLURM, metavar="OPTIONS"
    )
    image: str | None = option(None, "--image", text="container image with yolo-launch in it", panel=KUBERNETES)
    kind: str | None = option(
        None,
        "--kind",
        text="what runs the pods: an operator, or an Indexed Job alone",
        panel=KUBERNETES,
        default_text=KINDS[0],
        metavar="|".join(KINDS),
    )
    namespace: str | None = option(None, "--namespace", text="namespace", panel=KUBERNETES, default_text="kubectl's")
    volumes: str | None = option(
        None,
        "--volumes",
        text="claims and where they are mounted, with commas between",
        panel=KUBERNETES,
        default_text="NAME-data:/data,NAME-runs:/runs",
        metavar="CLAIM:PATH",
    )
    runtime: str | None = option(
        None, "--runtime", text="runtime of a TrainJob", panel=KUBERNETES, default_text="torch-distributed"
    )
    token_secret: str | None = option(
        None,
        "--token-secret",
        text="secret whose key 'token' every machine must know",
        panel=KUBERNETES,
        default_text="none",
    )
    dry_run: bool = option(False, "--dry-run", text="show what would be handed over; write and submit nothing")
    json: bool = option(False, "--json", text=JSON_TEXT)
    debug: bool = option(False, "--debug", text=DEBUG_TEXT)


def own_and_others(arguments: Sequence[str], takes_value: Callable[[str], bool]) -> tuple[list[str], list[str]]:
    """Returns submit's own words, scheduler and command included, and those of the command.

    An option that is in submit's table is submit's, wherever it stands before a script; everything else is the
    command's. ``takes_value`` tells whether the word after an option of ``run`` is its value.
    """
    valued = {flag for one in options_of(SubmitOptions) if one.type is not bool for flag in one.flags}
    switches = {flag for one in options_of(SubmitOptions) if one.type is bool for flag in one.flags} | {"--help"}

    def is_valued(flag: str) -> bool:
        return flag.replace("_", "-") in valued or takes_value(flag)

    own: list[str] = []
    rest, named = list(arguments), 0
    while rest and named < 2:  # the scheduler and the command
        taken = 2 if rest[0] in valued else 1
        named += not rest[0].startswith("-")
        own, rest = [*own, *rest[:taken]], rest[taken:]
    if own and own[-1] == "run":
        rest = with_script_apart(rest, is_valued)
    end = rest.index(BETWEEN) if BETWEEN in rest else len(rest)
    others: list[str] = []
    position = 0
    while position < end:
        flag, equals, _ = rest[position].partition("=")
        name = flag.replace("_", "-")
        if name in switches or name in valued:
            taken = 2 if name in valued and not equals else 1
            own += rest[position : position + taken]
        else:
            taken = 1
            others.append(rest[position])
        position += taken
    return own, [*others, *rest[end:]]


def typed_of(options: SubmitOptions, panel: str) -> list[str]:
    """Returns the flags of one panel that were typed."""
    absent = {each.name: each.default for each in fields(options)}
    return [
        one.flags[0]
        for one in options_of(SubmitOptions)
        if one.panel == panel and getattr(options, one.name) != absent[one.name]
    ]
