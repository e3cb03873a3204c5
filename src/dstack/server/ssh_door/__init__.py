"""SSH into jobs: `ssh <job id>@<server>`, through what the host's agent offers (exec, connect, SFTP).

May import operations, access, hosts, stores and db; beside api, orchestrator and proxy. `door` holds it together;
`listening` is its port, `carrier` the way by WebSocket; `guest` is one SSH connection, `entry` decides who may
enter; `sessions`, `forwards` and `live_logs` are what channels lead to. asyncssh is loaded once the door opens.
"""
