"""What is derived from a recorded request is what the recorded answer has."""

import json
from pathlib import Path
from typing import Any

import pytest

from dstack.core.images import Images
from dstack.core.job_specs import effective_run_spec, join_commands, make_job_specs
from dstack.core.runs import RunSpec

CAPTURES = Path(__file__).parents[2] / "reference" / "captures"
SHELL_TEXT = 3
"""Where in the argv the redacted text of the shell stands."""


def load(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    capture = json.loads((CAPTURES / f"{name}.json").read_text())
    return capture["request"]["body"], capture["response"]["body"]


@pytest.mark.parametrize(
    "name",
    [
        "13-runs-get_plan.task",
        "16-runs-get_plan.dev-environment",
        "18-runs-get_plan.service",
        "36-runs-get_plan.offer",
    ],
)
def test_plan_has_the_recorded_specs(name: str) -> None:
    request, answer = load(name)
    recorded_key = answer["effective_run_spec"]["ssh_key_pub"]
    recorded_name = answer["effective_run_spec"]["run_name"]
    run_spec = RunSpec.model_validate(request["run_spec"])

    effective = effective_run_spec(run_spec, run_name=recorded_name, ssh_key_pub=recorded_key)
    assert effective.model_dump(mode="json") == answer["effective_run_spec"]

    recorded = answer["job_plans"][0]["job_spec"]
    run_name = recorded["job_name"].removesuffix("-0-0")
    specs = [
        spec.model_dump(mode="json") for spec in make_job_specs(effective, run_name=run_name, images=Images())
    ]
    assert len(specs) == len(answer["job_plans"])
    for spec in (specs[0], recorded):
        del spec["commands"][SHELL_TEXT:]
    assert specs[0] == recorded


def test_commands_in_the_background_are_grouped() -> None:
    assert join_commands(["a", "b &", "c"]) == "a && { b & } && c"


def test_each_node_is_a_job() -> None:
    mount = "v-${{ dstack.node_rank }}:/d"
    spec = RunSpec.model_validate(
        {
            "configuration": {
                "type": "task",
                "nodes": 3,
                "commands": ["a"],
                "volumes": [mount],
            }
        }
    )
    specs = make_job_specs(spec, run_name="t", images=Images())
    assert [job.job_name for job in specs] == ["t-0-0", "t-1-0", "t-2-0"]
    assert [job.volumes[0].model_dump()["name"] for job in specs if job.volumes] == [["v-0"], ["v-1"], ["v-2"]]
    assert all(job.requirements.multinode for job in specs)


def test_profile_fills_what_the_configuration_leaves_open() -> None:
    spec = RunSpec.model_validate(
        {
            "configuration": {"type": "task", "commands": ["a"], "max_price": 1},
            "profile": {"max_price": 2, "max_duration": "1h", "retry": True, "spot_policy": "auto"},
        }
    )
    job = make_job_specs(spec, run_name="t", images=Images())[0]
    assert (job.requirements.max_price, job.max_duration, job.requirements.spot) == (1, 3600, None)
    assert job.retry is not None
    assert job.retry.duration == 3600


@pytest.mark.parametrize(
    ("ide", "said"),
    [
        (None, ""),
        ("vscode", 'echo "Open in VS Code: vscode://vscode-remote/ssh-remote+$DSTACK_RUN_NAME$PWD" && '),
        ("zed", 'echo "Open in Zed: zed://ssh/$DSTACK_RUN_NAME$PWD" && '),
    ],
)
def test_a_dev_environment_says_where_it_is_opened(ide: str | None, said: str) -> None:
    configuration = {"type": "dev-environment", "ide": ide, "init": ["echo ready"]}
    spec = RunSpec.model_validate({"configuration": configuration})
    (job,) = make_job_specs(spec, run_name="dev", images=Images())
    assert job.commands[-1] == f"echo ready && {said}exec sleep infinity"


@pytest.mark.parametrize(
    ("asked", "image", "first"),
    [
        ({}, "reg.example/base:7-base-ubuntu26.04", "a"),
        ({"nvcc": True}, "reg.example/base:7-devel-ubuntu26.04", "a"),
        ({"docker": True}, "reg.example/dind:7", "start-dockerd && a"),
        ({"docker": True, "setup": ["b"]}, "reg.example/dind:7", "start-dockerd && b && a"),
        ({"image": "i"}, "i", "a"),
    ],
)
def test_the_image_of_a_job(asked: dict[str, Any], image: str, first: str) -> None:
    """And `docker: true` starts Docker in the job before anything else."""
    images = Images.of("reg.example/base", "7", "26.04", "reg.example/dind:7")
    spec = RunSpec.model_validate({"configuration": {"type": "task", "commands": ["a"], **asked}})
    (job,) = make_job_specs(spec, run_name="t", images=images)
    assert (job.image_name, job.commands[-1], job.privileged) == (image, first, "docker" in asked)


def test_each_group_of_a_service_says_whether_it_has_docker() -> None:
    plain_group = {"name": "plain", "replicas": 1, "commands": ["a"]}
    groups = [plain_group, {**plain_group, "name": "whale", "docker": True}]
    spec = RunSpec.model_validate({"configuration": {"type": "service", "port": 80, "groups": groups}})
    images = Images()
    plain, whale = (
        make_job_specs(spec, run_name="s", images=images, replica_group=name)[0] for name in ("plain", "whale")
    )
    assert (plain.image_name, plain.commands[-1]) == (images.base, "a")
    assert (whale.image_name, whale.commands[-1]) == (images.docker, "start-dockerd && a")
