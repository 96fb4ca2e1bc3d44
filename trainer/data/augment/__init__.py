"""Changes images and boxes of training samples."""

__all__ = ["basic", "canvas", "finish", "mosaic", "warp"]
