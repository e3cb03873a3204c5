"""Connections to host agents: install, call, watch."""
