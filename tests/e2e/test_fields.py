"""What a configuration file asks for is what its job finds, from `dstack apply` to the process."""

from __future__ import annotations

import os
import sys

import pytest
from tests.e2e.harness import Cli, wait_for

from dstack.agent.executors.cgroups import Cgroups

VERSION = "{}.{}".format(*sys.version_info[:2])
CONFIGURATION = """\
type: task
name: fields
python: "{version}"
env:
- KEY=${{{{ secrets.key }}}}
- FROM_HERE
- PRICE=$5
setup: [echo setup]
volumes: ["{data}:{mount}"]
working_dir: inside
shell: sh
commands:
- echo "$KEY $FROM_HERE $PRICE" ${{{{ run.args }}}}
- python -c 'import sys; print(*sys.version_info[:2], sep=".")'
- cat {mount}/text
- basename $PWD
- echo $DSTACK_NODES_NUM $DSTACK_NODE_RANK $DSTACK_RUN_NAME $DSTACK_REPO_ID $DSTACK_GPUS_NUM
- test $DSTACK_WORKING_DIR = $PWD && cat $DSTACK_MPI_HOSTFILE
- echo $DSTACK_MASTER_NODE_IP
"""


def test_a_task_finds_what_its_file_asks_for(cli: Cli) -> None:
    data, mount = cli.folder / "data", cli.folder / "mnt"
    data.mkdir()
    (data / "text").write_text("mounted\n")
    assert cli("secret", "set", "key", "s3cret")[0] == 0
    cli.write(CONFIGURATION.format(version=VERSION, data=data, mount=mount))
    status, out = cli("apply", "-y", "--", "one two", "three")
    assert status == 0, out
    assert cli.server.log("fields").decode().splitlines() == [
        "setup",
        "s3cret passed on $5 one two three",
        VERSION,
        "mounted",
        "inside",
        "1 0 fields none 0",
        "127.0.0.1",
        "127.0.0.1",
    ]
    wait_for("the link to be removed", lambda: not os.path.lexists(mount))


def test_what_can_never_run_is_refused_before_it_is_submitted(cli: Cli) -> None:
    for field, says in (
        ("commands: ['echo ${{ secrets.key }}']", "secrets are not filled in"),
        ("commands: [a]\ndstack: true", "gives jobs no access to itself"),
        ("commands: [a]\nschedule: {cron: '0 0 30 2 *'}", "never comes"),
    ):
        cli.write(f"type: task\nname: never\n{field}\n")
        status, out = cli("apply", "-y")
        assert (status, says in out.replace("\n", " ")) == (1, True), out
    assert cli("ps", "-a")[1].count("never") == 0


def test_a_job_that_does_not_heed_is_given_as_long_as_it_asks_for(cli: Cli) -> None:
    cli.write(
        "type: task\nname: deaf\nstop_duration: 1s\n"
        "commands: [\"trap 'echo asked' INT; echo up; while true; do sleep 0.1; done\"]\n"
    )
    assert cli("apply", "-y", "-d")[0] == 0
    wait_for("its output", lambda: cli.server.log("deaf") == b"up\n")
    assert cli("stop", "deaf", "-y")[0] == 0
    cli.server.wait_run("deaf", "terminated")
    assert cli.server.log("deaf").startswith(b"up\nasked\n")


def test_a_job_gets_no_more_memory_than_its_file_asks_for_at_most(cli: Cli) -> None:
    if why := Cgroups("end2end").error:
        pytest.skip(why)
    cli.write(
        "type: task\nname: greedy\nresources: {cpu: 1.., memory: 0.05GB..0.0625GB, disk: 0.1GB..}\n"
        f"commands: [\"{sys.executable} -c 'print(len(200 * 2**20 * bytes([1])))'\"]\n"
    )
    out = cli("apply", "-y")[1]
    assert "exited (137) (killed because it used more memory than it may (64MB))" in out
