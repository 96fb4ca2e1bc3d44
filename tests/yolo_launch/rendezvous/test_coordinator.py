"""Checks losses, failures, joins and signals over several rounds, and what the rendezvous makes of them."""

from __future__ import annotations

import signal

import pytest

from tests.yolo_launch.rendezvous.simulation import DATA, Stage, failed, job_facts, report
from trainer.protocol import Heartbeat
from yolo_launch.diagnosis.hangs import StalledRank
from yolo_launch.errors import ExitCode
from yolo_launch.rendezvous.messages import (
    CoordinatorHeartbeat,
    End,
    FailureNotice,
    JoinRefused,
    Leave,
    LogLine,
    NodeHeartbeat,
    Ready,
    Stop,
    Store,
    StoreReady,
)
from yolo_launch.spec import Outcome

SAVED = {"kind": "saved", "saved": True, "finished_a_step": True}


def any_batch(**settings):
    return {"job": job_facts(settle=lambda by_node: 64), **settings}


# ---- the usual course


def test_a_job_from_its_start_to_its_end():
    stage = Stage(2).running(0, 1)
    start = stage.round(1)
    assert (start.number, start.members, start.batch_size, start.even) == (1, ((0, 2), (1, 2)), 64, True)
    stage.say(0, StoreReady(round=1, port=4711))
    assert [stage.last(rank, Store) for rank in (0, 1)] == [Store(round=1, port=4711)] * 2
    stage.wait(100)
    stage.say(1, report(1, kind="done"))
    stage.wait(100)
    assert stage.phase == "running"
    stage.say(0, report(1, kind="done"))
    assert stage.last(0, End).outcome == stage.last(1, End).outcome == Outcome("done", 0)
    assert not stage.coordinator.is_over
    stage.lose(1)
    assert stage.coordinator.is_over


def test_only_the_master_opens_a_store():
    stage = Stage(2).running(0, 1)
    stage.say(1, StoreReady(round=1, port=4711))
    assert not stage.received(0, Store)


def test_a_farewell_that_nobody_hears_ends_too():
    stage = Stage(2).running(0, 1)
    stage.coordinator.end(Outcome("done", 0), stage.now)
    stage.wait(9)
    assert not stage.coordinator.is_over
    stage.wait(2)
    assert stage.coordinator.is_over


def test_once_rank_0_is_done_what_others_do_changes_nothing():
    stage = Stage(3, **any_batch()).running(0, 1, 2)
    stage.say(0, report(1, kind="done"))
    stage.say(1, failed(1, 2))
    stage.lose(2)
    stage.wait(15)
    assert stage.outcome == Outcome("done", 0)


def test_machines_that_do_not_report_after_rank_0_is_done_are_not_waited_for_long():
    stage = Stage(2).running(0, 1)
    stage.say(0, report(1, kind="done"))
    stage.wait(12)
    assert stage.outcome == Outcome("done", 0)
    assert stage.last(1, End).outcome == Outcome("done", 0)  # and does not look for a master that is gone


def test_a_done_machine_that_goes_early_does_not_stop_the_others():
    stage = Stage(2).running(0, 1)
    stage.say(1, report(1, kind="done"))
    stage.lose(1)
    stage.wait(5)
    assert stage.phase == "running"
    assert not stage.received(0, Stop)
    stage.say(0, report(1, kind="done"))
    assert stage.outcome == Outcome("done", 0)


def test_pulses_come_every_second():
    stage = Stage(2).running(0, 1)
    before = len(stage.received(1, CoordinatorHeartbeat))
    stage.wait(10)
    assert 9 <= len(stage.received(1, CoordinatorHeartbeat)) - before <= 11


def test_pulses_tell_for_how_long_no_machine_has_moved():
    stage = Stage(2).running(0, 1)
    stage.say(1, NodeHeartbeat(phase="scan", step=1))
    stage.wait(5)
    assert 4 <= stage.last(0, CoordinatorHeartbeat).idle_s <= 6
    stage.say(1, NodeHeartbeat(phase="scan", step=2))
    stage.wait(2)
    assert stage.last(0, CoordinatorHeartbeat).idle_s <= 2


# ---- losses


