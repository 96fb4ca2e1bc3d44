"""The copies of a run's results: at once or refused, in the background, and through a store that fails for a while."""

from __future__ import annotations

import json
import time

import pytest

from yolo_launch.errors import ExitCode, LaunchError
from yolo_launch.remote import mirror
from yolo_launch.remote.mirror import mirrored

WAIT_S = 90.0


@pytest.fixture
def run_dir(tmp_path):
    folder = tmp_path / "exp"
    (folder / "weights").mkdir(parents=True)
    (folder / "plan.json").write_text(json.dumps({"run_id": "this-run"}), encoding="utf-8")
    return folder


def copying(run_dir, url, said):
    return mirrored(run_dir, url, said.append, patterns=("plan.json", "weights/last.pt"), plan_file="plan.json")


def wait_for(holds) -> None:
    give_up_at = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < give_up_at
        time.sleep(0.1)


def test_what_changes_is_copied_while_the_run_goes_on_and_at_its_end(run_dir, tmp_path):
    said, there = [], tmp_path / "there"
    with copying(run_dir, f"file://{there}", said):
        assert (there / "plan.json").is_file(), "copied before the first step"
        (run_dir / "weights" / "last.pt").write_bytes(b"first")
        wait_for(lambda: (there / "weights" / "last.pt").is_file())
        assert (there / "weights" / "last.pt").read_bytes() == b"first"
        (run_dir / "weights" / "last.pt").write_bytes(b"the last one")
        (run_dir / "weights" / "last.pt.tmp").write_bytes(b"half")
    assert (there / "weights" / "last.pt").read_bytes() == b"the last one"
    assert not (there / "weights" / "last.pt.tmp").exists()
    assert said == []


def test_nothing_happens_without_a_url(run_dir):
    with mirrored(run_dir, None, print, patterns=("plan.json",), plan_file="plan.json"):
        pass


def test_a_store_that_takes_nothing_is_an_error_at_the_start(run_dir, tmp_path):
    (tmp_path / "there").write_text("a file", encoding="utf-8")
    with pytest.raises(LaunchError, match="cannot be written") as caught:
        with copying(run_dir, f"file://{tmp_path}/there/run", []):
            pytest.fail("it began")
    assert caught.value.exit_code == ExitCode.ENVIRONMENT


def test_the_copies_of_another_run_are_not_written_over(run_dir, tmp_path):
    there = tmp_path / "there"
    there.mkdir()
    (there / "plan.json").write_text(json.dumps({"run_id": "another"}), encoding="utf-8")
    with pytest.raises(LaunchError, match="holds other files than this run's"):
        with copying(run_dir, f"file://{there}", []):
            pytest.fail("it began")
    assert json.loads((there / "plan.json").read_text(encoding="utf-8")) == {"run_id": "another"}
    (there / "plan.json").write_text(json.dumps({"run_id": "this-run"}), encoding="utf-8")
    with copying(run_dir, f"file://{there}", []):
        pass


def test_a_store_that_fails_for_a_while_is_a_warning_and_no_more(run_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(mirror, "RETRY_S", 0.5)
    monkeypatch.setattr(mirror, "MOST_RETRY_S", 0.5)
    said, there = [], tmp_path / "there"
    with copying(run_dir, f"file://{there}", said):
        there.rename(tmp_path / "away")
        there.write_text("a file is in the way", encoding="utf-8")
        (run_dir / "weights" / "last.pt").write_bytes(b"first")
        wait_for(lambda: said)
        assert said[0].startswith("warning mirror: ")
        assert "training goes on" in said[0]
        there.unlink()
        (tmp_path / "away").rename(there)
        wait_for(lambda: (there / "weights" / "last.pt").is_file())
    assert len(said) == 2, "one warning, and one line when it works again"
    assert said[1].endswith("is up to date again")


def test_a_store_that_is_gone_at_the_end_is_said_with_what_it_lacks(run_dir, tmp_path):
    said, there = [], tmp_path / "there"
    with copying(run_dir, f"file://{there}", said):
        there.rename(tmp_path / "away")
        there.write_text("a file is in the way", encoding="utf-8")
        (run_dir / "weights" / "last.pt").write_bytes(b"last")
    assert said[-1] == f"warning mirror: file://{there} lacks the last weights/last.pt; they are in {run_dir}"
