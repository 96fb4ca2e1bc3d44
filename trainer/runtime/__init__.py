"""Holds what every worker process has: ranks, lifetime and reports."""

__all__ = [
    "collective_trace",
    "device_progress",
    "distributed",
    "failure_report",
    "heartbeat",
    "origin",
    "process_guard",
    "reporter",
    "session",
    "unloaded_compiler",
]
