"""Describes what the user asked: options, spellings and typed requests."""

__all__ = [
    "answers",
    "command_line",
    "inference_options",
    "launch_options",
    "launch_request",
    "machine_options",
    "node_options",
    "options",
    "torchrun_arguments",
    "train_options",
    "yolov5_arguments",
]
