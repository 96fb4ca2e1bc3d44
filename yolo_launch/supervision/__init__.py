"""Runs the workers of one node attempt after attempt and answers signals."""

__all__ = ["attempt", "monitor", "supervisor"]
