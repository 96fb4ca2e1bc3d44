"""Holds the commands, one file each; each has ``register(app)``."""

__all__ = ["doctor", "export", "node", "plan", "predict", "run", "train", "val", "weights"]
