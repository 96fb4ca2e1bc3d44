"""Describes what the user asked: options, spellings and typed requests."""
