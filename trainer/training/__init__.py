"""Trains one model, from its parts to its end."""