def test_a_lost_machine_stops_the_round_and_comes_back_as_a_new_launcher():
    stage = Stage(2).running(0, 1)
    stage.lose(1)
    stop = stage.last(0, Stop)
    assert (stop.round, stop.kind) == (1, "lost")
    assert "machine 1 gpu-b (10.0.0.2, 2x A100) is lost: its connection was closed" in stage.said
    stage.say(0, failed(1, 0, own=False))
    assert stage.phase == "gathering"
    assert stage.said[-1] == ("restart 1 of 3 when it is back (within 300 s), going on from the newest good checkpoint")
    stage.wait(200)
    stage.join(1, session="a new process")
    assert stage.phase == "running"
    assert stage.round(0).number == stage.round(1).number == 2
    assert not stage.round(0).even


def test_the_same_launcher_comes_back_over_a_new_connection():
    stage = Stage(2).running(0, 1)
    old = stage.connections[1]
    stage.join(1, ready=False)
    assert old in stage.closed
    assert stage.last(0, Stop).kind == "lost"
    stage.say(1, Ready(fingerprint=DATA))
    assert stage.phase == "stopping"
    stage.say(0, failed(1, 0, own=False))
    assert stage.phase == "running"
    assert stage.round(1).number == 2


def test_a_silent_machine_is_lost_within_seconds():
    stage = Stage(2).running(0, 1)
    stage.silent.add(1)
    stage.wait(7)
    assert stage.phase == "running"
    stage.wait(2)
    assert stage.phase == "stopping"
    assert stage.connections[1] in stage.closed
    assert "no word from it for 8 s" in stage.said[-1]


def test_a_machine_that_does_not_come_back_ends_the_job():
    stage = Stage(2).running(0, 1)
    stage.lose(1)
    stage.say(0, failed(1, 0, own=False))
    stage.wait(299)
    assert stage.outcome is None
    stage.wait(2)
    assert (stage.outcome.kind, stage.outcome.exit_code, stage.outcome.restarts) == ("not_joined", 5, 1)
    assert stage.outcome.detail == "machine 1 did not come back within 300 s"


def test_losses_use_up_the_restarts():
    stage = Stage(2, max_restarts=1).running(0, 1)
    stage.lose(1)
    stage.say(0, failed(1, 0, own=False))
    stage.join(1, session="again")
    stage.lose(1, "no word from it for 5 s")
    stage.say(0, failed(2, 0, own=False))
    assert stage.outcome.kind == "worker_failed"
    assert stage.outcome.restarts == 1
    assert stage.outcome.detail == (
        "machine 1 gpu-b (10.0.0.2, 2x A100) was lost: no word from it for 5 s. All 1 restarts are used up"
    )


def test_without_restarts_a_loss_ends_the_job():
    stage = Stage(2, max_restarts=0).running(0, 1)
    stage.lose(1)
    stage.say(0, failed(1, 0, own=False))
    assert stage.outcome.detail.endswith("was lost: its connection was closed")


def test_a_machine_that_is_lost_while_the_others_stop_is_lost_too():
    stage = Stage(3, **any_batch()).running(0, 1, 2)
    stage.lose(1)
    stage.lose(2, "no word from it for 5 s")
    assert "machine 2 gpu-c (10.0.0.3, 2x A100) is lost: no word from it for 5 s" in stage.said
    stage.say(0, failed(1, 0, own=False))
    assert stage.phase == "gathering"
    stage.join(1)
    assert stage.phase == "gathering"
    stage.join(2)
    assert stage.phase == "running"


def test_a_machine_lost_before_its_round_begins_is_waited_for():
    stage = Stage(3, **any_batch())
    stage.join(0)
    stage.join(1)
    stage.lose(1)
    stage.join(2)
    assert stage.phase == "gathering"
    stage.join(1, session="again")
    assert stage.phase == "running"


def test_a_machine_that_never_reports_counts_as_lost():
    stage = Stage(2).running(0, 1)
    stage.say(0, failed(1, 0))
    assert stage.last(1, Stop).kind == "failed"
    stage.wait(19)
    assert stage.phase == "stopping"
    stage.wait(2)
    assert stage.phase == "gathering"
    assert stage.connections[1] in stage.closed
    assert stage.said[-1].startswith(
        "rank 0 on machine 0 gpu-a (10.0.0.1, 2x A100) failed (ValueError: bad); restart 1 of 3"
    )


