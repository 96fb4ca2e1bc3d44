"""Whole launches: restarts, stalls, first causes, environments, logs and exit codes, with real processes."""

from __future__ import annotations

import signal
import time

import pytest

SEVERAL = ("--nproc", "2")
RESTARTS = ("--max-restarts", "3")


def test_one_worker_needs_no_torch_in_the_launcher(job):
    job.start("plain_worker.py", str(job.run_dir), "--steps", "3")
    assert job.wait() == 0
    assert job.outcome["kind"] == "done"
    assert job.outcome["torch_loaded"] is False
    assert "rank 0 begins at step 0" in job.stdout
    assert "rank 0 warns" in job.stderr


def test_json_keeps_stdout_for_the_launcher(job):
    job.start("plain_worker.py", str(job.run_dir), "--steps", "3", options=("--json",))
    assert job.wait() == 0
    assert job.stdout == ""
    assert "rank 0 begins at step 0" in job.stderr


def test_several_workers_restart_from_where_they_were_and_keep_their_logs(job):
    failing = ("--fail-rank", "1", "--fail-step", "3", "--fail-times", "1", "--steps", "60")
    job.start("plain_worker.py", str(job.run_dir), *failing, options=(*SEVERAL, *RESTARTS, "--json"))
    assert job.wait() == 0
    assert job.outcome["restarts"] == 1
    assert "restart 1 of 3" in job.stderr
    assert job.stdout == ""
    log = (job.run_dir / "logs" / "rank1.log").read_text()
    assert log.count("=== attempt") == 2
    assert log.count("ValueError: box 7") == 1
    begins = [int(line.split()[-1]) for line in log.splitlines() if "begins at step" in line]
    assert begins[0] == 0 < begins[1]
    assert "rank 0 begins" in job.stderr
    assert "rank 1 begins" not in job.stderr
    assert job.alive() == []


@pytest.mark.parametrize("how", ["raise", "SIGKILL", "SIGSEGV"])
def test_one_worker_is_restarted_by_the_same_rule(job, how):
    failing = ("--fail-rank", "0", "--fail-times", "1", "--steps", "10", "--fail-how", how)
    job.start("plain_worker.py", str(job.run_dir), *failing, options=RESTARTS)
    assert job.wait() == 0
    assert job.outcome["restarts"] == 1
    assert "restart 1 of 3, from the first step: no checkpoint was written yet" in job.stderr


def test_restarts_are_counted_for_the_whole_job(job):
    failing = ("--fail-rank", "0", "--steps", "10", "--fail-times", "99")
    job.start("plain_worker.py", str(job.run_dir), *failing, options=("--max-restarts", "2"))
    assert job.wait() == 1
    assert job.outcome["restarts"] == 2
    assert job.outcome["detail"] == "all 2 restarts are used up"


def test_a_crash_before_the_first_step_is_explained_and_not_retried(job):
    failing = ("--fail-rank", "0", "--fail-step", "0")
    job.start("plain_worker.py", str(job.run_dir), *failing, options=RESTARTS)
    assert job.wait() == 1
    assert job.outcome["restarts"] == 0
    assert "no step had finished yet" in job.outcome["detail"]
    assert "no step had finished yet" in job.stderr


def test_a_users_mistake_is_never_retried_and_has_its_four_parts(job):
    failing = ("--fail-rank", "0", "--fail-how", "user", "--fail-step", "5")
    job.start("plain_worker.py", str(job.run_dir), *failing, options=RESTARTS)
    assert job.wait() == 2
    assert job.outcome["restarts"] == 0
    assert job.stderr.splitlines()[-5:] == [
        "the worker refused its input",
        "the data set has no labels",
        "Seen:     0 files",
        "Expected: text files in labels/",
        "Next:     yolo-launch doctor --data my.yaml",
    ]


def test_saving_on_a_signal_to_the_worker_itself_is_not_a_failure(job):
    job.start("plain_worker.py", str(job.run_dir), options=RESTARTS).wait_for("ready0")
    job.worker().send_signal(signal.SIGTERM)
    assert job.wait() == 75
    assert job.outcome["kind"] == "saved_and_stopped"
    assert job.outcome["restarts"] == 0


STALL = ("--stall-s", "1.5", "--limits", '{"start_allowance_s": 2.5, "stacks_s": 0.5}')


