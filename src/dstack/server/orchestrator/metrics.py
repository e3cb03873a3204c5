"""What the loop counts, for `/metrics`."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

PROCESSED = Counter("dstack_reconcile_processed", "Passes of the loop over a resource.", ["kind"])
FAILED = Counter("dstack_reconcile_errors", "Passes that ended with an error and are tried again.", ["kind"])
SECONDS = Histogram(
    "dstack_reconcile_seconds",
    "Duration of a pass, effects included.",
    ["kind"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5, 30),
)
WAITING = Gauge("dstack_reconcile_queue_length", "Resources that wait for a worker.")
