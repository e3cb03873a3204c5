"""The control plane. Start reading at `app`, the one place where objects are built."""
