"""`dstack apply` against recorded answers."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from tests.integration.cli.conftest import Cli
from tests.integration.cli.replay import Answer, Lines, ReplayServer, load_capture, recorded

PROJECT = "/api/project/main"
TASK = """\
type: task
name: t1
python: "3.12"
env: [A=1]
commands: [echo hello]
ports: [8080]
files: ["/{folder}/x:data.txt"]
"""


@pytest.fixture
def task(tmp_path: Path) -> Path:
    (tmp_path / "x").write_text("data\n")
    file = tmp_path / "task.dstack.yml"
    file.write_text(TASK.format(folder=str(tmp_path).lstrip("/")))
    return file


@pytest.fixture
def planned(server: ReplayServer) -> ReplayServer:
    """It plans a job without ports, so that tests that run at once do not take them from one another."""
    server.replay("11", "12", "13", "14")
    status, plan = recorded("13")
    server.on(f"{PROJECT}/runs/get_plan", (status, plan | {"job_plans": _without_ports(plan["job_plans"])}))
    return server


def _without_ports(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [job | {"job_spec": job["job_spec"] | {"app_specs": []}} for job in jobs]


def _run(status: str, **fields: Any) -> dict[str, Any]:
    run: dict[str, Any] = recorded("14")[1]
    submission = run["latest_job_submission"] | {"status": status, "status_message": status}
    [job] = _without_ports(run["jobs"])
    job |= {"job_submissions": [submission]}
    return (
        run
        | {"status": status, "status_message": status, "jobs": [job], "latest_job_submission": submission}
        | fields
    )


def _log(text: str) -> dict[str, str]:
    message = base64.b64encode(text.encode()).decode()
    return {"timestamp": "2026-11-22T10:00:00Z", "log_source": "stdout", "message": message}


def _without_paths(spec: dict[str, Any]) -> dict[str, Any]:
    configuration = {key: value for key, value in spec["configuration"].items() if key != "files"}
    return spec | {"configuration": configuration}


def test_requests_are_the_recorded_ones(cli: Cli, planned: ReplayServer, task: Path) -> None:
    status, out = cli("apply", "-f", str(task), "-y", "-d")
    assert status == 0, out
    assert planned.bodies(f"{PROJECT}/repos/init") == [load_capture("11")["request"]["body"]]
    [sent] = planned.bodies(f"{PROJECT}/runs/get_plan")
    expected = load_capture("13")["request"]["body"]
    assert _without_paths(sent["run_spec"]) == _without_paths(expected["run_spec"])
    assert sent | {"run_spec": None} == expected | {"run_spec": None}
    [applied] = planned.bodies(f"{PROJECT}/runs/apply")
    assert applied == {"plan": {"run_spec": sent["run_spec"], "current_resource": None}, "force": False}


def test_the_whole_output_of_a_detached_run(cli: Cli, planned: ReplayServer, task: Path) -> None:
    assert cli("apply", "-f", str(task), "-y", "-d") == (
        0,
        " Project      main\n"
        " User         admin\n"
        " Type         task\n"
        " Resources    cpu=2.. mem=8GB.. disk=100GB..\n"
        " Spot policy  on-demand\n"
        " Max price    off\n"
        "\n"
        "No offers: nothing that this project can use has these resources now.\n"
        "The run t1 is submitted; see it with `dstack ps` and `dstack logs -f t1`.\n",
    )


def test_no_is_an_answer(cli: Cli, planned: ReplayServer, task: Path) -> None:
    status, out = cli("apply", "-f", str(task), stdin="n\n")
    assert status == 0
    assert out.endswith("Submit the run t1? [y/N]: ")
    assert planned.bodies(f"{PROJECT}/runs/apply") == []


@pytest.mark.parametrize(("ending", "status", "last"), [("done", 0, "t1: done"), ("failed", 1, "t1: failed")])
def test_b13_it_follows_the_streams(
    cli: Cli, planned: ReplayServer, task: Path, ending: str, status: int, last: str
) -> None:
    watch = [Lines([{"type": "ping"}, {"type": "run", "run": _run(each)}]) for each in ("running", ending)]
    planned.on(f"{PROJECT}/runs/watch", *((200, lines) for lines in watch))
    planned.on(f"{PROJECT}/logs/follow", (200, Lines([_log("hello\n"), {"type": "end"}])))
    result, out = cli("apply", "-f", str(task), "-y")
    assert result == status
    assert out.splitlines()[-1].startswith(last)
    assert out.splitlines()[-2] == "hello"


def test_b13_it_polls_servers_without_streams(
    cli: Cli, planned: ReplayServer, task: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dstack.cli.following.FAST_INTERVAL", 0)
    monkeypatch.setattr("dstack.cli.following.LOG_INTERVAL", 0)
    runs: list[Answer] = [(200, _run(status)) for status in ("submitted", "running", "done", "done")]
    planned.on(f"{PROJECT}/runs/get", *runs)
    page = {"logs": [_log("hello\n")], "external_url": None, "next_token": None}
    empty = page | {"logs": []}
    planned.on(f"{PROJECT}/logs/poll", (200, page), (200, empty))
    result, out = cli("apply", "-f", str(task), "-y")
    assert (result, out.splitlines()[-3:]) == (0, ["t1: submitted", "hello", "t1: done"])


def _active_plan(action: str, **configuration: Any) -> Answer:
    status, plan = recorded("13")
    run = _run("running", run_spec=plan["effective_run_spec"])
    spec = plan["effective_run_spec"]
    spec = spec | {"configuration": spec["configuration"] | configuration}
    return status, plan | {"current_resource": run, "effective_run_spec": spec, "action": action}


def test_nothing_changed_sends_nothing(cli: Cli, planned: ReplayServer, task: Path) -> None:
    planned.on(f"{PROJECT}/runs/get_plan", _active_plan("update"))
    status, out = cli("apply", "-f", str(task), "-y")
    assert status == 0
    assert out.splitlines()[-1] == (
        "The run t1 is active and nothing has changed. Pass --force to stop it and submit it again."
    )
    assert planned.bodies(f"{PROJECT}/runs/apply") == []


def test_an_update_in_place_does_not_stop(cli: Cli, planned: ReplayServer, task: Path) -> None:
    planned.on(f"{PROJECT}/runs/get_plan", _active_plan("update", priority=7))
    status, out = cli("apply", "-f", str(task), "-y", "-d")
    assert status == 0, out
    assert "The run t1 is active. What changes:\n  priority: 0 -> 7\n" in out
    [applied] = planned.bodies(f"{PROJECT}/runs/apply")
    assert applied["plan"]["current_resource"]["status"] == "running"
    assert "job_connection_info" not in applied["plan"]["current_resource"]["jobs"][0]


def test_other_changes_stop_the_run_first(cli: Cli, planned: ReplayServer, task: Path) -> None:
    planned.on(f"{PROJECT}/runs/get_plan", _active_plan("create", commands=["other"]))
    planned.on(f"{PROJECT}/runs/stop", (200, None))
    planned.on(f"{PROJECT}/runs/get", (200, _run("terminated")))
    status, out = cli("apply", "-f", str(task), "-d", stdin="y\n")
    assert status == 0, out
    assert "  commands: ['echo hello'] -> ['other']\n" in out
    assert planned.bodies(f"{PROJECT}/runs/stop") == [{"runs_names": ["t1"], "abort": False}]
    [applied] = planned.bodies(f"{PROJECT}/runs/apply")
    assert applied["plan"]["current_resource"] is None


def test_arguments_variables_and_flags(
    cli: Cli, planned: ReplayServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FROM_HERE", "value")
    file = tmp_path / ".dstack.yml"
    file.write_text("type: task\nenv: [FROM_HERE]\ncommands: ['train ${{ run.args }} $${{ secrets.x }}']\n")
    flags = ["-n", "other", "-e", "B=2", "--gpu", "H100:2", "--memory", "64GB..", "-b", "aws", "--spot", "--retry"]
    status, out = cli("apply", "-y", "-d", *flags, "--", "--lr", "a b")
    assert status == 0, out
    [sent] = planned.bodies(f"{PROJECT}/runs/get_plan")
    configuration = sent["run_spec"]["configuration"]
    assert configuration["commands"] == ["train --lr 'a b' $${{ secrets.x }}"]
    assert configuration["env"] == {"FROM_HERE": "value", "B": "2"}
    assert (sent["run_spec"]["run_name"], sent["run_spec"]["configuration_path"]) == ("other", ".dstack.yml")
    assert configuration["resources"]["gpu"]["name"] == ["H100"]
    assert configuration["resources"]["memory"] == {"min": 64.0, "max": None}
    assert (configuration["backends"], configuration["spot_policy"], configuration["retry"]) == (
        ["aws"],
        "spot",
        True,
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("type: task\ncomands: [a]\n", ".dstack.yml:2: unknown field 'comands'; did you mean 'commands'?"),
        ("type: task\ncommands: [a\n", ".dstack.yml:3: this is not valid YAML"),
        ("type: tusk\n", ".dstack.yml:1: 'type' is 'tusk'; it must be one of"),
        ("[1]", ".dstack.yml: a configuration is a map of fields"),
        ("type: task\ncommands: [a]\nenv: [NOT_SET_HERE]\n", "The variable NOT_SET_HERE is not set"),
        ("type: task\ncommands: [a]\nfiles: [nope]\n", "'files' names nope, but there is no"),
    ],
)
def test_mistakes_in_the_file(cli: Cli, server: ReplayServer, tmp_path: Path, text: str, message: str) -> None:
    server.replay("11")
    (tmp_path / ".dstack.yml").write_text(text)
    status, out = cli("apply", "-y")
    assert status == 1
    assert out.startswith(message)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["-f", "nope.yml"], "nope.yml cannot be read: No such file or directory\n"),
        ([], "There is no .dstack.yml in this folder: name a configuration with -f\n"),
        (["-f", "-"], "A configuration from stdin leaves nobody to answer: pass -y to agree beforehand\n"),
    ],
)
def test_no_file(cli: Cli, argv: list[str], message: str) -> None:
    assert cli("apply", *argv) == (1, message)


def test_flags_that_do_not_fit_the_type(cli: Cli) -> None:
    text = "type: service\nname: s\nport: 80\ncommands: [a]\n"
    assert cli("apply", "-f", "-", "-y", "-p", "80", stdin=text) == (
        1,
        "--port means nothing for a service: see `dstack apply -h service`\n",
    )


def test_without_an_ssh_client_nothing_is_submitted(
    cli: Cli, planned: ReplayServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned.replay("16")
    monkeypatch.setenv("DSTACK_SSH_CLIENT", "/nowhere/ssh")
    (tmp_path / "dev.dstack.yml").write_text("type: dev-environment\nname: d1\nide: vscode\n")
    status, out = cli("apply", "-f", "dev.dstack.yml", "-y")
    assert (status, out.splitlines()[-1]) == (
        1,
        "There is no SSH client /nowhere/ssh (from DSTACK_SSH_CLIENT): install OpenSSH,"
        " or name it in DSTACK_SSH_CLIENT",
    )
    assert planned.bodies(f"{PROJECT}/runs/apply") == []


def test_what_the_server_refuses(cli: Cli, planned: ReplayServer, task: Path) -> None:
    planned.on(f"{PROJECT}/runs/apply", recorded("20"))
    status, out = cli("apply", "-f", str(task), "-y")
    assert (status, out.splitlines()[-1]) == (1, "<text>")


def test_a_fleet(cli: Cli, server: ReplayServer, tmp_path: Path) -> None:
    server.replay("07", "08")
    (tmp_path / "fleet.dstack.yml").write_text("type: fleet\nname: f1\nnodes: 0..2\n")
    status, out = cli("apply", "-f", "fleet.dstack.yml", "-y", "-d")
    assert status == 0, out
    assert server.bodies(f"{PROJECT}/fleets/get_plan") == [load_capture("07")["request"]["body"]]
    [applied] = server.bodies(f"{PROJECT}/fleets/apply")
    assert applied["plan"]["current_resource"] is None
    assert out.splitlines()[-1] == "Fleet f1 is submitted."