def test_a_cause_is_kept_when_the_machine_that_told_it_goes_away():
    stage = Stage(2, max_restarts=0).running(0, 1)
    stage.say(1, failed(1, 2, text="OSError: disk full"))
    stage.lose(1)
    stage.say(0, failed(1, 0, own=False, text="Connection closed by peer"))
    assert stage.outcome.failure.message == "OSError: disk full"


def test_a_master_whose_process_slept_blames_nobody():
    stage = Stage(2).running(0, 1)
    stage.wait(1)
    stage.sleep(60)
    stage.wait(2)
    assert stage.phase == "running"
    stage.silent.add(1)
    stage.sleep(60)
    stage.wait(7)
    assert stage.phase == "running"
    stage.wait(3)  # and notices silence as soon as ever afterwards
    assert stage.phase == "stopping"


def test_a_report_that_waited_while_the_master_slept_is_in_time_and_so_are_the_others():
    stage = Stage(2, max_restarts=0).running(0, 1)
    stage.say(1, FailureNotice(round=1, kind="failed"))
    stage.sleep(60)
    stage.say(0, failed(1, 0, own=False))
    assert stage.phase == "stopping"
    stage.say(1, failed(1, 2, text="KeyError: 3"))
    assert stage.outcome.failure.message == "KeyError: 3"


def test_deadlines_wait_for_a_master_that_slept():
    stage = Stage(2, join_timeout_s=30)
    stage.join(0)
    stage.wait(20)
    stage.sleep(100)
    stage.wait(5)
    assert stage.outcome is None
    stage.wait(6)
    assert stage.outcome.kind == "not_joined"


# ---- failures


def test_a_failure_is_told_with_its_cause_and_restarts_the_job():
    stage = Stage(2).running(0, 1)
    stage.say(1, FailureNotice(round=1, kind="failed"))
    assert stage.last(0, Stop).kind == "failed"
    stage.say(1, failed(1, 3))
    stage.say(0, failed(1, 0, own=False, text="Connection closed by peer"))
    line = "rank 3 on machine 1 gpu-b (10.0.0.2, 2x A100) failed (ValueError: bad); restart 1 of 3, "
    assert stage.said[-1] == line + "going on from the newest good checkpoint"
    assert stage.last(1, LogLine).text == stage.said[-1]
    assert stage.phase == "running"
    assert stage.round(0).number == 2


def test_a_failure_before_the_first_step_is_not_repeated():
    stage = Stage(2).running(0, 1)
    stage.say(1, failed(1, 2, finished_a_step=False))
    stage.say(0, failed(1, 0, own=False, finished_a_step=False))
    assert (stage.outcome.kind, stage.outcome.exit_code) == ("worker_failed", 1)
    assert stage.outcome.detail.startswith("not restarted: no step had finished yet")
    assert stage.last(0, End).outcome.failure.rank == stage.last(1, End).outcome.failure.rank == 2


def test_the_first_failure_is_the_cause_by_the_masters_clock():
    """Machine 1's clock is 100 s ahead: what it says happened later was first."""
    for reports in ((1, 0), (0, 1)):
        stage = Stage(2, max_restarts=0)
        stage.join(0)
        stage.join(1, ahead_s=100.0)
        received = {0: failed(1, 0, at_s=1007.0, text="second"), 1: failed(1, 2, at_s=1102.0, text="first")}
        for rank in reports:
            stage.say(rank, received[rank])
        assert stage.outcome.failure.message == "first"


def test_a_failure_of_its_own_is_the_cause_before_any_lost_peer_however_early():
    stage = Stage(2, max_restarts=0).running(0, 1)
    peer = failed(1, 0, text="Connection closed by peer", key=(0.0, 1.0, 0.0, 1.0, 0.0))
    stage.say(0, peer)
    stage.say(1, failed(1, 2, at_s=9.0, text="MemoryError"))
    assert stage.outcome.failure.message == "MemoryError"


