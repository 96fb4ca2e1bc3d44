"""Validates the configuration of a run."""

__all__ = ["fields", "hyperparameters", "inference", "train"]
