"""Checks how long workers have after a signal, and that a job that was stopped starts none."""

from __future__ import annotations

import os
import signal
import time

import pytest

from yolo_launch.supervision.monitor import Limits, WorkerMonitor
from yolo_launch.workers.signals import SignalInbox

TIMES_S = {signal.SIGINT: 3.0, signal.SIGQUIT: 0.0, signal.SIGUSR1: 120.0, signal.SIGTERM: 30.0, signal.SIGHUP: 30.0}


@pytest.mark.parametrize("number", TIMES_S)
def test_each_signal_gives_its_own_time(number):
    assert Limits().grace_s(number) == TIMES_S[number]


def test_a_signal_between_attempts_keeps_workers_from_starting_and_is_said_once():
    said: list[str] = []
    with SignalInbox() as inbox, WorkerMonitor(inbox, Limits(), said.append) as monitor:
        assert monitor.workers_start(2)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + 20
        while not monitor.stopping and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not monitor.workers_start(2)
        assert monitor.stop_signal == signal.SIGTERM
    assert said == ["SIGTERM: the workers have 30 s to save their state"]


def test_a_round_that_was_ended_starts_no_worker_until_the_next_begins():
    with SignalInbox() as inbox, WorkerMonitor(inbox, Limits(), lambda text: None) as monitor:
        monitor.end_round(5.0)
        assert monitor.round_ended
        assert not monitor.workers_start(1)
        monitor.begin_round()
        assert not monitor.round_ended
        assert monitor.workers_start(1)
