"""Handles the folder of a run: chooses it once, makes it atomically, and finds it again for a resume."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer.errors import UserError
from trainer.protocol import CONFIG_FILE, METRICS_FILE, RESULTS_FILE, SUMMARY_FILE, RunFiles, replace_text
from yolo_launch.errors import LaunchError
from yolo_launch.jobs.run_lock import HOLDER_FILE, LOCK_FILE, OUTCOME_FILE, cannot_write, is_held
from yolo_launch.words import counted

PLAN_FILE = "plan.json"
MASTERS_FOLDER = "master_run_dir"
"""What the plan names in a folder that holds a member's part of a run."""
_LEFT_BY_A_RUN = ("weights/*", "logs/*", RESULTS_FILE, METRICS_FILE, SUMMARY_FILE, OUTCOME_FILE)
_MOST_RUNS = 10_000


def launcher_log(run_dir: Path) -> Path:
    """Returns the path of what a launcher says that has left its terminal."""
    return RunFiles(run_dir).logs.folder / "launcher.log"


def next_run_dir(project: str, name: str, *, exist_ok: bool) -> Path:
    """Returns the folder that a run would get now; nothing is made."""
    for folder in _candidates(project, name):
        if exist_ok or not folder.exists():
            return folder
    raise _too_many(project, name)


def create_run_dir(project: str, name: str, *, exist_ok: bool) -> Path:
    """Makes the folder of a new run: ``exp``, or ``exp2``, ... if it exists; two launchers never get the same one.

    Raises LaunchError if the folder cannot be made.
    """
    for folder in _candidates(project, name):
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(exist_ok=exist_ok)
        except FileExistsError:
            if exist_ok or not folder.parent.is_dir():
                raise cannot_write(folder, "a file is in the way") from None
            continue
        except OSError as error:
            raise cannot_write(folder, error.strerror or str(error)) from None
        return folder
    raise _too_many(project, name)


def discard(run_dir: Path) -> None:
    """Removes the folder of a run that was refused before it learned or wrote anything, so that no resume finds it.

    A folder with weights, results or files of somebody else's stays.
    """
    own = {CONFIG_FILE, PLAN_FILE, LOCK_FILE, HOLDER_FILE, "weights", "logs", "val.yaml", "predict.yaml", "export.yaml"}
    with contextlib.suppress(OSError):
        names = {path.name for path in run_dir.iterdir()}
        if names <= own and not any(run_dir.glob("weights/*")):
            shutil.rmtree(run_dir)


@contextlib.contextmanager
def discarded_if_refused(run_dir: Path, *, is_new: bool) -> Iterator[None]:
    """Removes a run's folder, if this command made it, when the block raises an error that is the user's to mend."""
    try:
        yield
    except UserError:
        if is_new:
            discard(run_dir)
        raise


def clear_old_run(run_dir: Path) -> None:
    """Removes what an earlier run left in a folder that ``--exist-ok`` uses again, so that nothing is mixed.

    Raises LaunchError for a folder with contents of somebody else's.
    """
    is_run = (run_dir / PLAN_FILE).is_file()
    leftovers = [path for pattern in _LEFT_BY_A_RUN for path in sorted(run_dir.glob(pattern)) if path.is_file()]
    if leftovers and not is_run:
        raise LaunchError(
            f"--exist-ok would write into {run_dir}, which is not a run of yolo-launch.",
            seen=str(leftovers[0]),
            expected="an earlier run, or a folder without weights and results",
            next_command="choose another --name or --project",
        )
    for path in leftovers:
        path.unlink(missing_ok=True)


def is_finished(run_dir: Path) -> bool:
    """Returns True if a run came to its end, which its summary shows."""
    return (run_dir / SUMMARY_FILE).is_file()


def find_run(project: str, wanted: str) -> Path:
    """Finds a run by its folder, a file in it, or its name in ``project``. Raises LaunchError if there is none."""
    for folder in (Path(wanted), Path(project) / wanted):
        if (folder / PLAN_FILE).is_file():
            return folder
        found = _run_folder_of(folder)
        if found is not None:
            return found
    raise LaunchError("There is no such run.", seen=wanted, expected="a run's folder", next_command="yolo-launch runs")


def find_run_to_resume(project: str, wanted: str, newest: str) -> Path:
    """Finds the run that ``--resume`` means: its folder, a file in it, its name, or the newest unfinished one.

    Raises LaunchError if there is none, if it vanished or if it holds no configuration.
    """
    if wanted == newest:
        return _newest_unfinished(Path(project))
    for folder in (Path(wanted), Path(project) / wanted):
        found = _run_folder_of(folder)
        if found is not None:
            return found
    if Path(wanted).is_dir():
        seen, expected = f"no {CONFIG_FILE} in {wanted}", "a run directory that yolo-launch wrote"
    else:
        seen, expected = f"--resume {wanted}", _runs_text(Path(project))
    raise LaunchError(
        "The run to resume is not there.", seen=seen, expected=expected, next_command="yolo-launch train --resume"
    )


