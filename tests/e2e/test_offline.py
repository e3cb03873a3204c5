"""Without any network but the loopback, a server starts and works as ever, and has nothing to say about it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable

import pytest
from tests.e2e.harness import Cli, ServerProcess, clean_environment, wait_for

LOOPBACK_ONLY = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")


@pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "nsenter", "ip"))),
    reason="needs root, unshare, nsenter and ip: makes a network of its own",
)
def test_better_b24_an_offline_start_is_quiet(make_server: Callable[..., ServerProcess]) -> None:
    server = make_server(prefix=LOOPBACK_ONLY).start(wait=False)
    wait_for("the server to listen", lambda: "The server is running at" in server.output)
    assert server.process is not None
    cli = Cli(server)
    cli.write("type: task\nname: offline\ncommands: [echo works]\n")
    enter = ("nsenter", "--net", "--target", str(server.process.pid))
    done = subprocess.run(
        [*enter, sys.executable, "-m", "dstack", "apply", "-y"],
        cwd=cli.folder,
        env=clean_environment(server.home),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout.splitlines()[-2:]) == (0, ["works", "offline: done"]), done
    assert server.stop() == 0
    for word in ("WARNING", "ERROR", "Traceback", "network", "resolve"):
        assert word not in server.output
