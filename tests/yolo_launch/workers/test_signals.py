"""The launcher's inbox of signals: what it collects, and what stays ignored."""

from __future__ import annotations

import os
import signal

import pytest

from yolo_launch.workers.signals import SignalInbox, signal_name


@pytest.fixture(autouse=True)
def _usual_handlers():
    """Ctrl-C and SIGHUP as in a terminal; handlers are put back after the test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_signals_are_collected_in_order_and_handlers_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with SignalInbox() as inbox:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert inbox.wait(5) == [signal.SIGUSR1, signal.SIGTERM]
        assert inbox.wait(0) == []
    assert signal.getsignal(signal.SIGTERM) == before


def test_what_nohup_has_set_to_ignored_stays_so():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with SignalInbox() as inbox:
        assert inbox.ignored == {signal.SIGHUP}
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
        assert inbox.wait(5) == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_after_a_stop_no_further_ctrl_c_disturbs_the_report():
    with SignalInbox() as inbox:
        os.kill(os.getpid(), signal.SIGINT)
        assert inbox.wait(5) == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_names_are_those_that_people_know():
    assert [signal_name(number) for number in (signal.SIGINT, signal.SIGTERM)] == ["Ctrl-C", "SIGTERM"]
