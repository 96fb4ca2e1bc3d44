"""Finds the images of a split and reads their labels."""
