"""Where a job's working directory, repository and files are, as a process and in a container."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from dstack.agent.protocol import TaskSpec
from dstack.core.images import Images
from dstack.core.job_specs import make_job_specs
from dstack.core.runs import RunSpec
from dstack.server.planning.tasks import CannotRun, Host, Node, TaskContext, make_task

PROCESS, CONTAINER = Host("local", ("process", "container")), Host("aws", ("container",))
REMOTE = {"repo_type": "remote", "repo_name": "code", "repo_branch": "main", "repo_hash": "f" * 40}


def task(host: Host, *, clone_url: str | None = "https://host/code.git", **fields: Any) -> TaskSpec:
    working_dir = {"working_dir": fields.pop("working_dir")} if "working_dir" in fields else {}
    configuration = {"type": "task", "commands": ["true"], **working_dir}
    spec = RunSpec.model_validate({"run_name": "r", "configuration": configuration, **fields})
    job = make_job_specs(spec, run_name="r", images=Images())[0]
    ids = {"job_id": uuid.uuid4(), "run_id": uuid.uuid4(), "run_name": "r", "project_name": "p"}
    nodes = (Node("10.0.0.1", 8), Node("10.0.0.2"))
    context = TaskContext(**ids, repo_name=None, spec=job, nodes=nodes, secrets={}, clone_url=clone_url)  # type: ignore[arg-type]
    return make_task(context, host, Images())


@pytest.mark.parametrize(
    ("fields", "process", "container"),
    [({}, (None, "."), ("/workflow", "/workflow")),
     ({"repo_dir": "."}, (None, "."), ("/workflow", "/workflow")),
     ({"repo_dir": "code"}, (None, "code"), ("/workflow/code", "/workflow/code")),
     ({"repo_dir": "/repo"}, ("/repo", "/repo"), ("/repo", "/repo")),
     ({"repo_dir": "~/code"}, ("~/code", "~/code"), ("/root/code", "/root/code")),
     ({"working_dir": "/work"}, ("/work", "."), ("/work", "/workflow")),
     ({"working_dir": "/work", "repo_dir": "."}, ("/work", "."), ("/work", "/work")),
     ({"working_dir": "sub", "repo_dir": "code"}, ("sub", "code"), ("/workflow/sub", "/workflow/sub/code"))],
)  # fmt: skip
def test_directories(fields: dict[str, Any], process: tuple[str | None, str], container: tuple[str, str]) -> None:
    made = task(PROCESS, **fields)
    assert (made.working_dir, made.repo_dir) == process
    made = task(CONTAINER, **fields)
    assert (made.working_dir, made.repo_dir) == container
    assert (made.env["DSTACK_WORKING_DIR"], made.env["DSTACK_REPO_DIR"]) == container


def test_the_nodes_are_listed_for_mpi() -> None:
    assert task(CONTAINER).hostfile == "10.0.0.1 slots=8\n10.0.0.2\n"


def test_the_repository_is_told_without_credentials() -> None:
    repo = task(PROCESS, repo_data=REMOTE, repo_id="code", repo_code_hash="a" * 64).repo
    assert repo is not None
    assert (repo["branch"], repo["hash"], repo["diff"]) == ("main", "f" * 40, "repo-diff")
    assert (repo["credentials"], repo["single_branch"], repo["if_exists"]) == ("", True, "error")


def test_a_repository_without_a_place_to_clone_from_is_refused() -> None:
    with pytest.raises(CannotRun, match="dstack init"):
        task(PROCESS, clone_url=None, repo_data=REMOTE, repo_id="code")
