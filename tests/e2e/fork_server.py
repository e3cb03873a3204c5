"""Runs the command `dstack` of the environment whose Python runs this, without paying for its start every time.

    python fork_server.py SOCKET

loads the command's entry point once and then forks a process for each connection. A client sends one JSON
message `{"argv", "cwd", "env"}` with the descriptors of standard input and output, and reads two lines: the
process id, and once the process has ended its exit status (or minus the signal that ended it). The command runs as
it is, but what it asked about its output while it was loaded it found out here: no terminal.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import socket
import sys

MAX_REQUEST = 1 << 20


def main() -> object:
    """In a forked process: the result of the command. Never ends in the process that forks."""
    (entry_point,) = (e for e in importlib.metadata.entry_points(group="console_scripts") if e.name == "dstack")
    command = entry_point.load()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # what has been forked is reaped by the system
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(sys.argv[1])
        listener.listen(64)
        connection = next_connection(listener)
    become_command(connection)
    return command()


def next_connection(listener: socket.socket) -> socket.socket:
    """Returns in a forked process only."""
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return connection
        connection.close()


def become_command(connection: socket.socket) -> None:
    """Returns in the command's process, which has what the request says; its parent tells how it ended."""
    request, descriptors, _, _ = socket.recv_fds(connection, MAX_REQUEST, 2)
    process_id = os.fork()
    if process_id != 0:
        for descriptor in descriptors:
            os.close(descriptor)
        report(connection, process_id)
    connection.close()
    os.dup2(descriptors[0], 0)
    os.dup2(descriptors[1], 1)
    os.dup2(descriptors[1], 2)
    wanted = json.loads(request)
    os.chdir(wanted["cwd"])
    os.environ.clear()
    os.environ.update(wanted["env"])
    sys.argv = ["dstack", *wanted["argv"]]


def report(connection: socket.socket, process_id: int) -> None:
    """Says the process id and how the process ended, and ends."""
    connection.sendall(b"%d\n" % process_id)
    _, status = os.waitpid(process_id, 0)
    connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())  # type: ignore[arg-type]
