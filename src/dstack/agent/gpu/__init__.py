"""Accelerators of the host: which there are, and which task has which."""
