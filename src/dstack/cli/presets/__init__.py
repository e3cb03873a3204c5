"""Presets: kept on this machine, and made by a coding agent whose command line is run here."""
