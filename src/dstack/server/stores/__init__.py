"""Where bulk data lives: job logs and uploaded files."""
