"""Plays the part of one node in a job of several nodes."""

__all__ = ["context", "identity", "master", "member", "script", "training", "work"]
