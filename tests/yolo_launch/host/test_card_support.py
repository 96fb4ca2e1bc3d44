"""Cards that a wheel holds no code for."""

from __future__ import annotations

import pytest

from yolo_launch.checks.context import Context
from yolo_launch.checks.machine import check_cuda_starts
from yolo_launch.host.card_support import explain_missing_code, fitting_wheel, is_own_build
from yolo_launch.planning.plan import make_plan
from yolo_launch.spec import LaunchRequest, TorchFacts


@pytest.mark.parametrize(
    ("cuda", "capability", "has_code"),
    [
        ("13.0", (7, 0), False),  # V100
        ("13.0", (6, 0), False),  # P100
        ("13.0", (7, 5), True),  # T4
        ("13.0", (12, 0), True),
        ("12.8", (6, 1), False),
        ("12.8", (7, 0), True),
        ("12.6", (6, 1), True),
        ("12.6", (9, 0), True),
        ("12.4", (12, 0), False),  # RTX 5090
        ("12.1", (10, 0), False),  # B200
        ("11.8", (9, 0), True),
        ("11.7", (9, 0), False),
        ("", (7, 0), True),
        ("unknown", (7, 0), True),
    ],
)
def test_the_wheels_hold_code_for_a_range_of_cards(make_gpu, cuda, capability, has_code):
    facts = TorchFacts("2.9.0", "0.24.0", cuda)
    assert (explain_missing_code(facts, make_gpu(0, compute_capability=capability)) == "") is has_code


def test_the_refusal_names_card_build_and_a_wheel_that_works(make_host, make_gpu):
    torch = TorchFacts("2.12.0+cu130", "0.27.0+cu130", "13.0", "", "==2.12.0", "cu130")
    host = make_host((make_gpu(0, "V100", compute_capability=(7, 0)),), torch=torch)
    plan = make_plan(LaunchRequest(gpus="0"), host)
    (finding,) = check_cuda_starts(Context(host, plan))
    assert finding.level == "failure"
    assert "V100" in finding.seen
    assert "7.0" in finding.seen
    assert "CUDA 13.0" in finding.seen
    assert "cu128" in finding.advice


@pytest.mark.parametrize(
    ("version", "own"),
    [("2.9.0", False), ("2.9.0+cu128", False), ("2.10.0a0+git1", True), ("2.9.0+nv25.9", True), ("mine", True)],
)
def test_own_builds_are_only_warned_about(version, own):
    assert is_own_build(TorchFacts(version)) is own


def test_a_card_that_no_wheel_knows(make_gpu):
    assert fitting_wheel(make_gpu(0, compute_capability=(2, 0))) == ""
