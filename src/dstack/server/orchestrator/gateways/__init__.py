"""Kind `gateways`: `rules` (pure), `snapshot` (what is known). It has no effects: its machines have."""
