"""Reads and writes weights of every kind."""