def test_a_failure_is_the_cause_before_a_loss_that_follows_it():
    stage = Stage(3, **any_batch(max_restarts=0)).running(0, 1, 2)
    stage.say(1, failed(1, 2, text="RuntimeError: CUDA error"))
    stage.lose(2)
    stage.say(0, failed(1, 0, own=False))
    assert stage.outcome.failure.message == "RuntimeError: CUDA error"


def test_a_report_said_twice_counts_once():
    stage = Stage(2, max_restarts=0).running(0, 1)
    stage.say(1, failed(1, 2, text="first"))
    stage.say(1, failed(1, 2, text="second"))
    assert stage.phase == "stopping"
    stage.say(0, failed(1, 0, own=False))
    assert stage.outcome.failure.message == "first"


def test_words_about_another_round_change_nothing():
    stage = Stage(2).running(0, 1)
    stage.say(1, failed(1, 2))
    stage.say(0, failed(1, 0, own=False))
    assert stage.round(0).number == 2
    for late in (failed(1, 2), FailureNotice(round=1, kind="failed"), report(1, kind="done"), failed(3, 2)):
        stage.say(1, late)
        stage.say(0, late)
    stage.wait(30)
    assert stage.phase == "running"
    assert not [stop for stop in stage.received(0, Stop) if stop.round != 1]


def test_nothing_changes_an_end():
    stage = Stage(2, max_restarts=0).running(0, 1)
    stage.say(1, failed(1, 2))
    stage.say(0, failed(1, 0, own=False))
    ended = stage.outcome
    stage.say(0, report(1, kind="done"))
    stage.say(0, report(1, kind="done"))
    stage.coordinator.end(Outcome("master_lost", 6), stage.now)
    stage.wait(1)
    assert stage.outcome is ended
    assert len(stage.received(1, End)) == 1


def test_a_report_after_the_end_changes_nothing():
    stage = Stage(2).running(0, 1)
    stage.coordinator.end(Outcome("interrupted", 130), stage.now)
    stage.say(0, report(1, kind="done"))
    stage.say(1, report(1, kind="done"))
    stage.wait(1)
    assert (stage.phase, stage.outcome.kind) == ("ended", "interrupted")
    assert len(stage.received(1, End)) == 1


def test_a_second_ready_does_not_pause_the_round():
    stage = Stage(2, 1).running(0, 1)
    stage.say(1, Ready(fingerprint=DATA))
    assert stage.phase == "running"
    assert not stage.received(0, Stop)


def test_a_machine_of_the_round_that_gives_up_is_a_loss():
    stage = Stage(2).running(0, 1)
    stage.say(1, JoinRefused(what="The disk is gone."))
    assert stage.last(0, Stop).kind == "lost"


def test_a_stall_is_looked_into_everywhere_and_ends_the_job():
    stage = Stage(2).running(0, 1)
    stage.say(1, FailureNotice(round=1, kind="stalled"))
    assert stage.last(0, Stop).kind == "stalled"
    waits = StalledRank(0, 300.0, Heartbeat(0, "train", 1, 9, 5.0), ())
    frozen = StalledRank(2, 301.0, Heartbeat(2, "train", 1, 8, 5.0), (), frozen="stopped (SIGSTOP or a debugger)")
    stage.say(0, report(1, kind="stalled", stalled=(waits,)))
    stage.say(1, report(1, kind="stalled", stalled=(frozen,)))
    assert (stage.outcome.kind, stage.outcome.exit_code) == ("stalled", ExitCode.STALLED)
    assert (stage.outcome.failure.rank, stage.outcome.failure.host) == (2, "gpu-b")
    assert "rank 0 has been in 'train'" in stage.outcome.failure.message


def test_a_stall_that_nobody_can_describe_still_ends():
    stage = Stage(2).running(0, 1)
    stage.say(1, report(1, kind="stalled"))
    stage.say(0, report(1, kind="ended"))
    assert stage.outcome.kind == "worker_failed"
    assert "no machine says why" in stage.outcome.detail


# ---- signals


