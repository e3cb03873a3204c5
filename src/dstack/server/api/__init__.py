"""HTTP only: one router per group of the REST API; parse, permit, call, answer."""
