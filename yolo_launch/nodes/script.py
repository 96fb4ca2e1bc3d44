"""Runs a script of the user's on the nodes of a job: what the master offers and what a member makes of it."""

from __future__ import annotations

import hashlib
import shlex
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from yolo_launch.checks.context import Context
from yolo_launch.checks.preflight import refuse_failures, run_checks
from yolo_launch.errors import LaunchError
from yolo_launch.nodes.context import NodeContext
from yolo_launch.nodes.training import own_run_dir, warnings_of
from yolo_launch.nodes.work import Introduction
from yolo_launch.planning.plan import make_plan
from yolo_launch.rendezvous.admission import JobOffer
from yolo_launch.rendezvous.messages import JoinRequest, Round, Seen
from yolo_launch.rendezvous.server import RendezvousServer
from yolo_launch.request.launch_request import launch_request
from yolo_launch.request.machine_options import RunOptions
from yolo_launch.spec import Finding, LaunchPlan, LaunchRequest, WorkerCommand
from yolo_launch.supervision.supervisor import SCRIPT_ENTRYPOINT, source_of_restart


def script_request(options: RunOptions, context: NodeContext) -> LaunchRequest:
    """Returns what a node is asked for a script. Raises LaunchError."""
    low, most = context.identity.nodes or (2, 2)
    if low < most and options.max_restarts == 0 and context.identity.rank == 0:
        raise LaunchError(
            "A script that runs with fewer machines has to go on from what it saved.",
            seen=f"--nodes {low}:{most} without --max-restarts",
            expected="--max-restarts N, which says that the script resumes by itself, or a fixed number of machines",
        )
    local = replace(options, port=None)
    return launch_request(local, context.typed, builtin_trainer=False, nnodes=most, node_rank=0)


def shown_script(options: RunOptions) -> str:
    """Returns the script as it is checked and shown, a module with its ``-m``."""
    return f"-m {options.script}" if options.module else options.script


def worker_command(script: str, arguments: Iterable[str], *, is_module: bool) -> WorkerCommand:
    """Returns the command of each worker that runs a script."""
    module = ("-m",) if is_module else ()
    return WorkerCommand(("-m", SCRIPT_ENTRYPOINT, *module, script, *arguments), foreign=True)


class MasterScript:
    """The script of a job whose run directory is open."""

    foreign = True

    def __init__(self, options: RunOptions, request: LaunchRequest, plan: LaunchPlan, run_dir: Path) -> None:
        self.request, self.plan, self.run_dir = request, plan, run_dir
        self._options = options

    def offer(self, own: JoinRequest) -> JobOffer:
        """Describes the script by its path and content, and its arguments, which every node gets from here."""
        options = self._options
        description = {
            "script": options.script,
            "is_module": options.module,
            "content": content_of(options),
            "arguments": list(options.arguments),
            "run_dir": str(self.run_dir.absolute()),
            "run_id": uuid.uuid4().hex,
            "stall_timeout_s": self.request.stall_timeout_s,
        }
        return JobOffer(
            own=own,
            description=description,
            fingerprint="",
            settle=sum,
            source_of_restart=lambda: source_of_restart(self.run_dir, foreign=True),
            even=False,
        )

    def introduce(self, server: RendezvousServer) -> Introduction:
        """Returns nothing to compare: the script's content is in the description."""
        return Introduction()

    def command(self, start: Round, plan: LaunchPlan) -> WorkerCommand:
        """Returns the workers' command, the same in every round."""
        self.plan = plan
        return worker_command(self._options.script, self._options.arguments, is_module=self._options.module)

    def receive_findings(self, message: Seen) -> None:
        """Does nothing: a script has no findings."""


class MemberScript:
    """A node's part in running the script that the master describes."""

    foreign = True
    run_dir: Path
    """Set once the job is accepted."""

    def __init__(self, options: RunOptions, context: NodeContext, show: Callable[[Iterable[Finding]], None]) -> None:
        self.request = script_request(options, context)
        self.plan = make_plan(self.request, context.host)
        self._options, self._context, self._show = options, context, show
        self._arguments: tuple[str, ...] = ()

    def accept(self, description: Mapping[str, Any]) -> Introduction:
        """Compares the job with what was typed here, and checks it. Raises LaunchError if this node cannot do it."""
        if "script" not in description:
            raise LaunchError(
                "The master trains, and this machine was told to run a script.",
                seen=f"yolo-launch run {self._options.script} here, yolo-launch node on the master",
                expected="the same command on every machine",
            )
        context = Context(self._context.host, self.plan, None, Path.cwd(), script=shown_script(self._options))
        found = run_checks(context)
        refuse_failures(found)
        refuse_other_script(self._options, description)
        self._arguments = tuple(map(str, description["arguments"]))
        self.request = replace(self.request, stall_timeout_s=float(description["stall_timeout_s"]), max_restarts=0)
        project = self._options.project if self._options.project != RunOptions.project else None
        self.run_dir = own_run_dir(description, self._context.identity.rank, project)
        self._show(warnings_of(dict.fromkeys([*self.plan.findings, *found])))
        return Introduction()

    def command(self, start: Round, plan: LaunchPlan) -> WorkerCommand:
        """Returns the workers' command with the master's arguments."""
        self.plan = plan
        return worker_command(self._options.script, self._arguments, is_module=self._options.module)

    def receive_findings(self, message: Seen) -> None:
        """Does nothing: a script has no findings."""


def content_of(options: RunOptions) -> str:
    """Returns a hash of the script's file; empty for a module or a folder, whose files are not one."""
    path = Path(options.script)
    if options.module or not path.is_file():
        return ""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def refuse_other_script(options: RunOptions, description: Mapping[str, Any]) -> None:
    """Raises LaunchError if the script or arguments that were typed here are not the job's."""
    rows = []
    job_script = f"-m {description['script']}" if description["is_module"] else str(description["script"])
    content, job_content = content_of(options), str(description["content"])
    if shown_script(options).startswith("-m ") or job_script.startswith("-m "):
        if shown_script(options) != job_script:
            rows.append(f"{shown_script(options)} here, {job_script} in the job")
    elif content != job_content:
        rows.append(f"{options.script} with the content {content} here, {job_script} with {job_content} in the job")
    if options.arguments and list(options.arguments) != description["arguments"]:
        rows.append(f"{shlex.join(options.arguments)} here, {shlex.join(description['arguments'])} in the job")
    if rows:
        raise LaunchError(
            "This machine was started with another script or other arguments than the job.",
            seen="\n".join(rows),
            expected="the same file on every machine, and its arguments on the master alone or the same everywhere",
            next_command=f"sha256sum {options.script}" if not options.module else "",
        )
