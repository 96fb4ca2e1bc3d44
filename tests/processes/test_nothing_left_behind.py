"""Kills and signals of every kind, with real workers and real stuck loader processes: times, exit codes, no orphans.

Times are those of a quiet machine with room for a busy one.
"""

from __future__ import annotations

import signal
import time

import pytest

from tests.processes.conftest import wait_until

BUSY_S = 2.0
SEVERAL = ("--nproc", "2")


@pytest.fixture(params=[1, pytest.param(2, marks=pytest.mark.slow)])
def nproc(request) -> int:
    return request.param


def running(job, nproc, *arguments, limits="{}", **how):
    """A job with so many workers that has finished its first step."""
    options = ("--nproc", str(nproc), "--limits", limits)
    job.start("plain_worker.py", str(job.run_dir), *arguments, options=options, **how)
    return job.wait_for(*(f"ready{rank}" for rank in range(nproc)))


def test_kill_9_of_the_launcher_takes_workers_and_stuck_loaders_along(job, nproc):
    running(job, nproc, "--stuck-loaders", "2", "--on-term", "ignore")
    assert len(job.alive()) == 3 * nproc
    since = job.signal(signal.SIGKILL)
    assert job.seconds_until_nothing_is_left(since) < 0.2 + BUSY_S


def test_kill_9_of_a_worker_takes_its_stuck_loaders_along(job, nproc):
    running(job, nproc, "--stuck-loaders", "2")
    last = job.worker(nproc - 1)
    loaders = job.loaders(nproc - 1)
    assert len(loaders) == 2
    last.kill()
    since = time.monotonic()
    while any(loader.is_running() and loader.status() != "zombie" for loader in loaders):
        assert time.monotonic() - since < 0.2 + BUSY_S
        time.sleep(0.01)
    gone_after_s = job.seconds_until_nothing_is_left(since)
    assert gone_after_s < 3.8 + BUSY_S
    assert job.wait() == 1
    assert job.outcome["kind"] == "worker_failed"
    assert job.outcome["failure"]["rank"] == nproc - 1
    assert job.outcome["failure"]["exit_code"] == -9
    assert "out of memory" in job.outcome["failure"]["hint"]


def test_what_a_dead_worker_leaves_in_its_session_is_swept(job):
    running(job, 1, "--plain-children", "2", "--on-term", "ignore")
    assert len(job.loaders()) == 2
    job.worker().kill()
    gone_after_s = job.seconds_until_nothing_is_left(time.monotonic())
    assert gone_after_s < 0.2 + BUSY_S
    assert job.wait() == 1


def test_ctrl_c_gives_deaf_workers_three_seconds(job, nproc):
    running(job, nproc, "--on-term", "ignore", "--stuck-loaders", "1")
    since = job.signal(signal.SIGINT)
    gone_after_s = job.seconds_until_nothing_is_left(since)
    assert 2.9 < gone_after_s < 3.5 + BUSY_S
    assert job.wait() == 130
    assert job.outcome["kind"] == "interrupted"


def test_a_second_ctrl_c_ends_deaf_workers_at_once(job, nproc):
    running(job, nproc, "--on-term", "ignore", "--stuck-loaders", "1")
    job.signal(signal.SIGINT)
    time.sleep(0.1)
    since = job.signal(signal.SIGINT)
    assert job.seconds_until_nothing_is_left(since) < 0.56 + BUSY_S
    assert job.wait() == 130


def test_three_ctrl_c_leave_nothing(job, nproc):
    running(job, nproc, "--on-term", "ignore", "--stuck-loaders", "1")
    for _ in range(3):
        since = job.signal(signal.SIGINT)
        time.sleep(0.1)
    gone_after_s = job.seconds_until_nothing_is_left(since)
    assert gone_after_s < 0.56 + BUSY_S
    assert job.wait() == 130


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_stop_signal_lets_the_workers_save(job, nproc, number):
    running(job, nproc, "--stuck-loaders", "1", "--save-s", "0.5")
    since = job.signal(number)
    gone_after_s = job.seconds_until_nothing_is_left(since)
    assert gone_after_s < 2 + BUSY_S
    assert job.wait() == 75
    assert job.outcome["kind"] == "saved_and_stopped"
    assert job.outcome["signal"] == number
    assert all((job.run_dir / f"saved{rank}").exists() for rank in range(nproc))


def test_ctrl_c_saves_too_where_three_seconds_are_enough(job, nproc):
    running(job, nproc, "--save-s", "0.2")
    job.signal(signal.SIGINT)
    assert job.wait() == 130
    assert job.outcome["detail"] == "the state was saved"
    assert (job.run_dir / "saved0").exists()


def test_ctrl_c_lets_a_save_that_has_begun_come_to_its_end(job, nproc):
    running(job, nproc, "--save-s", "2", limits='{"interrupt_s": 0.5}')
    job.signal(signal.SIGINT)
    assert job.wait() == 130
    assert job.outcome["detail"] == "the state was saved"
    assert (job.run_dir / "saved0").exists()
    assert "the workers are saving: 30 s more; Ctrl-C again ends them at once" in job.stderr


def test_a_second_ctrl_c_ends_a_save_at_once(job, nproc):
    running(job, nproc, "--save-s", "60", limits='{"interrupt_s": 0.5}')
    job.signal(signal.SIGINT)
    wait_until(lambda: "the workers are saving" in job.stderr, 10, "no word of saving")
    since = job.signal(signal.SIGINT)
    assert job.seconds_until_nothing_is_left(since) < 0.56 + BUSY_S
    assert job.wait() == 130
    assert not (job.run_dir / "saved0").exists()


