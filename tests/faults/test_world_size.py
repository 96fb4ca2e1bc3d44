"""A run that is killed, and resumed with another number of workers, learns from the same samples in the same order."""

from __future__ import annotations

import pytest

from tests.faults.hooks import record_samples, recorded_samples


@pytest.fixture(scope="module")
def samples_of_one(forkserver, fault_data, tiny_model, tmp_path_factory):
    """Per global step, what one undisturbed worker learns from."""
    from tests.faults.conftest import Training, tiny_config

    folder = tmp_path_factory.mktemp("one")
    run = Training(
        forkserver,
        tiny_config(fault_data, tiny_model, epochs=2, val=False),
        folder / "run",
        hooks=((record_samples, (str(folder),)),),
    )
    run.finish()
    return recorded_samples(folder)


def test_the_samples_of_an_undisturbed_run_are_each_there_once_an_epoch(samples_of_one):
    assert [len(samples_of_one[step]) for step in range(14)] == [*[4] * 6, 2] * 2
    assert [sample[0] for step in range(7) for sample in samples_of_one[step]] == list(range(26))


@pytest.mark.parametrize(("before", "after"), [(2, 1), (2, 3), pytest.param(1, 2, marks=pytest.mark.slow)])
def test_another_number_of_workers_learns_from_the_same_samples(training, samples_of_one, tmp_path, before, after):
    folders = [tmp_path / name for name in ("killed", "resumed")]
    for folder in folders:
        folder.mkdir()
    run = training(
        "run", before, ((record_samples, (str(folders[0]), 5)),), epochs=2, val=False, checkpoint_interval_s=1e-3
    )
    run.start()
    run.wait(60)
    run.kill(list(range(before)))
    run.world_size, run.hooks = after, ((record_samples, (str(folders[1]),)),)
    run.finish()
    assert f"resumed with {after} ranks instead of {before}" in run.output()
    first, later = map(recorded_samples, folders)
    assert max(first) in (5, 6)
    assert 0 < min(later) <= 6, "resumed under way, with nothing left out"
    assert {**{step: rows for step, rows in first.items() if step < min(later)}, **later} == samples_of_one
