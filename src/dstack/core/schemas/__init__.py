"""Bodies of the REST API, one module a group of paths."""
