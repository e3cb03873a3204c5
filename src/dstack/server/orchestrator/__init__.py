"""The reconcile loop, written once, and the kinds of resources it drives."""
