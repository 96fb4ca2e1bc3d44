"""Checks with random histories of many machines that a job is one world, has one rank 0, and ends.

Coordinator, dispatcher, admission, membership, RendezvousClient and NodeEvents are the real ones, under a simulated
clock and a simulated network. More histories: benchmarks/rosters.py.
"""

from __future__ import annotations

import pytest

from tests.yolo_launch.rendezvous.roster_history import History, WorldError
from yolo_launch.rendezvous import admission, membership
from yolo_launch.rendezvous.coordinator import Coordinator
from yolo_launch.rendezvous.membership import Participants

MOST_HISTORIES = 1000
CUT_OFF_SEED = 1069
"""A machine of eight is cut off, and the others may start again before it has noticed."""


@pytest.mark.parametrize(
    ("nodes", "seeds"), [(8, range(100)), (256, range(2)), pytest.param(1000, range(1), marks=pytest.mark.slow)]
)
def test_random_histories_of_many_machines_are_one_world_and_end(nodes, seeds):
    played = [History(seed, nodes).play() for seed in seeds]
    assert len(played) == len(seeds)
    if nodes == 8:
        assert {"done", "not_joined", "master lost"} <= {each.outcome for each in played}
        assert max(each.rounds for each in played) > 2


def test_a_seed_decides_a_history():
    assert History(3, 8).play() == History(3, 8).play()


def histories_until_found() -> int:
    for seed in range(MOST_HISTORIES):
        try:
            History(seed, 8).play()
        except WorldError:
            return seed + 1
    raise AssertionError(f"not found in {MOST_HISTORIES} histories")


def test_a_round_number_that_is_not_raised_is_found(monkeypatch):
    start = Coordinator._start

    def forgetful(self, ranks, now):
        self.round = 0
        start(self, ranks, now)

    monkeypatch.setattr(Coordinator, "_start", forgetful)
    assert histories_until_found() <= MOST_HISTORIES


def test_a_rank_that_is_given_twice_is_found(monkeypatch):
    rules = tuple(rule for rule in admission._RULES if rule is not admission._rank_is_free)
    monkeypatch.setattr(admission, "_RULES", rules)
    assert histories_until_found() <= MOST_HISTORIES


def test_a_lost_machines_silence_that_counts_against_the_next_is_found(monkeypatch):
    add, remove, heard_at = Participants.add, Participants.remove, {}

    def remember(self, rank):
        participant = remove(self, rank)
        if participant is not None:
            heard_at[id(self), rank] = participant.heard_at
        return participant

    def add_late(self, participant):
        add(self, participant)
        participant.heard_at = heard_at.get((id(self), participant.join_request.rank), participant.heard_at)

    monkeypatch.setattr(Participants, "remove", remember)
    monkeypatch.setattr(Participants, "add", add_late)
    assert histories_until_found() <= MOST_HISTORIES


def test_a_machine_that_is_cut_off_notices_before_the_others_start_again(monkeypatch):
    History(CUT_OFF_SEED, 8).play()
    monkeypatch.setattr(membership, "NOTICE_S", -membership.NOTICE_S)
    with pytest.raises(WorldError, match="runs round"):
        History(CUT_OFF_SEED, 8).play()
