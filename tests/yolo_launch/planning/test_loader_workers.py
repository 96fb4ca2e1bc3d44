"""Loader processes of each rank."""

from __future__ import annotations

import pytest

from yolo_launch.planning.loader_workers import choose_workers
from yolo_launch.spec import LaunchRequest


@pytest.mark.parametrize(
    ("wanted", "builtin", "workers"), [(None, True, 4), (3, True, 3), (None, False, 7), (30, True, 4), (30, False, 8)]
)
def test_no_more_processes_than_cores_or_images_of_a_batch(make_host, wanted, builtin, workers):
    request = LaunchRequest(global_batch_size=8, workers=wanted, builtin_trainer=builtin)
    host = make_host(2, cpu_cores=16)
    assert choose_workers(request, host, ranks=2, on_cpu=False, local_batch_size=4)[0] == workers


def test_a_batch_that_is_still_to_be_measured_limits_nothing(make_host):
    request = LaunchRequest(global_batch_size=None)
    assert choose_workers(request, make_host(1, cpu_cores=16), ranks=1, on_cpu=False, local_batch_size=1)[0] == 15
