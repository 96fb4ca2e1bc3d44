"""Uses a trained detector: val, predict and export."""

__all__ = ["export", "predict", "val"]