def test_a_signal_on_one_machine_stops_a_job_that_cannot_shrink():
    stage = Stage(2).running(0, 1)
    stage.say(1, report(1, kind="stopped", signal=signal.SIGTERM, saved=True))
    assert stage.last(0, Stop).kind == "save"
    stage.say(0, report(1, **SAVED))
    assert (stage.outcome.kind, stage.outcome.exit_code) == ("saved_and_stopped", 75)
    assert stage.said[-1] == "SIGTERM on machine 1 gpu-b (10.0.0.2, 2x A100) stops the job"


def test_a_signaled_machine_that_does_not_wait_is_no_loss():
    stage = Stage(2).running(0, 1)
    stage.say(1, report(1, kind="stopped", signal=signal.SIGTERM, saved=True))
    stage.say(1, Leave(reason="it left (SIGTERM)"))
    stage.wait(3)
    stage.say(0, report(1, **SAVED))
    assert (stage.outcome.kind, stage.outcome.restarts) == ("saved_and_stopped", 0)


def test_workers_that_hang_after_a_signal_elsewhere_are_not_waited_for():
    stage = Stage(2).running(0, 1)
    stage.say(1, report(1, kind="stopped", signal=signal.SIGINT))
    stage.wait(44)
    assert stage.phase == "stopping"
    stage.wait(2)
    assert stage.outcome.exit_code == 130


def test_ctrl_c_is_no_reason_to_start_again():
    stage = Stage(2).running(0, 1)
    stage.say(0, report(1, kind="stopped", signal=signal.SIGINT, saved=True))
    stage.say(1, report(1, **SAVED))
    assert (stage.outcome.kind, stage.outcome.exit_code) == ("interrupted", 130)


def test_workers_that_were_signaled_themselves_end_the_job_saved():
    stage = Stage(2).running(0, 1)
    stage.say(1, report(1, **SAVED))
    stage.say(0, report(1, **SAVED))
    assert stage.outcome.exit_code == ExitCode.SAVED_AND_STOPPED


def test_signals_that_do_not_exist_are_no_report():
    with pytest.raises(ValueError, match="Signals"):
        report(1, kind="stopped", signal=4711)


# ---- jobs that may run with fewer


def test_all_start_at_once():
    stage = Stage(3, 1, **any_batch())
    for rank in range(3):
        stage.join(rank)
    assert stage.phase == "running"


def test_fewer_start_after_the_grace():
    stage = Stage(4, 2, **any_batch(join_grace_s=30))
    stage.join(0)
    stage.wait(40)
    stage.join(2)
    stage.wait(29)
    assert stage.phase == "gathering"
    stage.wait(2)
    assert stage.round(0).members == ((0, 2), (2, 2))
    assert stage.round(0).even


def test_the_grace_begins_again_with_each_machine_that_comes():
    stage = Stage(4, 1, **any_batch(join_grace_s=30))
    stage.join(0)
    stage.wait(20)
    stage.join(1, ready=False)
    stage.wait(20)
    assert stage.phase == "gathering"
    stage.say(1, Ready(fingerprint=DATA))
    stage.wait(31)
    assert stage.round(1).members == ((0, 2), (1, 2))


def test_a_machine_that_checks_for_ever_does_not_hold_up_those_that_are_enough():
    stage = Stage(3, 2, **any_batch(join_timeout_s=100))
    stage.join(0)
    stage.join(1)
    stage.join(2, ready=False)
    stage.wait(101)
    assert stage.round(0).members == ((0, 2), (1, 2))


def test_a_grace_longer_than_the_join_timeout_starts_with_those_that_are_there():
    stage = Stage(3, 1, **any_batch(join_timeout_s=20, join_grace_s=30))
    stage.join(0)
    stage.wait(21)
    assert stage.phase == "running"


def test_a_machine_that_comes_later_pauses_the_others_and_all_go_on():
    stage = Stage(3, 1, **any_batch()).running(0, 1)
    stage.join(2)
    stop = stage.last(0, Stop)
    assert (stop.kind, stop.reason) == (
        "join",
        "machine 2 gpu-c (10.0.0.3, 2x A100) comes in: the others save and go on with it",
    )
    assert not stage.received(2, Stop)
    stage.say(0, report(1, **SAVED))
    stage.say(1, report(1, **SAVED))
    assert stage.phase == "running"
    assert stage.round(2).members == ((0, 2), (1, 2), (2, 2))
    assert not stage.round(2).even
    assert stage.coordinator.outcome is None


