"""Reads the text files that users write: kind, size and encoding are looked at before anything is parsed."""

__all__ = ["plain_path", "text_file", "yaml_file"]
