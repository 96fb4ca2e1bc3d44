"""Checks the order of stop signals, for a launcher in the foreground and for one whose shell had them ignored."""

from __future__ import annotations

import signal

import pytest

from yolo_launch.workers.signals import STOP_SIGNALS, SignalInbox, signal_name


@pytest.fixture
def dispositions():
    """Returns a function that sets what a signal does before a launcher starts; restores it afterwards."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}

    def put(number, action) -> None:
        signal.signal(number, action)

    yield put
    for number, action in before.items():
        signal.signal(number, action)


def test_stop_signals_come_in_order_and_the_old_handlers_come_back(dispositions):
    dispositions(signal.SIGUSR1, signal.SIG_DFL)
    with SignalInbox() as inbox:
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGTERM)
        assert inbox.wait(1.0) == [signal.SIGUSR1, signal.SIGTERM]
        assert inbox.wait(0.0) == []
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT, signal.SIGHUP])
def test_what_a_background_shell_or_nohup_ignores_stays_ignored(dispositions, number):
    dispositions(number, signal.SIG_IGN)
    with SignalInbox() as inbox:
        assert inbox.ignored == {number}
        signal.raise_signal(number)
        # The elastic agent sets a handler of its own while it runs.
        signal.signal(number, lambda signum, frame: None)
        signal.raise_signal(number)
        assert inbox.wait(0.0) == []
    assert signal.getsignal(number) == signal.SIG_IGN


def test_after_a_ctrl_c_another_one_does_not_cut_the_report_short(dispositions):
    dispositions(signal.SIGINT, signal.default_int_handler)
    with SignalInbox() as inbox:
        signal.raise_signal(signal.SIGINT)
        assert inbox.wait(1.0) == [signal.SIGINT]
    signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_a_signal_is_named_as_a_person_knows_it():
    assert (signal_name(signal.SIGINT), signal_name(signal.SIGTERM)) == ("Ctrl-C", "SIGTERM")