def test_workers_killed_for_a_newcomer_are_no_failure():
    stage = Stage(2, 1, **any_batch(max_restarts=0)).running(0)
    stage.join(1)
    stage.say(0, failed(1, 0, own=False))
    assert stage.round(1).members == ((0, 2), (1, 2))


def test_a_newcomer_that_goes_again_does_not_keep_the_others_waiting():
    stage = Stage(3, 1, **any_batch()).running(0, 1)
    stage.join(2)
    stage.lose(2)
    stage.say(0, report(1, **SAVED))
    stage.say(1, report(1, **SAVED))
    assert stage.round(0).members == ((0, 2), (1, 2))


def test_a_newcomer_that_still_checks_pauses_nobody():
    stage = Stage(3, 1, **any_batch()).running(0, 1)
    stage.join(2, ready=False)
    stage.wait(30)
    assert not stage.received(0, Stop)


def test_those_left_go_on_at_once_after_a_loss():
    stage = Stage(3, 2, **any_batch()).running(0, 1, 2)
    stage.lose(1)
    stage.say(0, failed(1, 0, own=False))
    stage.say(2, failed(1, 4, own=False))
    assert stage.round(0).members == ((0, 2), (2, 2))
    assert any("restart 1 of 3 with the 2 machines left" in line for line in stage.said)


def test_too_few_wait_for_the_lost():
    stage = Stage(3, 3, **any_batch()).running(0, 1, 2)
    stage.lose(1)
    stage.say(0, failed(1, 0, own=False))
    stage.say(2, failed(1, 4, own=False))
    assert stage.phase == "gathering"


def test_a_machine_leaves_with_sigterm_and_the_others_go_on():
    stage = Stage(3, 1, **any_batch()).running(0, 1, 2)
    stage.say(1, report(1, kind="stopped", signal=signal.SIGTERM, saved=True))
    stage.say(0, report(1, **SAVED))
    stage.say(2, report(1, **SAVED))
    leaving = stage.last(1, End).outcome
    assert (leaving.kind, leaving.exit_code) == ("saved_and_stopped", 75)
    assert stage.connections[1] in stage.closed
    assert stage.round(0).members == ((0, 2), (2, 2))
    assert stage.coordinator.outcome is None


def test_a_leaving_machine_that_is_gone_already_is_no_trouble():
    stage = Stage(3, 1, **any_batch()).running(0, 1, 2)
    stage.say(1, report(1, kind="stopped", signal=signal.SIGTERM, saved=True))
    stage.say(1, Leave(reason="it left (SIGTERM)"))
    stage.say(0, report(1, **SAVED))
    stage.say(2, report(1, **SAVED))
    assert stage.round(0).members == ((0, 2), (2, 2))


def test_a_signaled_master_ends_a_job_that_may_shrink():
    stage = Stage(2, 1, **any_batch()).running(0, 1)
    stage.say(0, report(1, kind="stopped", signal=signal.SIGTERM, saved=True))
    stage.say(1, report(1, **SAVED))
    assert stage.outcome.exit_code == 75


def test_machines_keep_the_batch_that_the_first_round_settled():
    settled = []

    def settle(by_node):
        settled.append(by_node)
        return 48

    stage = Stage(3, 1, job=job_facts(settle=settle)).running(0, 1)
    stage.join(2)
    stage.say(0, report(1, **SAVED))
    stage.say(1, report(1, **SAVED))
    assert settled == [(2, 2)]
    assert stage.round(2).batch_size == 48


def test_a_resumed_job_need_not_divide():
    stage = Stage(2, job=job_facts(even=False)).running(0, 1)
    assert not stage.round(0).even


def test_a_stranger_to_the_table_is_not_heard():
    stage = Stage(2).running(0, 1)
    stage.coordinator.on_message(4711, failed(1, 2), stage.now)
    stage.coordinator.on_gone(4711, "?", stage.now)
    stage.coordinator.on_message(4711, NodeHeartbeat(), stage.now)
    assert stage.phase == "running"
