"""Distributed tasks over hosts of an SSH fleet: real MPI, a rendezvous as PyTorch makes one, all or nothing."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
from tests.e2e.harness import Cli, ServerProcess, wait_for
from tests.e2e.on_prem import apply, instances, ssh_fleet, wait_idle
from tests.fixtures.docker import OPENSSH_IMAGE, import_openssh
from tests.fixtures.ssh_hosts import SSHHost, SSHNetwork

MASTER_RUNS_ALL: dict[str, Any] = {"startup_order": "workers-first", "stop_criteria": "master-done"}
"""What `docs/guides/distributed-tasks.md` tells those to use who start the other nodes from the first one."""

SUM_BY_MPI = """
import ctypes, socket
mpi = ctypes.CDLL("libmpi.so.40", mode=ctypes.RTLD_GLOBAL)
def handle(name):
    return ctypes.byref(ctypes.c_char.in_dll(mpi, name))
world, rank, total = handle("ompi_mpi_comm_world"), ctypes.c_int(), ctypes.c_int()
mpi.MPI_Init(None, None)
mpi.MPI_Comm_rank(world, ctypes.byref(rank))
mine = ctypes.c_int(10 + rank.value)
numbers, addition = handle("ompi_mpi_int"), handle("ompi_mpi_op_sum")
mpi.MPI_Allreduce(ctypes.byref(mine), ctypes.byref(total), 1, numbers, addition, world)
print(f"rank {rank.value} on {socket.gethostname()}: {total.value}", flush=True)
mpi.MPI_Finalize()
"""

SUM_BY_SOCKETS = """
import os, socket, time
rank, world = int(os.environ["DSTACK_NODE_RANK"]), int(os.environ["DSTACK_NODES_NUM"])
place = (os.environ["DSTACK_MASTER_NODE_IP"], 29500)
def repeat(step):
    deadline = time.monotonic() + 60
    while True:
        try:
            return step()
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
if rank == 0:
    with socket.create_server(("", place[1])) as store:
        peers = [store.accept()[0] for _ in range(world - 1)]
    total = 10 + sum(int(peer.recv(20)) for peer in peers)
    for peer in peers:
        peer.sendall(str(total).encode())
else:
    peer = repeat(lambda: socket.create_connection(place, 5))
    peer.sendall(str(10 + rank).encode())
    total = int(peer.recv(20))
