"""Launches workers: devices, machines, processes and torch's elastic agent; no image, box or loss is handled here."""