def test_a_stall_is_noticed_shown_with_its_stack_and_ended(job):
    hanging = ("--fail-rank", "0", "--fail-how", "hang", "--stuck-loaders", "1")
    job.start("plain_worker.py", str(job.run_dir), *hanging, options=(*STALL, *RESTARTS))
    job.wait_for("failures0.txt")
    since = time.monotonic()
    assert job.wait() == 4
    assert job.seconds_until_nothing_is_left(since) < 6
    failure = job.outcome["failure"]
    assert job.outcome["kind"] == "stalled"
    assert (failure["rank"], failure["phase"], failure["step"]) == (0, "train", 3)
    assert "hang_in_a_lock" in failure["traceback"]
    assert "rank 0 has been in 'train' (epoch 1, step 3) for " in failure["message"]
    assert "plain_worker.py" in failure["message"]


def test_a_stall_before_the_first_heartbeat_has_its_own_limit(job):
    job.start("plain_worker.py", str(job.run_dir), "--silent", options=STALL)
    since = time.monotonic()
    assert job.wait() == 4
    assert time.monotonic() - since > 2.5
    assert "rank 0 has been in 'start' for " in job.outcome["failure"]["message"]


@pytest.mark.slow
def test_slow_steps_are_no_stall(job):
    job.start("plain_worker.py", str(job.run_dir), "--steps", "2", "--step-s", "1.2", options=STALL)
    assert job.wait() == 0


def test_a_stopped_process_is_named_as_such(job):
    job.start("plain_worker.py", str(job.run_dir), options=STALL).wait_for("ready0")
    job.worker().suspend()
    assert job.wait() == 4
    assert "the process is stopped" in job.outcome["failure"]["message"]
    assert job.alive() == []


@pytest.mark.slow
def test_a_rank_stuck_in_its_loader_is_told_from_those_that_wait_for_it(job):
    stuck = ("--loaders", "0", "--stuck-after", "20")
    options = ("--nproc", "3", "--stall-s", "3", "--limits", '{"stacks_s": 1.0}')
    job.start("gloo_worker.py", str(job.run_dir), *stuck, "--stuck-rank", "1", options=options)
    assert job.wait(120) == 4
    failure = job.outcome["failure"]
    assert failure["rank"] == 1
    assert "__getitem__" in failure["traceback"].split("Stack of rank")[1]
    assert failure["message"].count("waiting for the other ranks in all_reduce") == 2


@pytest.mark.slow
@pytest.mark.parametrize("how", ["raise", "SIGKILL"])
def test_the_first_cause_of_three_ranks_is_named(job, how):
    options = ("--nproc", "3")
    failing = ("--fail-rank", "2", "--fail-how", how)
    job.start("gloo_worker.py", str(job.run_dir), *failing, options=options)
    assert job.wait(120) == 1
    failure = job.outcome["failure"]
    assert failure["rank"] == 2
    assert failure["message"] == ("ValueError: no such class: 99" if how == "raise" else "killed by SIGKILL")
    assert job.alive() == []


@pytest.mark.slow
def test_real_process_groups_form_again_after_a_restart(job):
    failing = ("--fail-rank", "1", "--fail-times", "2", "--fail-step", "5", "--steps", "12")
    job.start("gloo_worker.py", str(job.run_dir), *failing, options=(*SEVERAL, *RESTARTS))
    assert job.wait(120) == 0
    assert job.outcome["restarts"] == 2


def test_inherited_ranks_and_rendezvous_do_not_leak_in(job, tmp_path):
    script = tmp_path / "show.py"
    script.write_text("import os, json\nprint(json.dumps(dict(os.environ)))\n")
    leftovers = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "3", "NODE_RANK": "1", "MASTER_ADDR": "far.away"}
    leftovers |= {"PET_NNODES": "4", "TORCHELASTIC_RUN_ID": "other", "MASTER_PORT": "29500"}
    job.start(str(script), environment=leftovers, options=("--foreign",))
    assert job.wait() == 0
    seen = eval(job.stdout)
    assert not seen.items() & leftovers.items()
    assert (seen["RANK"], seen["WORLD_SIZE"], "PET_NNODES" in seen) == ("0", "1", False)
    assert seen["OMP_NUM_THREADS"] == "1"
    assert seen["TORCHELASTIC_ERROR_FILE"].endswith("logs/rank0.error.json")


FOREIGN = """
import sys, time
from neighbor import VALUE
import trainer
assert VALUE == 5 and trainer.OWNER == "the script", trainer
assert sys.argv == [__file__, "--epochs", "3"], sys.argv
print("progress 1\\rprogress 2\\rdone")
if "{how}" == "raise":
    raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
if "{how}" == "usage":
    import argparse
    argparse.ArgumentParser().parse_args(["--epoch"])
if "{how}" == "sleep":
    open(r"{ready}", "w").close()
    time.sleep(60)
"""


