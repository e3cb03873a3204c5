"""The public Python API: a typed REST client and the high-level `Client` on it."""