def reopen_run(run_dir: Path) -> None:
    """Marks a finished run as unfinished, for one that is trained further."""
    (run_dir / SUMMARY_FILE).unlink(missing_ok=True)


def read_summary(run_dir: Path) -> dict[str, Any]:
    """Reads what the trainer wrote at its end; empty if it wrote nothing."""
    return _read_json(run_dir / SUMMARY_FILE)


def is_judged(summary: Mapping[str, Any]) -> bool:
    """Returns True if a finished run or validation measured anything; without a labeled image it cannot."""
    return bool(summary.get("is_judged", True))


def read_plan(run_dir: Path) -> dict[str, Any]:
    """Reads the plan that a run was started with; empty if it is missing or damaged."""
    return _read_json(run_dir / PLAN_FILE)


def _read_json(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content
    return {}


def write_outcome(run_dir: Path, facts: Mapping[str, Any]) -> None:
    """Leaves how a launcher ended, for whoever looks at the run later; a full disk is no failure of the job."""
    with contextlib.suppress(OSError):
        replace_text(run_dir / OUTCOME_FILE, json.dumps(facts, indent=2) + "\n")


def read_outcome(run_dir: Path) -> dict[str, Any]:
    """Reads how the last launcher of a run ended; empty while one works on it, and if it was killed."""
    return _read_json(run_dir / OUTCOME_FILE)


def write_plan(run_dir: Path, facts: Mapping[str, Any]) -> None:
    """Writes the plan beside the configuration. Raises LaunchError for a full or read-only disk."""
    with writing_to(run_dir):
        replace_text(run_dir / PLAN_FILE, json.dumps(facts, indent=2) + "\n")


@contextlib.contextmanager
def writing_to(run_dir: Path) -> Iterator[None]:
    """Turns the file system's refusals into a LaunchError that names the folder."""
    try:
        yield
    except OSError as error:
        raise cannot_write(run_dir, error.strerror or str(error)) from None


def _candidates(project: str, name: str) -> Iterator[Path]:
    if not name.strip("/. "):
        raise LaunchError("--name must name a folder.", seen=f"--name {name!r}", expected="for example --name exp")
    first = Path(project) / name
    yield first
    for number in range(2, _MOST_RUNS):
        yield first.with_name(f"{first.name}{number}")


def _run_folder_of(path: Path) -> Path | None:
    """Returns the run folder that a path is or lies in (YOLOv5 users type ``runs/train/exp/weights/last.pt``)."""
    for folder in (path, path.parent, path.parent.parent):
        if (path.exists() or folder != path) and (folder / CONFIG_FILE).is_file():
            return folder
        if path.is_dir():
            break
    return None


def _newest_unfinished(project: Path) -> Path:
    runs = [path.parent for path in project.glob(f"*/{CONFIG_FILE}")]
    unfinished = [run for run in runs if not is_finished(run)]
    free = [run for run in unfinished if not is_held(run)]
    if free:
        return max(free, key=_last_touched)
    if unfinished:
        seen = f"{len(unfinished)} unfinished, being trained right now: {', '.join(map(str, unfinished))}"
    else:
        seen = f"{counted(len(runs), 'run')} in {project}, all finished" if runs else f"no run in {project}"
    raise LaunchError(
        "There is no unfinished run to resume.",
        seen=seen,
        expected=f"a run without {SUMMARY_FILE}; a finished one goes on with more epochs",
        next_command=f"yolo-launch train --resume {max(runs, key=_last_touched)} --epochs N"
        if runs
        else "yolo-launch train",
    )


def _last_touched(run_dir: Path) -> float:
    times = [0.0]
    for path in (run_dir / CONFIG_FILE, run_dir / PLAN_FILE, *run_dir.glob("weights/*.pt")):
        with contextlib.suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(times)


def _runs_text(project: Path) -> str:
    runs = sorted((path.parent for path in project.glob(f"*/{CONFIG_FILE}")), key=_last_touched)
    if not runs:
        return f"a run directory; {project} holds none"
    return f"one of {', '.join(str(run) for run in runs[-5:])}"


def _too_many(project: str, name: str) -> LaunchError:
    return LaunchError(f"{project} holds {_MOST_RUNS} runs called {name}.", next_command="choose another --name")
