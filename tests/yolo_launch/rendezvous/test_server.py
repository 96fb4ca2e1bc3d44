"""Checks members and the rendezvous over real sockets: joining, tokens, refused connections, silence, the end."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.yolo_launch.rendezvous.connections import (
    OpenRendezvous,
    connect_raw,
    opened,
    soon,
    unauthenticated,
    wait_for,
)
from tests.yolo_launch.rendezvous.simulation import DATA, make_join_request, report
from yolo_launch.errors import ExitCode, LaunchError
from yolo_launch.host.ports import free_port
from yolo_launch.nodes import session as node_seat
from yolo_launch.nodes.events import NodeEvents
from yolo_launch.nodes.session import NodeSession
from yolo_launch.nodes.status_line import StatusLine
from yolo_launch.nodes.work import Introduction
from yolo_launch.rendezvous import client as member_module
from yolo_launch.rendezvous.admission import RendezvousSettings
from yolo_launch.rendezvous.client import MasterGone, RendezvousClient
from yolo_launch.rendezvous.dialing import NoRendezvous, RendezvousEndpoint, dial, greet, request_rank
from yolo_launch.rendezvous.framing import PROTOCOL, MessageAuthenticator
from yolo_launch.rendezvous.messages import End, Leave, NodeHeartbeat, Roster, Round, Stop, Store, StoreReady
from yolo_launch.rendezvous.server import MOST_UNAUTHENTICATED
from yolo_launch.spec import Outcome

PROJECT_DIR = Path(__file__).resolve().parents[3]
WRONG = "does not take this machine's token"


def close_all(*members):
    for member in members:
        member.close()


@pytest.mark.parametrize("token", [None, "a secret"])
def test_a_job_from_the_first_connection_to_the_end(token):
    with opened(2, token=token) as it:
        first = it.add_member(0)
        assert wait_for(first, Roster).text.endswith("waiting for 1")
        second = it.add_member(1)
        starts = [wait_for(member, Round) for member in (first, second)]
        assert starts[0] == starts[1]
        assert starts[0].members == ((0, 2), (1, 2))
        first.send(StoreReady(round=1, port=4711))
        assert wait_for(second, Store).port == 4711
        for member in (second, first):
            member.send(report(1, kind="done"))
        assert [wait_for(member, End).outcome for member in (first, second)] == [Outcome("done", 0)] * 2
        close_all(first, second)
        assert soon(lambda: it.coordinator.is_over)
        assert not [line for line in it.said if "was refused" in line]


def test_the_job_is_handed_out_with_the_seat():
    with opened(2) as it:
        channel = dial(it.endpoint, 5, lambda problem: None)
        assert greet(channel, it.endpoint) == "this-rendezvous"
        assert request_rank(channel, it.endpoint, make_join_request(1)) == {"config": {"epochs": 3}}
        channel.close()


def test_a_stop_reaches_the_hearing_thread_at_once():
    with opened(2) as it:
        first, second = it.add_member(0), it.add_member(1)
        wait_for(first, Round)
        stops = []
        first.events.on_stop = lambda message: stops.append((threading.current_thread().name, message))
        began_at = time.monotonic()
        second.channel.connection.shutdown(socket.SHUT_RDWR)
        assert soon(lambda: stops)
        assert time.monotonic() - began_at < 1
        thread, message = stops[0]
        assert isinstance(message, Stop)
        assert (message.kind, first.stop, thread) == ("lost", message, "rendezvous_receive")
        close_all(first, second)


def test_a_refusal_reaches_both_sides():
    with opened(2) as it:
        first = it.add_member(0)
        with pytest.raises(LaunchError, match="different versions of torch") as caught:
            connect_raw(it.endpoint, 1, torch="2.13.1")
        assert caught.value.seen == "2.13.1 on gpu-b, 2.15.0 on gpu-a"
        assert caught.value.exit_code == ExitCode.ENVIRONMENT
        assert it.heard("refused 1 gpu-b (10.0.0.2, 2x A100): gpu-b and gpu-a have different versions of torch.")
        close_all(first)


@pytest.mark.parametrize(
    ("rendezvous_token", "own", "seen", "master_sees"),
    [
        ("a secret", "another", "another one", "a wrong token, or none"),
        ("a secret", None, "none", "a wrong token, or none"),
        (None, "a secret", "a token", "a token, and this job has none"),
    ],
    ids=["wrong", "missing", "not wanted"],
)
def test_a_token_that_does_not_fit_is_refused_on_both_sides(rendezvous_token, own, seen, master_sees):
    with opened(2, token=rendezvous_token) as it:
        with pytest.raises(LaunchError, match=WRONG) as caught:
            connect_raw(RendezvousEndpoint("127.0.0.1", it.endpoint.port, own), 1)
        assert caught.value.seen == seen
        assert caught.value.exit_code == ExitCode.NOT_JOINED
        assert it.heard(master_sees)
        assert it.heard("127.0.0.1:")
        assert not it.coordinator.participants.by_rank


def test_a_rendezvous_that_only_pretends_to_know_the_token_is_found_out():
    """It asks for a token, takes any proof, and proves nothing itself."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def pretend():
            connection, _ = server.accept()
            with connection:
                connection.sendall(
                    MessageAuthenticator().pack({"rendezvous": "x", "protocol": PROTOCOL, "nonce": "n", "token": True})
                )
                connection.recv(4096)
                connection.sendall(MessageAuthenticator().pack({"proof": "0" * 64}))
                connection.recv(4096)

        threading.Thread(target=pretend, daemon=True).start()
        with pytest.raises(LaunchError, match=WRONG):
            connect_raw(RendezvousEndpoint("127.0.0.1", server.getsockname()[1], "a secret"), 1)


