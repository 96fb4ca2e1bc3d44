"""Checks a launch before anything is started, for train, run, node and doctor: a new check is one row of CHECKS."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from yolo_launch.checks import inputs as input_checks
from yolo_launch.checks import machine as machine_checks
from yolo_launch.checks.context import Check, Context
from yolo_launch.errors import ExitCode, LaunchError
from yolo_launch.spec import Finding

USAGE_CHECKS = frozenset({"data", "model", "weights", "imgsz", "script"})
"""Checks whose failure is a mistake in what was typed, not in the machine."""

CHECKS: tuple[Check, ...] = (
    machine_checks.check_python,
    machine_checks.check_torch_packages,
    machine_checks.check_gpus,
    machine_checks.check_driver,
    machine_checks.check_cuda_starts,
    input_checks.check_data,
    input_checks.check_model,
    input_checks.check_weights,
    input_checks.check_image_size,
    input_checks.check_script,
    machine_checks.check_compiler,
    machine_checks.check_run_dir,
    machine_checks.check_temporary_folder,
    machine_checks.check_open_files,
    machine_checks.check_shared_memory,
    input_checks.check_memory_for_cache,
    machine_checks.check_port,
    machine_checks.check_host_name,
)


def run_checks(context: Context) -> list[Finding]:
    """Returns the findings of every check, failures too, in the order of CHECKS."""
    found: list[Finding] = []
    for check in CHECKS:
        found.extend(check(context))
    return found


def exit_code_of(findings: Iterable[Finding]) -> ExitCode:
    """Returns 0 without a failure, 2 if all failures are mistakes in what was typed, 3 if one is the machine's."""
    failures = [finding for finding in findings if finding.level == "failure"]
    if not failures:
        return ExitCode.DONE
    return ExitCode.USAGE if all(finding.check in USAGE_CHECKS for finding in failures) else ExitCode.ENVIRONMENT


def refuse_failures(findings: Sequence[Finding]) -> None:
    """Raises LaunchError with every failure, if there is one."""
    exit_code = exit_code_of(findings)
    if exit_code == ExitCode.DONE:
        return
    failures = [finding for finding in findings if finding.level == "failure"]
    advice = "\n".join(dict.fromkeys(finding.advice for finding in failures if finding.advice))
    raise LaunchError(
        "\n".join(finding.seen for finding in failures),
        next_command=advice or ("yolo-launch doctor" if exit_code == ExitCode.ENVIRONMENT else ""),
        exit_code=exit_code,
    )
