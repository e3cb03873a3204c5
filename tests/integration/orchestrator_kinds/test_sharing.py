"""Jobs that share this machine: who gets which GPU, and how the nodes of a replica tell each other apart."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.integration.orchestrator_kinds.conftest import Control, end_agents

from dstack.server.db.engine import Database

TOOL = """#!/bin/sh
echo "GPU-a, NVIDIA GeForce RTX 4090, 24564, 550.54"
echo "GPU-b, NVIDIA GeForce RTX 4090, 24564, 550.54"
"""
SHOW = "echo gpu=$CUDA_VISIBLE_DEVICES of $DSTACK_GPUS_PER_NODE"


@pytest.fixture
async def gpus(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Control]:
    """A machine whose `nvidia-smi` tells of two GPUs, as the real one writes it."""
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(TOOL)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    control = Control(database, tmp_path, {"type": "local"})
    await control.start()
    yield control
    await control.stop()
    end_agents(tmp_path)


async def test_a_gpu_belongs_to_one_job_at_a_time(gpus: Control) -> None:
    await gpus.prepare()
    wait, retry = f"{SHOW}; until [ -e {gpus.folder}/go ]; do sleep 0.05; done", {"on_events": ["no-capacity"]}
    ids = {}
    for name in ("one", "two", "three"):
        ids[name] = await gpus.submit(name, commands=[wait], resources={"gpu": "RTX4090:1"}, retry=retry)
        if name != "three":
            await gpus.until_status(ids[name], "running")
    none = await gpus.submit("none", commands=[SHOW])
    assert (await gpus.until_status(none, "done", "failed")).status == "done"

    async def waits() -> bool:
        return "is busy" in ((await gpus.jobs(ids["three"]))[0].capacity_error or "")

    await gpus.until(waits, "the third to be told that there is no GPU for it now")
    (gpus.folder / "go").touch()
    for run_id in ids.values():
        assert (await gpus.until_status(run_id, "done", "failed")).status == "done"
    said = {}
    for name, run_id in [*ids.items(), ("none", none)]:
        [job] = await gpus.jobs(run_id)
        said[name] = (await gpus.output(name, job.id)).strip()
    assert {said["one"], said["two"]} == {"gpu=GPU-a of 1", "gpu=GPU-b of 1"}
    assert said["three"] in (said["one"], said["two"])
    assert said["none"] == "gpu= of 0"


async def test_more_gpus_than_there_are_is_told(gpus: Control) -> None:
    await gpus.prepare()
    run_id = await gpus.submit("many", commands=["true"], resources={"gpu": 3})
    await gpus.until_status(run_id, "failed")
    [job] = await gpus.jobs(run_id)
    assert "has 2 GPUs, needed are 3" in (job.termination_reason_message or "")


async def test_nodes_on_one_machine_have_addresses_of_their_own(gpus: Control) -> None:
    await gpus.prepare()
    command = (
        "echo $DSTACK_NODE_RANK/$DSTACK_NODES_NUM; echo $DSTACK_NODES_IPS; echo $DSTACK_MASTER_NODE_IP;"
        " cat $DSTACK_MPI_HOSTFILE; echo $DSTACK_GPUS_NUM; echo $CUDA_VISIBLE_DEVICES"
    )
    run_id = await gpus.submit("nodes", nodes=2, commands=[command], resources={"gpu": 1})
    assert (await gpus.until_status(run_id, "done", "failed")).status == "done"
    told = [(await gpus.output("nodes", job.id)).split("\n") for job in await gpus.jobs(run_id)]
    first, second = told
    addresses = first[1].split()
    assert first[0] == "0/2"
    assert second[0] == "1/2"
    assert len(set(addresses)) == 2
    assert all(address.startswith("127.") for address in addresses)
    hostfile = [f"{address} slots=1" for address in addresses]
    assert first[1:6] == [" ".join(addresses), addresses[0], *hostfile, "2"]
    assert second[1:6] == first[1:6]
    assert {first[6], second[6]} == {"GPU-a", "GPU-b"}


TALK = """
import os, socket, time
address = (os.environ["DSTACK_MASTER_NODE_IP"], PORT)
if os.environ["DSTACK_NODE_RANK"] == "0":
    print(socket.create_server(address).accept()[0].recv(9))
else:
    while True:
        try:
            socket.create_connection(address).sendall(b"hello")
            break
        except ConnectionRefusedError:
            time.sleep(0.05)
"""


async def test_nodes_reach_each_other_by_their_addresses(gpus: Control, free_port: int) -> None:
    await gpus.prepare()
    (gpus.folder / "talk.py").write_text(TALK.replace("PORT", str(free_port)))
    run_id = await gpus.submit("talk", nodes=2, commands=[f"python3 {gpus.folder}/talk.py"])
    assert (await gpus.until_status(run_id, "done", "failed")).status == "done"
    master, _ = await gpus.jobs(run_id)
    assert await gpus.output("talk", master.id) == "b'hello'\n"
