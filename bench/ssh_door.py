"""The SSH door beside OpenSSH: a forwarded port, the time to a prompt, and what it does to the API."""

from __future__ import annotations

import statistics
import subprocess
import threading
import time
from pathlib import Path

from tests.e2e.harness import ServerProcess, free_port, wait_for
from tests.e2e.ssh import Ssh
from tests.e2e.test_ssh import python

from bench.measure import Benchmark, Result, at_least, at_most, median_seconds, running_server
from bench.sshd import SOURCE, forwarding, mb_per_second, plain_sshd

COUNT = 100_000_000
ROUNDS = 3


def ssh_door(folder: Path) -> list[Result]:
    """SSH into jobs: a forwarded port beside `ssh -L` to sshd, the time to a prompt, the API meanwhile"""
    with running_server(folder) as server, plain_sshd(folder) as plain:
        port = free_port()
        server.submit("job", [python(SOURCE, str(port))])
        wait_for("the job", lambda: b"listening" in server.log("job"))
        ssh = Ssh.of_run(server, "job")
        ssh("true")  # the first one loads what the door needs
        ours = [*ssh.flags, ssh.destination]
        results: list[Result] = []
        with forwarding(plain, port) as through_sshd, forwarding(ours, port) as through_door:
            for kind in ("down", "up"):
                pairs = [
                    (mb_per_second(through_sshd, kind, COUNT), mb_per_second(through_door, kind, COUNT))
                    for _ in range(ROUNDS)
                ]
                share = statistics.median(door / sshd for sshd, door in pairs)
                rate = statistics.median(door for _, door in pairs)
                results.append(at_least(f"forwarded port, {kind}, share of ssh -L", 0.3, share, "of it"))
                results.append(Result(f"  forwarded port, {kind}", "", f"{rate:.3g} MB/s"))
            results += _api_meanwhile(server, through_door)
        prompt = median_seconds(lambda: _prompt(ssh))
        results.append(at_most("ssh to a prompt", 0.5, prompt, "s"))
        results.append(Result("  the same with sshd", "", f"{median_seconds(lambda: _plain_prompt(plain)):.3g} s"))
    return results


def _api_meanwhile(server: ServerProcess, port: int) -> list[Result]:
    """Latency of a call of the API, alone and beside a forwarded port that is busy."""
    alone = _latencies(server)
    stopping = threading.Event()

    def transfer() -> None:
        while not stopping.is_set():
            mb_per_second(port, "down", COUNT)

    thread = threading.Thread(target=transfer)
    thread.start()
    try:
        busy = _latencies(server)
    finally:
        stopping.set()
        thread.join()
    return [
        Result("  users/get_my_user alone, p50, p99", "", _shown(alone)),
        Result("  users/get_my_user beside a busy port, p50, p99", "", _shown(busy)),
    ]


def _latencies(server: ServerProcess) -> list[float]:
    found = []
    for _ in range(200):
        start = time.perf_counter()
        server.post("/api/users/get_my_user")
        found.append(time.perf_counter() - start)
    return sorted(found)


def _shown(latencies: list[float]) -> str:
    return f"{latencies[len(latencies) // 2] * 1000:.3g} ms, {latencies[len(latencies) * 99 // 100] * 1000:.3g} ms"


def _prompt(ssh: Ssh) -> None:
    _until_output([*ssh.command("-tt")])


def _plain_prompt(plain: list[str]) -> None:
    _until_output(["ssh", "-tt", *plain])


def _until_output(command: list[str]) -> None:
    """From the start of the command to the first byte it shows."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    if not process.stdout.read(1):
        raise RuntimeError("no prompt came")
    process.kill()
    process.communicate()


BENCHMARKS: list[Benchmark] = [ssh_door]
