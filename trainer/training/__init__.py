"""Trains one model, from its parts to its end."""

__all__ = ["build", "loop", "run", "worker"]
