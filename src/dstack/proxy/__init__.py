"""The reverse proxy of services: a byte-level path under the HTTP server, shared by the server and the gateway.

Start at `protocol` (what a client's connection speaks), then `admission` (whether a request is let in), `forward`
(one request on its way to a replica), `pool` (connections to replicas) and `headers` (the rules of RFC 9110 and
9112, pure). Who may, and where to, is asked through `repo` and `auth`. Imports `core` only.
"""
