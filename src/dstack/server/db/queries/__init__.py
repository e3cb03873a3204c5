"""Queries, one module a kind."""
