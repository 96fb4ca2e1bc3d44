"""Checks a launch before it starts, one function a check."""

__all__ = ["context", "inputs", "machine", "preflight"]
