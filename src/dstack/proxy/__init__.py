"""The shared proxy library: forwarding, balancing, OpenAI-compatible API."""
