"""``yolo-launch train`` under kill -9 of launcher, ranks and loader processes: restarted or resumed to equal bits."""

from __future__ import annotations

import random
import time

import pytest

from tests.faults.budget import LAUNCHER_KILLS, SEED
from tests.faults.comparison import differences, newest_step, result_of
from tests.faults.launched import Killer, LaunchedRun

pytestmark = [pytest.mark.slow, pytest.mark.timeout(5400)]
KILLS_PER_RUN = 8


@pytest.fixture(scope="module")
def launched(fault_data, tiny_model, tmp_path_factory):
    """Makes a run with so many workers, each with loader processes; all are ended with the module."""
    made = []

    def make(name: str, nproc: int) -> LaunchedRun:
        options = ("--data", str(fault_data), "--cfg", str(tiny_model), "--weights", "", "--imgsz", "64")
        options += ("--batch", "4", "--epochs", "4", "--workers", "1", "--noplots", "--checkpoint-interval", "0.05")
        options += ("--gpus", "cpu", "--nproc", str(nproc))
        made.append(LaunchedRun(tmp_path_factory.mktemp(name), options))
        return made[-1]

    yield make
    for run in made:
        run.end()


@pytest.fixture(scope="module")
def expected(launched):
    """The result of an undisturbed run, and how long its workers ran."""
    results = {}

    def train(nproc: int):
        if nproc not in results:
            run = launched(f"undisturbed{nproc}", nproc)
            run.start()
            while not run.ranks():
                assert run.is_running, run.output()
                time.sleep(0.02)
            started_at = time.monotonic()
            run.finish()
            results[nproc] = result_of(run.run_dir), time.monotonic() - started_at
        return results[nproc]

    return train


def test_the_same_command_twice_gives_the_same_results(launched, expected):
    again = launched("again", 2)
    again.finish()
    assert differences(result_of(again.run_dir), expected(2)[0]) == []


def test_killed_at_random_moments_it_ends_with_the_same_bits(launched, expected):
    print(f"seed {SEED}, {LAUNCHER_KILLS} kills")
    rng, kills, round_number, tally = random.Random(SEED), 0, 0, {}
    while kills < LAUNCHER_KILLS:
        nproc = 1 + round_number % 2
        reference, span_s = expected(nproc)
        run, killer = launched(f"killed{round_number}", nproc), Killer(rng, span_s * 0.8)
        started_at = time.monotonic()
        run.start()
        reached = -1
        while killer.kills < min(KILLS_PER_RUN, LAUNCHER_KILLS - kills):
            assert newest_step(run.run_dir) >= reached, f"a checkpoint was lost; seed {SEED}"
            reached = newest_step(run.run_dir)
            if not killer.strike(run) and not run.is_running:
                if run.is_finished:
                    break
                run.start()
        run.finish()
        run.wait_until_gone()
        kills, round_number = kills + killer.kills, round_number + 1
        print(f"{kills} kills; {nproc} workers, {run.starts} starts, {time.monotonic() - started_at:.0f} s")
        tally = {what: tally.get(what, 0) + killer.tally.get(what, 0) for what in sorted({*tally, *killer.tally})}
        assert differences(result_of(run.run_dir), reference) == [], f"seed {SEED}"
    print(*(f"{count:4} {what}" for what, count in tally.items()), sep="\n")
