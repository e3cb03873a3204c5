"""A simulated backend with configurable failures, for tests and load."""
