"""The in-server implementation of `dstack.proxy`'s repository and auth provider."""
