"""Decides one training run: configuration, plan, findings and run directory."""
