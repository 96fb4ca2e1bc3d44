"""Finds why workers ended or hang, and decides what becomes of the job."""
