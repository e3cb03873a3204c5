"""Kind `volumes`: `rules` (pure), `snapshot` (what is known), `effects` (what is done)."""