print(f"rank {rank} of {world}: {total}")
"""


def python(program: str) -> str:
    return f"cat > program.py <<'E'\n{program}\nE"


def make_cluster(server: ServerProcess, where: SSHNetwork, nodes: int = 2) -> None:
    hosts = [host.address for host in where.hosts] or [where.add().address for _ in range(nodes)]
    spec = ssh_fleet(where, hosts, network=f"{where.subnet}.0/24")
    spec["configuration"]["placement"] = "cluster"
    apply(server, spec)
    wait_idle(server, nodes)


def lock_root(host: SSHHost) -> None:
    """As on many hosts of clouds: root has no password that could ever be right, and a mark that says so."""
    host.run("sed 's/^root:[^:]*:/root:!:/' /etc/shadow > /tmp/shadow; chmod 600 /tmp/shadow")
    host.run("mount --bind /tmp/shadow /etc/shadow")


def statuses(run: dict[str, Any]) -> list[str]:
    return [job["job_submissions"][-1]["status"] for job in run["jobs"]]


def test_mpirun_and_a_rendezvous_work_between_hosts(cli: Cli, ssh_network: SSHNetwork) -> None:
    if shutil.which("mpirun") is None:
        pytest.skip("mpirun is not installed")
    server = cli.server
    make_cluster(server, ssh_network)
    lock_root(ssh_network.hosts[1])
    run = (
        f"if [ $DSTACK_NODE_RANK != 0 ]; then exec sleep 1000; fi; {python(SUM_BY_MPI)}\n"
        "cat $DSTACK_MPI_HOSTFILE; for ip in $DSTACK_NODES_IPS; do scp -q program.py $ip:/tmp/; done; "
        "mpirun --allow-run-as-root --hostfile $DSTACK_MPI_HOSTFILE --map-by ppr:1:node python3 /tmp/program.py"
    )
    server.submit("mpi", [run], nodes=2, fleets=["onprem"], **MASTER_RUNS_ALL)
    server.wait_run("mpi", "done", "failed")
    first, second = ssh_network.hosts
    expected = [first.address, second.address, f"rank 0 on {first.name}: 21", f"rank 1 on {second.name}: 21"]
    told = [line for line in cli("logs", "mpi")[1].splitlines() if "plm:rsh: Warning" not in line]
    assert sorted(told) == sorted(expected)  # Open MPI may warn that a child of its own was quicker than it
    for host in ssh_network.hosts:
        assert "tasks/" not in host.run("ps ax | grep sshd || true")
        assert not (host.folder / "root/.ssh/config").exists()

    server.submit("torch", [f"{python(SUM_BY_SOCKETS)}\npython3 program.py"], nodes=2, fleets=["onprem"])
    server.wait_run("torch", "done", "failed")
    for number in range(2):
        assert cli("logs", "torch", "--job", str(number)) == (0, f"rank {number} of 2: 21\n")

    server.submit(
        "breaks", ["if [ $DSTACK_NODE_RANK = 1 ]; then exit 3; fi; sleep 1000"], nodes=2, fleets=["onprem"]
    )
    broken = server.wait_run("breaks", "done", "failed")
    assert (broken["status"], broken["termination_reason"]) == ("failed", "job_failed")
    assert statuses(broken) == ["terminated", "failed"]
    wait_idle(server, 2)


def test_containers_on_two_hosts_reach_each_other(cli: Cli, ssh_network: SSHNetwork) -> None:
    server, hosts = cli.server, [ssh_network.add(), ssh_network.add()]
    for host in hosts:
        host.start_docker(import_image=import_openssh)
    make_cluster(server, ssh_network)
    run = (
        "if [ $DSTACK_NODE_RANK != 0 ]; then exec sleep 1000; fi; "
        "while read address; do ssh -n $address 'echo node $DSTACK_NODE_RANK: $(hostname)'; done "
        "< $DSTACK_MPI_HOSTFILE"
    )
    server.submit(
        "far", [run], nodes=2, image=OPENSSH_IMAGE, fleets=["onprem"], stop_duration="1s", **MASTER_RUNS_ALL
    )
    server.wait_run("far", "done", "failed")
    assert cli("logs", "far") == (0, "".join(f"node {rank}: {host.name}\n" for rank, host in enumerate(hosts)))
    assert "PRIVATE KEY" not in str(server.run("far"))
    for job in server.run("far")["jobs"]:
        assert job["job_submissions"][-1]["job_runtime_data"]["network_mode"] == "host"


def test_two_nodes_wait_for_two_free_hosts_and_hold_none_meanwhile(cli: Cli, ssh_network: SSHNetwork) -> None:
    server = cli.server
    make_cluster(server, ssh_network)
    server.submit("busy", ["sleep 1000"], fleets=["onprem"])
    server.wait_run("busy", "running")
    retry = {"on_events": ["no-capacity"], "duration": "1h"}
    server.submit("pair", ["true"], nodes=2, fleets=["onprem"], retry=retry)

    def refused() -> bool:
        run = server.run("pair")
        return run["status"] in ("submitted", "pending") and "no capacity" in str(run).lower()

    wait_for("the pair to have been tried", refused)
    assert sorted(one["busy_blocks"] for one in instances(server)) == [0, 1]
    server.submit("single", ["echo in between"], fleets=["onprem"])
    server.wait_run("single", "done")
    assert server.run("pair")["status"] in ("submitted", "pending")
    server.post("/api/project/main/runs/stop", {"runs_names": ["busy"], "abort": False})
    server.wait_run("pair", "done")
