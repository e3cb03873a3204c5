"""dstack: the open orchestrator for AI workloads.

The version is a constant so that `dstack --version` and start-up read no package metadata.
"""

__version__ = "0.1.0"

COMPATIBILITY_LEVEL = "0.22.5"
"""The level of the REST API that this server and client speak (see docs/reference)."""
