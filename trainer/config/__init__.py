"""Validates the configuration of a run."""

__all__ = ["hyperparameters", "train"]
