"""Plays the part of one node in a job of several nodes."""
