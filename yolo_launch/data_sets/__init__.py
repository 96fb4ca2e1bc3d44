"""Looks at data sets for people, before anything is trained."""

__all__ = ["check", "options", "scanned"]
