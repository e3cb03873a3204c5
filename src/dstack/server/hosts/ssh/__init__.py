"""Hosts that are reached over SSH: connected to with pinned keys, looked at, and given the agent."""