def serve_once(answer):
    """Serves a message to the first connection and keeps it open."""
    server = socket.create_server(("127.0.0.1", 0))

    def run():
        connection, _ = server.accept()
        connection.sendall(answer)
        time.sleep(2)
        connection.close()

    threading.Thread(target=run, daemon=True).start()
    return server


@pytest.mark.parametrize(
    ("answer", "seen"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", "a frame of 1397966893 bytes"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "a frame of"),
        (
            MessageAuthenticator().pack({"rendezvous": "x", "protocol": 99, "nonce": "n"}),
            f"protocol 99, this one speaks {PROTOCOL}",
        ),
        (MessageAuthenticator().pack({"protocol": PROTOCOL}), "protocol"),
        (struct.pack(">I", 5) + b"12345", "not an object"),
    ],
    ids=["ssh", "http", "another version", "no nonce", "no object"],
)
def test_another_program_on_the_port_is_no_rendezvous(answer, seen):
    with serve_once(answer) as server:
        with pytest.raises(LaunchError, match="is no rendezvous of this yolo-launch") as caught:
            connect_raw(RendezvousEndpoint("127.0.0.1", server.getsockname()[1]), 1)
        assert seen in caught.value.seen


def test_a_server_that_says_nothing_is_not_waited_for_long():
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = RendezvousEndpoint("127.0.0.1", server.getsockname()[1])
        channel = dial(endpoint, 5, lambda problem: None)
        began_at = time.monotonic()
        with pytest.raises(LaunchError, match="no rendezvous"):
            greet(channel, endpoint, 0.5)
        assert time.monotonic() - began_at < 2
        channel.close()


def test_a_connection_that_is_cut_without_a_word_may_be_tried_again():
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = RendezvousEndpoint("127.0.0.1", server.getsockname()[1])
        channel = dial(endpoint, 5, lambda problem: None)
        server.accept()[0].close()
        with pytest.raises(NoRendezvous, match="cut the connection"):
            greet(channel, endpoint)
        channel.close()


def test_a_master_that_starts_later_is_found_and_the_wait_explained():
    port, problems = free_port(), []
    servers: list[OpenRendezvous] = []
    threading.Timer(0.7, lambda: servers.append(OpenRendezvous(2, port=port))).start()
    channel = dial(RendezvousEndpoint("127.0.0.1", port), 10, problems.append)
    assert greet(channel, RendezvousEndpoint("127.0.0.1", port)) == "this-rendezvous"
    assert set(problems) == {f"nothing listens on 127.0.0.1:{port} yet: is the master started, with this --port?"}
    channel.close()
    servers[0].rendezvous.end(Outcome("done", 0))
    servers[0].rendezvous.close(0.5)


def test_nobody_there_is_said_when_the_time_is_up():
    began_at = time.monotonic()
    with pytest.raises(NoRendezvous, match="nothing listens"):
        dial(RendezvousEndpoint("127.0.0.1", free_port()), 0.6, lambda problem: None)
    assert 0.5 < time.monotonic() - began_at < 3


