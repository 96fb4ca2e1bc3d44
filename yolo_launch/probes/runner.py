"""Runs a probe in processes of its own, each with a new session and a time limit; kills what is left of the session."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from trainer.protocol import OUTPUT_ON_STDERR, OUTPUT_VARIABLE, PARENT_VARIABLE
from yolo_launch.diagnosis.causes import describe_exit, is_consequence
from yolo_launch.host.inventory import INSTALLED_ONLY, is_rank_variable
from yolo_launch.spec import Device, LaunchPlan

WORKER = "yolo_launch.probes.child"
ANSWER = "PROBE "
"""Beginning of the line with a probe's answer; libraries print on the same stream."""
GRACE_S = 5.0
"""Seconds that the other processes of a probe have left after one has failed."""
POLL_S = 0.02


@dataclass(frozen=True)
class ProbeEnd:
    """The end of one process of a probe: an answer, or the reason why there is none."""

    answer: dict[str, Any] | None = None
    problem: str = ""
    user_error: dict[str, str] | None = None
    """The four parts of the user's error that the trainer found, else None."""
    timed_out: bool = False


def run_probe(
    name: str, arguments: Mapping[str, Any], environments: Sequence[Mapping[str, str]], timeout_s: float
) -> list[ProbeEnd]:
    """Runs one probe of the worker module once for each environment, all at the same time."""
    command = (sys.executable, "-u", "-m", WORKER, name, json.dumps(arguments))
    return run_processes(command, environments, timeout_s)


def run_processes(
    command: Sequence[str], environments: Sequence[Mapping[str, str]], timeout_s: float
) -> list[ProbeEnd]:
    """Starts ``command`` in each environment and waits; at the limit, and on every exit, the sessions are killed.

    Must be called in the main thread: the processes die with the thread that started them.
    """
    children: list[_Child] = []
    deadline = time.monotonic() + timeout_s
    try:
        for environment in environments:
            children.append(_Child(command, environment))
        # The sum, unlike any(), asks each child, so that each records its end.
        while sum(child.is_running() for child in children) and time.monotonic() < deadline:
            time.sleep(POLL_S)
            if any(child.has_failed() for child in children):
                deadline = min(deadline, time.monotonic() + GRACE_S)
    finally:
        another_failed = any(child.has_failed() for child in children)
        why = "another process failed first" if another_failed else f"it did not end within {timeout_s:g} s"
        ends = [child.finish(why) for child in children]
    return ends


def probe_environment(plan: LaunchPlan | None, **more: str) -> dict[str, str]:
    """Returns a probe's environment: the plan's variables, none of another launcher's, and ``more``."""
    removed = set(plan.removed_environment) if plan is not None else set()
    kept = {name: value for name, value in os.environ.items() if name not in removed and not is_rank_variable(name)}
    planned = plan.environment if plan is not None else {}
    return {
        **kept,
        **planned,
        **INSTALLED_ONLY,
        PARENT_VARIABLE: str(os.getpid()),
        OUTPUT_VARIABLE: OUTPUT_ON_STDERR,
        **more,
    }


def alone_on(device: Device, plan: LaunchPlan | None) -> dict[str, str]:
    """Returns the environment of a process that sees one device only."""
    if device.kind != "cuda":
        return probe_environment(plan)
    masks = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": visible_name(device)}
    if plan is not None and "HIP_VISIBLE_DEVICES" in plan.environment:  # ROCm reads it before the other
        masks["HIP_VISIBLE_DEVICES"] = visible_name(device)
    return probe_environment(plan, **masks)


def visible_name(device: Device) -> str:
    """Returns a device's name in CUDA_VISIBLE_DEVICES."""
    return device.uuid or str(device.card)


def first_problem(ends: Sequence[ProbeEnd]) -> str:
    """Returns the cause among several ends: an error first, one about a peer next, a timeout last."""
    errors = [end.problem for end in ends if end.problem and not end.timed_out]
    causes = [problem for problem in errors if not is_consequence(problem)]
    return next(iter(causes + errors + [end.problem for end in ends if end.problem]), "")


class _Child:
    """One process of a probe, with its output."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        # Files, not pipes, need no reader while the process runs, and children of the process may hold them open.
        self._stdout: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 -- finish() closes both
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self._ended: tuple[int, int] | None = None
        self._process = subprocess.Popen(
            list(command),
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=self._stdout,
            stderr=self._stderr,
            start_new_session=True,
        )

    def is_running(self) -> bool:
        """Returns True until the process ends; does not reap the process, so that its PID is not used again."""
        if self._ended is None:
            result = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if result is not None:
                self._ended = (result.si_code, result.si_status)
        return self._ended is None

    def has_failed(self) -> bool:
        """Returns True if the process has ended otherwise than with exit code 0."""
        return self._ended is not None and self._ended != (os.CLD_EXITED, 0)

    def finish(self, why_stopped: str) -> ProbeEnd:
        """Kills what is left of the session and returns the end, with ``why_stopped`` if the process still ran."""
        timed_out = self.is_running()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        exit_code = self._process.wait()
        with self._stdout, self._stderr:
            answer, error_text = _answer(_read(self._stdout)), _read(self._stderr)
        if answer is None or "problem" in answer:
            problem = (answer or {}).get("problem", "")
            if timed_out:
                return ProbeEnd(problem=f"{why_stopped}, and it was stopped", timed_out=True)
            last = next((line.strip() for line in reversed(error_text.splitlines()) if line.strip()), "")
            ended = describe_exit(exit_code) + (f"; its last output: {last[:300]}" if last else "")
            return ProbeEnd(problem=problem or ended, user_error=(answer or {}).get("user_error"))
        return ProbeEnd(answer)


def _read(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read().decode(errors="replace")


def _answer(text: str) -> dict[str, Any] | None:
    for line in reversed(text.splitlines()):
        if line.startswith(ANSWER):
            found: dict[str, Any] = json.loads(line.removeprefix(ANSWER))
            return found
    return None
