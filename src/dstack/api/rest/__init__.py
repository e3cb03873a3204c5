"""The thin typed REST client, one module a group of paths."""
