"""The `dstack` command. Importing it loads only what `--help` needs."""
