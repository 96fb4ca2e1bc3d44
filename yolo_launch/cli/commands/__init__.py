"""Holds the commands, one file each: a function that takes a context and typed options."""

__all__ = ["doctor", "export", "node", "plan", "predict", "run", "train", "val", "weights"]
