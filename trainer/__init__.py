"""One training worker: data, model, loss and loop of YOLOv5-class detectors. It knows nothing about the launcher."""

__version__ = "0.1.0"
