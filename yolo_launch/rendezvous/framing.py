"""Frames JSON between a node and the rendezvous, length-limited, and with HMAC-SHA256 if a token is set.

A frame is a length (4 bytes, big endian), an authentication code (32 bytes, only with a token) and the JSON of one
object. The code covers direction, a counter and the JSON, so that nobody without the token can alter, replay or invent
a frame. Nothing is encrypted and nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import secrets
import socket
import struct
import threading
from dataclasses import dataclass
from typing import Any

PROTOCOL = 1
MAX_FRAME_BYTES = 1 << 20
MAX_HELLO_BYTES = 1 << 12
"""Before a peer has shown who it is."""
SEND_S = 10.0
"""A peer that takes nothing for so long is gone."""
_LENGTH = struct.Struct(">I")
_CODE_BYTES = 32


class FramingError(Exception):
    """Bytes that are no frame of ours: another program, another token, or an unauthenticated connection."""


def new_nonce() -> str:
    """Returns 128 random bits as hex, which practically never repeat."""
    return secrets.token_hex(16)


def proof(token: str, who: str, server_nonce: str, client_nonce: str) -> str:
    """Returns a code over both nonces that cannot be computed without the token."""
    return _hmac(token.encode(), f"{who} {server_nonce} {client_nonce}".encode()).hex()


def is_proof(stated: object, token: str, who: str, server_nonce: str, client_nonce: str) -> bool:
    """Returns whether ``stated`` is that proof, compared in constant time."""
    # An unauthenticated connection's text may hold what no encoding has: it is compared if it is ASCII alone.
    wanted = proof(token, who, server_nonce, client_nonce)
    return isinstance(stated, str) and stated.isascii() and hmac.compare_digest(stated, wanted)


def _hmac(key: bytes, text: bytes) -> bytes:
    return hmac.new(key, text, hashlib.sha256).digest()


@dataclass
class MessageAuthenticator:
    """One direction of a connection; without a key frames are sent as they are."""

    key: bytes | None = None
    count: int = 0

    @classmethod
    def of(cls, token: str | None, direction: str, server_nonce: str, client_nonce: str) -> MessageAuthenticator:
        """Returns the authenticator of one direction of a connection whose two ends have exchanged nonces."""
        if not token:
            return cls()
        return cls(_hmac(token.encode(), f"key {direction} {server_nonce} {client_nonce}".encode()))

    @property
    def overhead(self) -> int:
        """Returns the number of bytes between length and JSON."""
        return _CODE_BYTES if self.key is not None else 0

    def pack(self, message: dict[str, Any]) -> bytes:
        """Returns the frame of a message."""
        return self.pack_text(text_of(message))

    def pack_text(self, text: bytes) -> bytes:
        """Returns the frame of a JSON that was made before."""
        return _LENGTH.pack(len(text) + self.overhead) + self._mark(text) + text

    def unpack(self, body: bytes) -> dict[str, Any]:
        """Returns the object of a frame whose length was read. Raises FramingError."""
        text = body[self.overhead :]
        if self.key is not None and not hmac.compare_digest(body[: self.overhead], self._mark(text)):
            raise FramingError("a frame without the right authentication code")
        try:
            message = json.loads(text)
        except (ValueError, RecursionError):
            raise FramingError("a frame that is not JSON") from None
        if not isinstance(message, dict):
            raise FramingError("a frame that is not an object")
        return message

    def _mark(self, text: bytes) -> bytes:
        if self.key is None:
            return b""
        self.count += 1
        return _hmac(self.key, struct.pack(">Q", self.count) + text)


def text_of(message: dict[str, Any]) -> bytes:
    """Returns the JSON of a frame."""
    return json.dumps(message, separators=(",", ":")).encode()


def frame_length(head: bytes, limit: int) -> int:
    """Returns the length in a frame's first four bytes. Raises FramingError unless it is from 1 to ``limit``."""
    (length,) = _LENGTH.unpack(head)
    if not 0 < length <= limit:
        raise FramingError(f"a frame of {length} bytes, at most {limit} are taken")
    return int(length)


class Channel:
    """A member's end of a connection. Sending is safe from several threads, receiving from one."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        # A time-out of its own: one that is meant for receiving must not cut a frame that is being sent.
        self._sender = connection.dup()
        self._sender.settimeout(SEND_S)
        self.outgoing, self.incoming = MessageAuthenticator(), MessageAuthenticator()
        self._sending = threading.Lock()
        self._buffer = b""

    def send(self, message: dict[str, Any]) -> None:
        """Sends one frame. Raises OSError if the connection is gone or takes nothing, and ends it then."""
        with self._sending:
            try:
                self._sender.sendall(self.outgoing.pack(message))
            except OSError:
                with contextlib.suppress(OSError):
                    self._sender.shutdown(socket.SHUT_RDWR)
                raise

    def receive(self, timeout_s: float, limit: int = MAX_FRAME_BYTES) -> dict[str, Any] | None:
        """Returns the next frame, or None if none is complete in time. Raises FramingError, and EOFError at the end."""
        self.connection.settimeout(timeout_s)
        while True:
            if len(self._buffer) >= _LENGTH.size:
                end = _LENGTH.size + frame_length(self._buffer[: _LENGTH.size], limit)
                if len(self._buffer) >= end:
                    body, self._buffer = self._buffer[_LENGTH.size : end], self._buffer[end:]
                    return self.incoming.unpack(body)
            try:
                received = self.connection.recv(65536)
            except TimeoutError:
                return None
            if not received:
                raise EOFError
            self._buffer += received

    def close(self) -> None:
        """Ends the connection."""
        with contextlib.suppress(OSError):
            self._sender.shutdown(socket.SHUT_RDWR)
        self._sender.close()
        self.connection.close()
