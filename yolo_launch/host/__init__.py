"""Reads what one machine has, without torch."""
