"""Checks a launch before it starts, one function a check."""
