"""Peers beside this project's own figures: found, driven in turn, named when they fail. A script stands in for them."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.peers import OWN, Measured, Program, ProgramError, find_programs, run_in_turn, table_head, table_rows

PROJECT_DIR = Path(__file__).resolve().parents[1]

FAKE = """#!{python}
import json, sys
if sys.argv[1] == "-c":
    print(json.dumps({versions}))
elif sys.argv[1].endswith("ultralytics_peer.py"):
    print("RuntimeError: no | such kernel", file=sys.stderr)
    sys.exit(1)
else:
    settings = json.loads(sys.argv[3])
    print("noise")
    print(json.dumps({{"cpu_ms": 500.0, "decodes": 4, "batch": settings["batch"]}}))
"""


@pytest.fixture
def make_peer(tmp_path):
    def make(versions):
        script = tmp_path / "python"
        script.write_text(FAKE.format(python=sys.executable, versions=versions))
        script.chmod(0o755)
        return str(script)

    return make


def test_the_packages_of_an_environment_are_the_peers(make_peer):
    programs = find_programs(make_peer({"yolov5": "7.0.14", "ultralytics": "8.4"}))
    assert [program.name for program in programs] == [OWN, "YOLOv5 7.0.14", "ultralytics 8.4"]
    assert all(program.driver.is_file() for program in programs)
    assert programs[1].ask("step", {"batch": 3})["batch"] == 3
    with pytest.raises(ProgramError, match=r"exit code 1: RuntimeError: no \| such kernel"):
        programs[2].ask("step", {"batch": 3})


@pytest.mark.parametrize(("python", "reason"), [("/nowhere/python", "cannot be asked"), (None, "has neither")])
def test_an_environment_without_a_peer_says_so_when_it_is_asked(make_peer, python, reason):
    programs = find_programs(python or make_peer({}))
    assert len(programs) == 2
    with pytest.raises(ProgramError, match=reason):
        programs[1].ask("step", {})


def test_programs_take_turns_and_one_that_fails_is_left_out():
    programs = [Program(name, sys.executable, None) for name in (OWN, "good", "bad")]
    asked = []

    def measure(program):
        asked.append(program.name)
        if program.name == "bad":
            raise ProgramError("it broke")
        return {"ms": float(len(asked)), "fast": 2.0 if program.name == OWN else 4.0}

    results = run_in_turn(programs, measure, 3)
    assert asked == [OWN, "good", "bad", OWN, "good", OWN, "good"]
    assert results["good"].figures["ms"] == [2.0, 5.0, 7.0]
    rows = table_rows(results, ["ms", "nms"], by="ms", first="x")
    assert rows == [
        "| x | yolo-launch | 4 |  | 1.00 |",
        "| x | good | 5 |  | 1.25 |",
        "| x | bad | peer: failed: it broke | | |",
    ]
    assert len({row.count("|") for row in [*rows, *table_head("what", {"ms": "ms", "nms": "NMS"})]}) == 1
    assert table_rows(results, ["fast"], by="fast", higher_is_better=True)[1] == "|  | good | 4 | 0.50 |"


def test_a_failure_of_our_own_is_none_of_a_peer():
    with pytest.raises(ProgramError):
        run_in_turn([Program(OWN, sys.executable, None, "gone")], lambda program: program.ask("step", {}), 1)


def test_no_figure_is_no_number():
    assert math.isnan(Measured().median("step_ms"))


def test_a_rehearsal_of_the_first_hour_carries_the_peers_figures_and_failures(tmp_path, make_peer):
    peer = make_peer({"yolov5": "7.0.14", "ultralytics": "8.4"})
    command = [sys.executable, str(PROJECT_DIR / "benchmarks" / "gpu.py"), "--out", str(tmp_path / "out")]
    words = ["--rehearse", "--parts", "loader", "--peer-python", peer]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT_DIR)}
    ended = subprocess.run([*command, *words], env=environment, capture_output=True, text=True, timeout=200)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert ended.returncode == 0, ended.stdout + ended.stderr
    rows = {(one["program"], one.get("figure")): one for one in results["parts"]["loader"]["peers"]}
    own, peers = rows[OWN, "cpu_ms"], rows["YOLOv5 7.0.14", "cpu_ms"]
    assert (own["ratio"], peers["median"]) == (1, 500)
    assert peers["ratio"] == pytest.approx(500 / own["median"])
    assert rows["ultralytics 8.4", None]["failed"] == "peer: failed: exit code 1: RuntimeError: no | such kernel"
    page = (tmp_path / "out" / "results.md").read_text()
    assert f"cpu_ms: YOLOv5 7.0.14 | 500 ms a sample | ours is {peers['ratio']:.2f} times as good |" in page
    assert "ultralytics 8.4 | peer: failed: exit code 1: RuntimeError: no / such kernel |" in page
    assert "**loader** | green" in page
