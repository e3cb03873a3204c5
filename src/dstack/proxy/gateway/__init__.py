"""The gateway app: publishes services on a host of its own, with nginx carrying the traffic.

Start at `api` (what the server calls) and `registry` (what is published). `sites` says what nginx is to do, and
`nginx` has it done; `certificates`, `replicas`, `authorize` and `access_log` are the app's other hands; `state` is
what survives a restart.
"""
