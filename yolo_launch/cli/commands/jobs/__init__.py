"""Looks at runs that somebody has started, and ends one."""

__all__ = ["attach", "runs", "stop"]
