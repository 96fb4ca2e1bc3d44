"""Turns a request and a host into a plan."""