def foreign(job, tmp_path, how):
    """A script with neighbors of its own, one of them named like the built-in trainer."""
    (tmp_path / "neighbor.py").write_text("VALUE = 5\n")
    (tmp_path / "trainer.py").write_text("OWNER = 'the script'\n")
    script = tmp_path / "their_train.py"
    script.write_text(FOREIGN.format(how=how, ready=job.run_dir / "ready0"))
    return job.start(str(script), "--epochs", "3", options=("--foreign", *RESTARTS))


def test_a_foreign_script_runs_as_if_python_had_started_it(job, tmp_path):
    assert foreign(job, tmp_path, "nothing").wait() == 0
    assert (job.run_dir / "stdout.txt").read_bytes() == b"progress 1\rprogress 2\rdone\n"
    assert (job.run_dir / "logs" / "rank0.log").read_text().splitlines()[1:] == ["done"]


def test_a_foreign_scripts_exception_is_the_cause(job, tmp_path):
    assert foreign(job, tmp_path, "raise").wait() == 1
    failure = job.outcome["failure"]
    assert failure["message"] == "RuntimeError: CUDA out of memory. Tried to allocate 2 GiB"
    assert failure["traceback"].splitlines()[1].startswith(f'  File "{tmp_path / "their_train.py"}"')
    assert "script_entrypoint" not in job.stderr + failure["traceback"]
    assert "runpy" not in job.stderr + failure["traceback"]
    assert job.stderr.count("Traceback (most recent call last)") == 1
    assert "--batch" in failure["hint"]
    assert "writes no heartbeat" in job.outcome["detail"]
    assert "RuntimeError" in (job.run_dir / "logs" / "rank0.log").read_text()


def test_a_foreign_script_that_refuses_its_arguments_is_not_retried(job, tmp_path):
    assert foreign(job, tmp_path, "usage").wait() == 1
    assert job.outcome["failure"]["exit_code"] == 2
    assert job.outcome["restarts"] == 0
    assert "their_train.py: error: unrecognized arguments: --epoch" in job.stderr.split("Its last lines:")[1]
    assert "refused its own arguments" in job.outcome["failure"]["hint"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_foreign_script_gets_the_signal_that_the_user_sent(job, tmp_path, number):
    foreign(job, tmp_path, "sleep").wait_for("ready0")
    since = job.signal(number)
    assert job.wait() == 128 + number
    assert job.seconds_until_nothing_is_left(since) < 2.5
    assert job.outcome["kind"] == "interrupted"
    assert ("KeyboardInterrupt" in job.stderr) == (number == signal.SIGINT)
    assert "script_entrypoint" not in job.stderr
    assert "saving" not in job.stderr


def test_a_foreign_script_with_heartbeats_is_restarted_by_the_same_rule(job, tmp_path):
    script = tmp_path / "beating.py"
    script.write_text(
        "import json, os, pathlib\n"
        "logs = pathlib.Path(os.environ['YOLO_LOGS_DIR'])\n"
        "beat = {'phase': 'train', 'epoch': 0, 'step': 3, 'time': 1.0}\n"
        "(logs / 'rank0.heartbeat.json').write_text(json.dumps(beat))\n"
        "mark = logs / 'failed.once'\n"
        "if not mark.exists():\n"
        "    mark.touch()\n"
        "    raise RuntimeError('a hiccup')\n"
    )
    assert job.start(str(script), options=("--foreign", *RESTARTS)).wait() == 0
    assert job.outcome["restarts"] == 1
    assert "RuntimeError: a hiccup); restart 1 of 3, the script starts again" in job.stderr


def test_a_script_without_heartbeats_is_said_once_to_be_unwatched(job, tmp_path):
    script = tmp_path / "quiet.py"
    script.write_text("import time\ntime.sleep(2)\n")
    limits = ("--limits", '{"start_allowance_s": 0.5}')
    assert job.start(str(script), options=("--foreign", "--stall-s", "0.5", *limits)).wait() == 0
    assert job.stderr.count("a hang will not be noticed") == 1


def test_a_foreign_script_dies_with_the_launcher(job, tmp_path):
    foreign(job, tmp_path, "sleep").wait_for("ready0")
    since = job.signal(signal.SIGKILL)
    assert job.seconds_until_nothing_is_left(since) < 2.2


@pytest.mark.slow
def test_twenty_restarts_of_twenty_succeed(job):
    failing = ("--fail-rank", "1", "--fail-times", "20", "--fail-step", "1", "--steps", "3")
    job.start("gloo_worker.py", str(job.run_dir), *failing, options=(*SEVERAL, "--max-restarts", "20"))
    assert job.wait(280) == 0
    assert job.outcome["restarts"] == 20
