"""Holds what every worker process has: ranks, lifetime, reports and small files."""

__all__ = ["distributed", "failure_report", "files", "heartbeat", "process_guard", "reporter", "session"]
