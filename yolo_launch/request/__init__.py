"""Describes what the user asked: options, spellings and typed requests."""

__all__ = ["command_line", "launch_request", "options", "yolov5_arguments"]
