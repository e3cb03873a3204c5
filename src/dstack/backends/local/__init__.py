"""The machine the server runs on."""
