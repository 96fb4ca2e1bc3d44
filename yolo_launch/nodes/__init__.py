"""Plays the part of one node in a job of several nodes."""

__all__ = ["agent", "identity", "master", "member", "session", "status_line"]
