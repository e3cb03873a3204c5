"""Kind `gateway_replicas`: `rules` (pure), `snapshot` (what is known), `effects` (what is done)."""
