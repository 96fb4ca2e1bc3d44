"""Updates the weights: optimizer, learning-rate schedule and average of the weights."""

__all__ = ["ema", "optimizer", "schedule"]
