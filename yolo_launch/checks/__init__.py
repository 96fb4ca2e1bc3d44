"""Checks a launch before it starts, one function a check."""

__all__ = ["context", "data_scan", "inputs", "launchers", "machine", "preflight"]
