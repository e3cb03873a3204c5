"""One package per backend behind the interface in `base`; loaded on use by `registry`."""