def test_what_an_earlier_run_said_of_saving_gives_no_time(job):
    (job.run_dir / "logs").mkdir(parents=True)
    (job.run_dir / "logs" / "rank0.heartbeat.json").write_text('{"phase": "save", "pid": 1}')
    running(job, 1, "--silent", "--on-term", "ignore", limits='{"interrupt_s": 0.5}')
    since = job.signal(signal.SIGINT)
    assert job.seconds_until_nothing_is_left(since) < 0.6 + BUSY_S
    assert job.wait() == 130


def test_workers_that_do_not_save_in_time_are_killed(job, nproc):
    running(job, nproc, "--on-term", "ignore", "--stuck-loaders", "1", limits='{"save_s": 1.5}')
    since = job.signal(signal.SIGTERM)
    gone_after_s = job.seconds_until_nothing_is_left(since)
    assert 1.4 < gone_after_s < 1.5 + BUSY_S
    assert job.wait() == 128 + signal.SIGTERM
    assert job.outcome["kind"] == "interrupted"


@pytest.mark.slow
def test_sigterm_gives_thirty_seconds(job):
    running(job, 1, "--on-term", "ignore")
    since = job.signal(signal.SIGTERM)
    gone_after_s = job.seconds_until_nothing_is_left(since)
    assert 29.5 < gone_after_s < 31 + BUSY_S
    assert job.wait() == 143


def test_ctrl_c_cuts_a_long_save_short(job, nproc):
    running(job, nproc, "--save-s", "60")
    job.signal(signal.SIGTERM)
    time.sleep(0.3)
    since = job.signal(signal.SIGINT)
    gone_after_s = job.seconds_until_nothing_is_left(since)
    assert gone_after_s < 0.56 + BUSY_S
    assert job.wait() == 143


def test_nohup_outlives_its_terminal(job, nproc):
    running(job, nproc, "--steps", "60", ignore_hangup=True)
    job.signal(signal.SIGHUP)
    assert job.wait() == 0
    assert job.outcome["kind"] == "done"


@pytest.mark.parametrize("nproc", [2])
def test_a_crash_beside_a_deaf_peer_ends_in_the_grace(job, nproc):
    failing = ("--fail-rank", "1", "--fail-step", "30", "--fail-how", "SIGSEGV")
    running(job, nproc, "--on-term", "ignore", "--stuck-loaders", "1", *failing)
    job.wait_for("failures1.txt")
    since = time.monotonic()
    gone_after_s = job.seconds_until_nothing_is_left(since)
    assert gone_after_s < 3.8 + BUSY_S
    assert job.wait() == 1
    assert job.outcome["failure"]["rank"] == 1
    assert "segmentation fault" in job.outcome["failure"]["message"]
    assert "Fatal Python error" in (job.run_dir / "logs" / "rank1.log").read_text()


def test_a_worker_that_failed_but_cannot_end_is_ended(job):
    running(job, 1, "--fail-rank", "0", "--fail-how", "fail-then-hang")
    since = time.monotonic()
    gone_after_s = job.seconds_until_nothing_is_left(since)
    assert gone_after_s < 3.8 + BUSY_S
    assert job.wait() == 1
    assert job.outcome["failure"]["message"] == "ValueError: the disk is gone"


@pytest.mark.slow
def test_a_signal_before_the_workers_start_starts_none(job):
    job.start("plain_worker.py", str(job.run_dir), options=SEVERAL)
    # The folder is made right before torch is imported, which takes seconds.
    job.wait_for("logs")
    since = job.signal(signal.SIGTERM)
    gone_after_s = job.seconds_until_nothing_is_left(since)
    assert gone_after_s < 20
    assert job.wait() == 143
    assert not (job.run_dir / "ready0").exists()


def test_real_loaders_that_are_stuck_die_with_a_killed_worker(job):
    worker = ("gloo_worker.py", str(job.run_dir), "--loaders", "2", "--stuck-after", "20")
    job.start(*worker).wait_for("stuck0")
    assert len(job.loaders()) == 2
    job.worker().kill()
    since = time.monotonic()
    gone_after_s = job.seconds_until_nothing_is_left(since)
    assert gone_after_s < 0.2 + BUSY_S
    assert job.wait() == 1


@pytest.mark.slow
def test_real_loaders_that_are_stuck_die_with_a_killed_launcher(job):
    worker = ("gloo_worker.py", str(job.run_dir), "--loaders", "2", "--stuck-after", "20")
    job.start(*worker, options=SEVERAL).wait_for("stuck0", "stuck1")
    since = job.signal(signal.SIGKILL)
    assert job.seconds_until_nothing_is_left(since) < 0.2 + BUSY_S


@pytest.mark.slow
def test_a_killed_loader_ends_the_job_and_is_named(job):
    job.start("gloo_worker.py", str(job.run_dir), "--loaders", "2", options=SEVERAL).wait_for("ready0", "ready1")
    job.loaders(1)[0].kill()
    since = time.monotonic()
    gone_after_s = job.seconds_until_nothing_is_left(since)
    assert gone_after_s < 6 + BUSY_S
    assert job.wait() == 1
    failure = job.outcome["failure"]
    assert failure["rank"] == 1
    assert "DataLoader worker" in failure["message"]
    assert "memory" in failure["hint"]


@pytest.mark.slow
def test_a_graceful_save_still_has_its_loaders(job):
    job.start("gloo_worker.py", str(job.run_dir), "--loaders", "2", options=SEVERAL).wait_for("ready0", "ready1")
    time.sleep(0.5)
    since = job.signal(signal.SIGTERM)
    gone_after_s = job.seconds_until_nothing_is_left(since)
    assert gone_after_s < 5 + BUSY_S
    assert job.wait() == 75
    assert (job.run_dir / "saved0").read_text() == (job.run_dir / "saved1").read_text()
