"""Runs one start of all workers of this node, from their files to the report on them."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from trainer.protocol import read_failure
from yolo_launch.diagnosis.causes import hint_for, look_up_facts
from yolo_launch.diagnosis.failures import FailureKey, WorkerEnd, first_of, rank_failures, worker_ends
from yolo_launch.diagnosis.hangs import StalledRank, blocking_rank
from yolo_launch.diagnosis.heartbeat_monitor import HangDetector
from yolo_launch.diagnosis.outcome import NodeReport
from yolo_launch.errors import ExitCode, LaunchError
from yolo_launch.host.cgroup import OomKillCounter
from yolo_launch.host.inventory import INSTALLED_ONLY
from yolo_launch.spec import LaunchPlan, RankFailure, StoreAddress, WorkerCommand
from yolo_launch.supervision.monitor import WorkerMonitor
from yolo_launch.workers import single_worker as one_worker
from yolo_launch.workers.environment import applied, child_environment, only_rank_environment
from yolo_launch.workers.files import WorkerFiles
from yolo_launch.workers.processes import Workers
from yolo_launch.workers.rank0_output import Rank0Output

Say = Callable[[str], None]


@dataclass
class Attempt:
    """Holds what is known of one start of the workers."""

    workers: Workers
    hang_detector: HangDetector
    agent_exit_codes: dict[int, int] = field(default_factory=dict)
    agent_error: Exception | None = None
    ran_s: float = 0.0
    ends: list[WorkerEnd] = field(default_factory=list)
    failures: list[tuple[FailureKey, RankFailure]] = field(default_factory=list)
    """Every rank that failed with the key that puts the cause first."""

    @property
    def failure(self) -> RankFailure | None:
        """Returns the failure that caused the others, or None."""
        return first_of(self.failures)

    @property
    def saved(self) -> bool:
        """Returns whether a worker ended with its state saved because it was asked to stop."""
        return any(end.exit_code == ExitCode.SAVED_AND_STOPPED for end in self.ends)

    @property
    def all_done(self) -> bool:
        """Returns whether every worker was started and ended well."""
        return bool(self.workers.by_rank) and all(end.exit_code == 0 for end in self.ends)


class AttemptRunner:
    """Starts the workers of one plan, as often as it is asked to."""

    def __init__(self, plan: LaunchPlan, command: WorkerCommand, files: WorkerFiles, *, console_json: bool) -> None:
        self.plan = plan
        self.command = command
        self.files = files
        self._console_json = console_json
        self._oom_kills = OomKillCounter()

    def environment(self, mark: str, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """Returns the environment that the workers inherit."""
        inherited = {**os.environ, **(more or {}), **({} if self.command.foreign else INSTALLED_ONLY)}
        return child_environment(
            self.plan,
            self.files,
            mark,
            inherited,
            console_json=self._console_json,
            keep_temporary_folder=self.command.foreign,
        )

    def run(self, monitor: WorkerMonitor, number: int, meeting: StoreAddress) -> Attempt:
        """Starts the workers and waits until all have ended. Call it in the main thread."""
        plan, files = self.plan, self.files
        files.begin_attempt(number, plan.ranks)
        mark = f"{uuid.uuid4().hex}.{number}"
        hang_detector = HangDetector(
            files,
            plan.stall_timeout_s,
            start_allowance_s=monitor.limits.start_allowance_s,
            required=not self.command.foreign,
            elsewhere_idle_s=monitor.events.elsewhere_idle_s,
        )
        attempt = Attempt(Workers(mark, self._oom_kills.look_at), hang_detector)
        output = Rank0Output(files.log(0), logs_stdout=self.command.foreign, to_stderr=self._console_json)
        environment = self.environment(mark)
        began_at = time.monotonic()
        monitor.begin(attempt.workers, files, hang_detector)
        try:
            with applied(environment):
                if plan.world_size == 1:
                    self._run_one(monitor, attempt, output, number)
                else:
                    self._run_several(monitor, attempt, output, meeting, number)
        finally:
            monitor.end()
            output.close()
        attempt.ran_s = time.monotonic() - began_at
        # The monitor reads heartbeats now and then; what came after its last look counts as well.
        hang_detector.look(plan.ranks, time.monotonic())
        attempt.ends = worker_ends(attempt.workers.by_rank, attempt.agent_exit_codes, plan.ranks)
        attempt.failures = [
            (key, replace(one, local_rank=one.rank - plan.first_rank))
            for key, one in rank_failures(attempt.ends, files, hang_detector.latest())
        ]
        return attempt

    def report(self, attempt: Attempt, monitor: WorkerMonitor) -> NodeReport:
        """Returns how an attempt ended on this node. Raises LaunchError if torch's agent itself failed."""
        detector, failure = attempt.hang_detector, attempt.failure
        report = NodeReport(
            # A rank that nobody saw failing ended well, unless it was ordered to end.
            "done" if attempt.all_done or not monitor.round_ended else "ended",
            saved=attempt.saved,
            heard=detector.heard,
            finished_a_step=detector.finished_a_step,
            ran_s=attempt.ran_s,
        )
        if monitor.stall:
            return replace(
                report, kind="stalled", stalled=tuple(monitor.stall), failure=self._blocking_failure(monitor.stall)
            )
        if monitor.stop_signal is not None and not attempt.all_done:
            is_shown = failure is not None and not attempt.saved and self._has_error_file(failure)
            return replace(
                report,
                kind="stopped",
                signal=int(monitor.stop_signal),
                failure=failure if is_shown else None,
            )
        if attempt.failures:
            return self._failure_report(report, attempt.failures, round_ended=monitor.round_ended)
        if attempt.saved:
            return replace(report, kind="saved")
        if attempt.agent_error is not None:
            raise self._agent_failed(attempt.agent_error) from attempt.agent_error
        return report

    def _failure_report(
        self, report: NodeReport, failures: list[tuple[FailureKey, RankFailure]], *, round_ended: bool
    ) -> NodeReport:
        key, failure = min(failures, key=lambda pair: pair[0])
        return replace(
            report,
            # Workers that were ended because of another node are no failure of this one.
            kind="ended" if round_ended and key[0] else "failed",
            failure=self.with_hint(failure),
            key=key,
            # A step that no heartbeat showed may stand in the error file.
            finished_a_step=report.finished_a_step
            or (failure.phase not in ("start", "scan") and (failure.epoch or 0, failure.step or 0) > (0, 0)),
        )

    def _blocking_failure(self, stalled: list[StalledRank]) -> RankFailure:
        rank = blocking_rank(stalled).rank
        path = str(self.files.stacks(rank))
        return RankFailure(rank, rank - self.plan.first_rank, -signal.SIGKILL, log_path=path)

    def _has_error_file(self, failure: RankFailure) -> bool:
        return read_failure(self.files, failure.rank) is not None

    def with_hint(self, failure: RankFailure) -> RankFailure:
        """Returns the failure with one sentence on what to do, from what this machine knows."""
        if failure.user_error is not None or failure.hint:
            return failure
        facts = look_up_facts(failure, self.plan, self._oom_kills.count(), foreign=self.command.foreign)
        return replace(failure, hint=hint_for(failure, facts))

    def _agent_failed(self, error: Exception) -> LaunchError:
        return LaunchError(
            "torch's elastic agent failed before the workers could start",
            seen=f"{type(error).__name__}: {error}",
            expected=f"see {self.files.agent_log}",
            exit_code=ExitCode.ENVIRONMENT,
        )

    def _run_one(self, monitor: WorkerMonitor, attempt: Attempt, output: Rank0Output, restarts: int) -> None:
        # The built-in trainer knows by itself that it is alone.
        ranks = only_rank_environment(restarts, self.plan.max_restarts) if self.command.foreign else {}
        attempt.agent_exit_codes[0] = one_worker.run_child(
            self.command, self.files, output, environment=ranks, started=monitor.worker_started
        )

    def _run_several(
        self, monitor: WorkerMonitor, attempt: Attempt, output: Rank0Output, meeting: StoreAddress, restarts: int
    ) -> None:
        from yolo_launch.workers import elastic_agent as elastic  # imports torch

        def before() -> None:
            if not monitor.workers_start(self.plan.nproc_per_node):
                raise elastic.StartCanceled

        try:
            result = elastic.run_agent(
                self.plan, self.command, self.files, meeting, output, restarts=restarts, before=before
            )
        except elastic.StartCanceled:
            return
        attempt.agent_exit_codes.update(result.exit_codes)
        attempt.agent_error = result.error
