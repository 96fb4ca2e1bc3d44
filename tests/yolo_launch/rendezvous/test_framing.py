"""Checks frames: whole, authenticated, of a bounded length, and nothing but JSON."""

from __future__ import annotations

import socket
import struct
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yolo_launch.rendezvous.framing import (
    MAX_FRAME_BYTES,
    Channel,
    FramingError,
    MessageAuthenticator,
    frame_length,
    is_proof,
    new_nonce,
    proof,
)

TOKEN = "a secret"


def sealed(direction: str = "member", token: str | None = TOKEN) -> MessageAuthenticator:
    return MessageAuthenticator.of(token, direction, "server-nonce", "client-nonce")


def body(frame: bytes) -> bytes:
    (length,) = struct.unpack(">I", frame[:4])
    assert length == len(frame) - 4
    return frame[4:]


@pytest.mark.parametrize("token", [TOKEN, None])
def test_what_is_packed_is_unpacked_in_order(token):
    out, back = sealed(token=token), sealed(token=token)
    for number in range(3):
        assert back.unpack(body(out.pack({"number": number, "text": "ä\n"}))) == {"number": number, "text": "ä\n"}


def test_without_a_token_a_frame_is_a_length_and_json():
    assert MessageAuthenticator().pack({"a": 1}) == struct.pack(">I", 7) + b'{"a":1}'


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_frame_with_any_bit_changed_is_refused(data):
    frame = bytearray(body(sealed().pack({"type": "NodeHeartbeat", "epoch": 3})))
    place = data.draw(st.integers(0, len(frame) - 1))
    frame[place] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(FramingError, match="authentication code"):
        sealed().unpack(bytes(frame))


def test_a_frame_sent_again_is_refused():
    out, back = sealed(), sealed()
    frame = body(out.pack({"a": 1}))
    back.unpack(frame)
    with pytest.raises(FramingError, match="authentication code"):
        back.unpack(frame)


def test_a_frame_that_was_left_out_is_noticed():
    out, back = sealed(), sealed()
    out.pack({"a": 1})
    with pytest.raises(FramingError, match="authentication code"):
        back.unpack(body(out.pack({"a": 2})))


def test_a_frame_sent_back_to_its_sender_is_refused():
    frame = body(sealed("rendezvous").pack({"a": 1}))
    with pytest.raises(FramingError, match="authentication code"):
        sealed("member").unpack(frame)


def test_a_frame_of_another_connection_is_refused():
    frame = body(MessageAuthenticator.of(TOKEN, "member", new_nonce(), new_nonce()).pack({"a": 1}))
    with pytest.raises(FramingError, match="authentication code"):
        MessageAuthenticator.of(TOKEN, "member", new_nonce(), new_nonce()).unpack(frame)


@pytest.mark.parametrize("other", ["another secret", None])
def test_a_frame_of_another_token_is_refused(other):
    with pytest.raises(FramingError):
        sealed().unpack(body(sealed(token=other).pack({"a": 1})))


@pytest.mark.parametrize(
    "text", [b"", b"nothing", b"[1]", b'"text"', b"1", b"\xff\xfe\x00", b'{"a":', b"[" * 100_000, b"1" * 100_000]
)
def test_only_a_json_object_is_a_frame(text):
    with pytest.raises(FramingError, match=r"JSON|object"):
        MessageAuthenticator().unpack(text)


@pytest.mark.parametrize(
    "head", [b"\0\0\0\0", struct.pack(">I", 4097), b"GET ", b"SSH-", b"\x16\x03\x01\x02", b"\xff" * 4]
)
def test_lengths_that_cannot_be_ours_are_refused_before_anything_is_read(head):
    with pytest.raises(FramingError, match="at most 4096"):
        frame_length(head, 4096)


def test_the_longest_frame_is_taken():
    assert frame_length(struct.pack(">I", MAX_FRAME_BYTES), MAX_FRAME_BYTES) == MAX_FRAME_BYTES


def test_a_proof_needs_the_token_both_nonces_and_the_right_side():
    good = proof(TOKEN, "member", "s", "c")
    assert is_proof(good, TOKEN, "member", "s", "c")
    for token, who, server, client in (
        ("other", "member", "s", "c"),
        (TOKEN, "rendezvous", "s", "c"),
        (TOKEN, "member", "c", "s"),
        (TOKEN, "member", "s", "x"),
    ):
        assert not is_proof(good, token, who, server, client)


@pytest.mark.parametrize("stated", [None, 1, "", b"", [], "\ud800", "ü" * 64, "0" * 64])
def test_anything_may_be_stated_as_a_proof(stated):
    assert not is_proof(stated, TOKEN, "member", "s", "c")


# ---- a member's end of a connection


@pytest.fixture
def pair():
    left, right = socket.socketpair()
    ends = Channel(left), Channel(right)
    yield ends
    for end in ends:
        end.close()


def test_frames_come_whole_however_they_were_cut(pair):
    frame = MessageAuthenticator().pack({"text": "x" * 1000}) + MessageAuthenticator().pack({"n": 2})
    for start in range(0, len(frame), 7):
        pair[0].connection.sendall(frame[start : start + 7])
    assert pair[1].receive(1) == {"text": "x" * 1000}
    assert pair[1].receive(1) == {"n": 2}
    assert pair[1].receive(0.01) is None


def test_a_frame_in_two_halves_is_waited_for(pair):
    frame = MessageAuthenticator().pack({"n": 1})
    pair[0].connection.sendall(frame[:6])
    assert pair[1].receive(0.05) is None
    pair[0].connection.sendall(frame[6:])
    assert pair[1].receive(1) == {"n": 1}


def test_the_end_of_a_connection_is_told_apart_from_silence(pair):
    assert pair[1].receive(0.01) is None
    pair[0].close()
    with pytest.raises(EOFError):
        pair[1].receive(1)


def test_a_length_over_the_limit_is_refused(pair):
    pair[0].connection.sendall(struct.pack(">I", 5000))
    with pytest.raises(FramingError, match="5000 bytes, at most 4096"):
        pair[1].receive(1, 4096)


def test_many_threads_send_whole_frames(pair):
    pair[0].outgoing, pair[1].incoming = sealed(), sealed()
    threads = [
        threading.Thread(target=lambda n=n: [pair[0].send({"n": n, "text": "x" * 500}) for _ in range(50)])
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    counts = [0] * 8
    for _ in range(400):
        counts[pair[1].receive(5)["n"]] += 1
    assert counts == [50] * 8


def test_a_peer_that_takes_nothing_ends_the_connection(pair, monkeypatch):
    pair[0]._sender.settimeout(0.2)
    began_at = time.monotonic()
    with pytest.raises(OSError, match="timed out"):
        pair[0].send({"text": "x" * 50_000_000})
    assert time.monotonic() - began_at < 5
    with pytest.raises(OSError, match=r"."):
        pair[0].send({"n": 1})


def test_receiving_with_a_short_time_does_not_shorten_sending(pair):
    """Both ends of a socket's time-outs are apart: a frame must not be cut in its middle."""
    text = "x" * 400_000
    receiver = threading.Thread(target=lambda: (time.sleep(0.4), pair[1].receive(5)))
    receiver.start()
    assert pair[0].receive(0.05) is None
    pair[0].send({"text": text})
    receiver.join()