def test_a_busy_port_names_who_holds_it():
    with opened(2) as it:
        with pytest.raises(LaunchError, match="cannot listen") as caught, opened(2, port=it.endpoint.port):
            pass
        assert f"PID {os.getpid()} (" in caught.value.seen
        assert caught.value.exit_code == ExitCode.ENVIRONMENT


# ---- unauthenticated connections


class Bomb:
    """Runs a command in the process that unpickles it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def garbage(bomb: bytes) -> list[bytes]:
    hello = {"protocol": PROTOCOL, "nonce": "n", "proof": ""}
    odd = MessageAuthenticator().pack(hello) + struct.pack(">I", len(bomb)) + bomb
    return [
        os.urandom(4096),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\0\0\0\0",
        b"\0\0\0\x05hello",
        struct.pack(">I", 1 << 19),
        MessageAuthenticator().pack({"protocol": PROTOCOL, "nonce": "\ud800", "proof": "\ud800"}),
        MessageAuthenticator().pack({"protocol": PROTOCOL, "nonce": 7}),
        MessageAuthenticator().pack({"protocol": [PROTOCOL]}),
        MessageAuthenticator().pack(hello) + MessageAuthenticator().pack({"type": "NodeHeartbeat"}),
        MessageAuthenticator().pack(hello) + MessageAuthenticator().pack({"type": "JoinRequest", "rank": "x"}),
        MessageAuthenticator().pack(hello)
        + MessageAuthenticator().pack({"type": "End", "outcome": {"kind": "done", "exit_code": 0}}),
        struct.pack(">I", len(bomb)) + bomb,
        odd,
        bomb,
        b"",
    ]


@pytest.mark.parametrize("token", [None, "a secret"])
def test_garbage_disturbs_neither_a_waiting_nor_a_running_job(token, tmp_path, capfd):
    fuse = tmp_path / "exploded"
    with opened(2, token=token) as it:
        first = it.add_member(0)
        for text in garbage(pickle.dumps(Bomb(fuse))) * 3:
            with unauthenticated(it.endpoint) as connection:
                connection.sendall(text)
        second = it.add_member(1)
        wait_for(first, Round)
        for text in garbage(pickle.dumps(Bomb(fuse))) * 3:
            connection = unauthenticated(it.endpoint)
            connection.sendall(text)
            connection.shutdown(socket.SHUT_WR)
        time.sleep(0.5)
        first.send(report(1, kind="done"))
        second.send(report(1, kind="done"))
        assert wait_for(second, End).outcome.kind == "done"
        assert not fuse.exists()
        assert it.heard("an unauthenticated connection to the rendezvous port was refused: 127.0.0.1:")
        assert len([line for line in it.said if "was refused" in line]) == 1, "a flood is one line"
        close_all(first, second)
    assert "Traceback" not in capfd.readouterr().err


def test_a_bomb_from_an_accepted_machine_is_not_executed_either(tmp_path):
    fuse = tmp_path / "exploded"
    with opened(2) as it:
        first, second = it.add_member(0), it.add_member(1)
        wait_for(first, Round)
        bomb = pickle.dumps(Bomb(fuse))
        second.channel._sender.sendall(struct.pack(">I", len(bomb)) + bomb)
        assert it.heard("machine 1 gpu-b (10.0.0.2, 2x A100) is lost: it sent a frame that is not JSON")
        assert not fuse.exists()
        close_all(first, second)


def test_a_thousand_held_connections_disturb_nobody(monkeypatch):
    monkeypatch.setattr("yolo_launch.rendezvous.server.YOUNG_S", 0.5)
    with opened(3, 1, join_grace_s=0.2) as it:
        first = it.add_member(0)
        wait_for(first, Round)
        beaten, gaps = threading.Event(), []

        def listen():
            before = time.monotonic()
            while not beaten.wait(0.02):
                if first.heard_at > before:
                    gaps.append(first.heard_at - before)
                    before = first.heard_at

        listener = threading.Thread(target=listen)
        listener.start()
        held = []
        for number in range(1000):
            held.append(unauthenticated(it.endpoint))
            if number % 3 == 0:
                held[-1].sendall(b"\0\0")  # half a length
        assert len(it.rendezvous._unauthenticated) <= MOST_UNAUTHENTICATED
        began_at = time.monotonic()
        second = it.add_member(1)
        assert time.monotonic() - began_at < 5
        assert soon(lambda: first.stop is not None)
        assert first.stop.kind == "join"
        first.send(report(1, kind="saved"))
        assert wait_for(second, Round).number == 2
        time.sleep(1.2)
        beaten.set()
        listener.join()
        assert gaps
        # A node counts as lost after silent_s; the test's own thread waits for a core on a busy machine.
        assert max(gaps) < RendezvousSettings.silent_s / 2
        assert not first.gone
        for connection in held:
            connection.close()
        close_all(first, second)


def test_strangers_that_say_nothing_are_sent_away(monkeypatch):
    monkeypatch.setattr("yolo_launch.rendezvous.server.HELLO_S", 0.3)
    with opened(2) as it:
        connection = unauthenticated(it.endpoint)
        connection.settimeout(5)
        while connection.recv(4096):
            pass
        assert it.heard("it said nothing for 0.3 s")
        connection.close()


def test_a_member_that_takes_nothing_does_not_hold_up_the_others():
    with opened(3, 2, join_grace_s=0.1, silent_s=1.5) as it:
        first, second = it.add_member(0), it.add_member(1)
        deaf = unauthenticated(it.endpoint)
        deaf.recv(4096)
        deaf.sendall(MessageAuthenticator().pack({"protocol": PROTOCOL, "nonce": "n", "proof": ""}))
        deaf.sendall(MessageAuthenticator().pack(make_join_request(2).pack()))
        assert it.heard("machine 2 gpu-c (10.0.0.3, 2x A100) joined")
        assert it.heard("no word from it for 1.5 s")
        assert wait_for(second, Round)
        deaf.close()
        close_all(first, second)


def test_a_handler_that_fails_does_not_end_the_rendezvous_and_one_that_always_fails_ends_the_job(monkeypatch, caplog):
    monkeypatch.setattr("yolo_launch.rendezvous.dispatch.BROKEN_S", 0.5)
    with opened(2) as it:
        first = it.add_member(0)
        monkeypatch.setattr(it.coordinator, "tick", lambda now: 1 / 0)
        assert wait_for(first, End).outcome.detail == "the rendezvous itself failed"
        assert "ZeroDivisionError" in caplog.text
        close_all(first)


# ---- losing one another


def test_leaving_is_said_with_its_reason():
    with opened(2) as it:
        second = it.add_member(1)
        second.send(Leave(reason="it left (Ctrl-C)"))
        second.close()
        assert it.heard("machine 1 gpu-b (10.0.0.2, 2x A100) is gone: it left (Ctrl-C)")


def test_the_end_reaches_everybody_and_the_port_is_free_afterwards():
    with opened(3) as it:
        members = [it.add_member(rank) for rank in range(3)]
        for member in members:
            wait_for(member, Round)
        it.rendezvous.end(Outcome("interrupted", 130))
        assert [wait_for(member, End).outcome.exit_code for member in members] == [130] * 3
        close_all(*members)
        began_at = time.monotonic()
        it.rendezvous.close()
        assert time.monotonic() - began_at < 2
        port = it.endpoint.port
    with opened(2, port=port):
        pass


def test_a_rendezvous_that_closes_is_noticed_at_once():
    with opened(2) as it:
        first = it.add_member(0)
        it.rendezvous.end(Outcome("done", 0))
        it.rendezvous.close(0.2)
        assert wait_for(first, MasterGone, 3).reason
        first.close()


def test_a_member_whose_threads_fail_says_so_instead_of_going_deaf():
    with opened(2) as it:
        first, second = it.add_member(0), it.add_member(1)
        wait_for(first, Round)

        def fail(message: Stop) -> None:
            raise RuntimeError("no")

        def odd() -> NodeHeartbeat:
            raise ValueError("half a heartbeat file")

        second.events.heartbeat, first.events.on_stop = odd, fail
        time.sleep(1.5)
        assert sorted(it.coordinator.participants.by_rank) == [0, 1]
        second.close()
        assert soon(lambda: first.gone)
        assert "could not be followed: no" in first.gone
        first.close()


STOPPED_MASTER = """
import time
from tests.yolo_launch.rendezvous.connections import OpenRendezvous
it = OpenRendezvous(2)
print(it.endpoint.port, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("scale", [pytest.param(1.0, marks=pytest.mark.slow), 0.3], ids=["real times", "short times"])
def test_a_master_that_is_stopped_is_given_up_within_ten_seconds(monkeypatch, scale):
    """The kernel takes connections and data for a stopped process still: one more look at it has to be short."""
    silent_s, lost_s = scale * member_module.SILENT_S, scale * node_seat.LOST_S
    monkeypatch.setattr(member_module, "SILENT_S", silent_s)
    monkeypatch.setattr(node_seat, "LOST_S", lost_s)
    command = [sys.executable, "-c", STOPPED_MASTER]
    server = subprocess.Popen(command, cwd=PROJECT_DIR, stdout=subprocess.PIPE, text=True)
    try:
        endpoint = RendezvousEndpoint("127.0.0.1", int(server.stdout.readline()))
        shown = io.StringIO()
        session = NodeSession(make_join_request(1), endpoint, NodeEvents(StatusLine(shown)))
        assert session.join(10) == {"config": {"epochs": 3}}
        session.introduce(Introduction(DATA))
        wait_for(session.client, Roster)
        server.send_signal(signal.SIGSTOP)
        began_at = time.monotonic()
        reason = wait_for(session.client, MasterGone, 10).reason
        assert reason == f"no word from the master for {silent_s:g} s"
        assert not session.reconnect(reason)
        assert silent_s - 1.5 < time.monotonic() - began_at < lost_s + 1
        assert lost_s / scale + 1 <= 10
        assert f"{reason}; looking for it" in shown.getvalue()
    finally:
        server.send_signal(signal.SIGCONT)
        server.kill()
        server.wait()


def test_a_rank_is_taken_again_at_the_same_rendezvous_and_at_no_other(monkeypatch):
    monkeypatch.setattr("yolo_launch.nodes.session.LOST_S", 1.0)
    shown = io.StringIO()
    with opened(2) as it:
        first = it.add_member(0)
        session = NodeSession(make_join_request(1), it.endpoint, NodeEvents(StatusLine(shown)))
        session.join(5)
        session.introduce(Introduction(DATA))
        assert wait_for(first, Round).number == 1
        session.client.channel.connection.shutdown(socket.SHUT_RDWR)
        reason = wait_for(session.client, MasterGone).reason
        before = session.client
        assert session.reconnect(reason)
        again = session.client
        first.send(report(1, kind="ended"))
        assert again is not before
        assert wait_for(again, Round).number == 2
        assert shown.getvalue().endswith("the master answers again\n")
        port = it.endpoint.port
        again.close()
        close_all(first)
    with opened(2, port=port) as it:
        it.rendezvous._id = "another rendezvous"
        assert not session.reconnect("gone")
        assert not it.coordinator.participants.by_rank


def test_a_rank_is_waited_for_at_a_port_that_cuts_connections_until_the_rendezvous_is_up():
    """A container's proxy takes connections before the container listens."""
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        port = proxy.getsockname()[1]
        shown = io.StringIO()
        session = NodeSession(
            make_join_request(1), RendezvousEndpoint("127.0.0.1", port), NodeEvents(StatusLine(shown))
        )

        def cut():
            with contextlib.suppress(OSError):
                while True:
                    proxy.accept()[0].close()

        threading.Thread(target=cut, daemon=True).start()
        with pytest.raises(LaunchError, match=r"The master did not answer within 0.7 s\.") as caught:
            session.join(0.7)
        assert "cut the connection" in caught.value.seen
        assert "cut the connection" in shown.getvalue()


def test_a_member_that_slept_does_not_blame_the_master(monkeypatch):
    monkeypatch.setattr("yolo_launch.rendezvous.client.SILENT_S", 0.8)
    monkeypatch.setattr("yolo_launch.rendezvous.client.SUSPENDED_S", 0.6)
    monkeypatch.setattr("yolo_launch.rendezvous.announcements.HEARTBEAT_S", 0.2)
    with opened(2) as it:
        channel = dial(it.endpoint, 5, lambda problem: None)
        greet(channel, it.endpoint)
        request_rank(channel, it.endpoint, make_join_request(1))
        member, receive, calls = RendezvousClient(channel), channel.receive, []

        def sleepy(timeout_s: float, *more):
            calls.append(time.monotonic())
            if len(calls) == 3:
                time.sleep(1.0)
                return None
            return receive(timeout_s, *more)

        monkeypatch.setattr(channel, "receive", sleepy)
        member.start()
        time.sleep(1.6)
        assert len(calls) > 3
        assert not member.gone
        member.close()
