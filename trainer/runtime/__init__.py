"""Holds what every worker process has: ranks, lifetime and reports."""

__all__ = ["distributed", "failure_report", "heartbeat", "origin", "process_guard", "reporter", "session"]
