"""Trains YOLOv5-class detectors: data, model, loss and loop of one worker, which imports nothing of the launcher."""

__version__ = "0.1.0"
