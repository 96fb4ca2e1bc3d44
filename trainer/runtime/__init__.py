"""Holds what every worker process has: ranks, lifetime, reports and small files."""
