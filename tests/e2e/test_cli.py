"""The command line against a real server: processes, the local backend, whole output compared."""

from __future__ import annotations

import re
import sys
import urllib.error
import urllib.request

import pytest
from tests.e2e.harness import TOKEN, Cli, wait_for

SMALL = 'resources: {cpu: "1..", memory: 0.1GB.., disk: 0.1GB..}\n'


def _plan(kind: str) -> str:
    return (
        " Project      main\n"
        " User         admin\n"
        f" Type         {kind}\n"
        " Resources    cpu=1.. mem=0.1GB.. disk=0.1GB..\n"
        " Spot policy  on-demand\n"
        " Max price    off\n"
        "\n"
    )


def _after_offers(out: str) -> list[str]:
    """The lines after the table of offers, without those that tell how the run is coming up."""
    lines = out.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("1 "))
    return [
        line
        for line in lines[start + 1 :]
        if not re.fullmatch(r"[a-z]+: (submitted|provisioning|pulling|terminating)", line)
    ]


def test_a_task_from_plan_to_delete(cli: Cli) -> None:
    cli.write(
        "type: task\nname: hello\nenv: [FROM_HERE]\n"
        f'commands: ["echo $FROM_HERE", "echo ${{{{ run.args }}}}"]\n{SMALL}'
    )
    status, out = cli("apply", "--", "an", "argument", stdin="y\n")
    assert status == 0, out
    assert out.startswith(_plan("task"))
    assert _after_offers(out.replace("Submit the run hello? [y/N]: ", "")) == [
        "passed on",
        "an argument",
        "hello: done",
    ]
    assert cli("logs", "hello") == (0, "passed on\nan argument\n")
    status, out = cli("ps", "-a")
    assert [line.split()[0] for line in out.splitlines()] == ["NAME", "hello"]
    assert " done " in out
    assert cli("stop", "hello", "-y") == (0, "Run hello is already over (done).\n")
    assert cli("delete", "-y") == (0, "Deleted the run hello.\n")
    assert cli("logs", "hello")[0] == 1


def test_a_failing_task_says_why(cli: Cli) -> None:
    cli.write(f"type: task\nname: bad\ncommands: [no-such-command-at-all]\n{SMALL}")
    status, out = cli("apply", "-y")
    assert status == 1
    assert "no-such-command-at-all" in out
    assert out.splitlines()[-1].startswith("bad: exited (127)")


def test_detached_followed_and_stopped(cli: Cli) -> None:
    cli.write(f"type: task\nname: long\ncommands: [echo started, sleep 1000]\n{SMALL}")
    status, out = cli("apply", "-y", "-d")
    assert status == 0, out
    assert _after_offers(out) == ["The run long is submitted; see it with `dstack ps` and `dstack logs -f long`."]
    follower = cli.start("logs", "-f", "long")
    assert follower.stdout is not None
    assert follower.stdout.readline() == "started\n"
    status, out = cli("ps")
    assert re.search(r"^long +local +\$0 +running ", out, re.MULTILINE), out
    status, out = cli("apply", "-y")
    assert _after_offers(out) == [
        "The run long is active and nothing has changed. Pass --force to stop it and submit it again."
    ]
    assert cli("delete", "-y")[0] == 1
    assert cli("stop", "long", "-y") == (0, "Stopping long.\n")
    assert follower.communicate(timeout=60)[0] == ""
    assert follower.returncode == 0
    wait_for("the run to end", lambda: "stopped" in cli("ps", "-a")[1])


def test_a_service_is_published(cli: Cli) -> None:
    cli.write(
        "type: service\nname: web\nport: 8123\n"
        f"commands: [{sys.executable} -m http.server 8123 --bind 127.0.0.1]\n{SMALL}"
    )
    process = cli.start("apply", "-y")
    assert process.stdout is not None
    line = next(line for line in iter(process.stdout.readline, "") if line.startswith("Service: "))
    url = line.removeprefix("Service: ").strip()
    assert url == f"{cli.server.url}/proxy/services/main/web/"
    wait_for("the service", lambda: _status(url, {"Authorization": f"Bearer {TOKEN}"}) == 200)
    assert _status(url, {}) in (401, 403)
    assert cli("stop", "web", "-y")[0] == 0
    process.communicate(timeout=60)
    assert process.returncode == 1


def _status(url: str, headers: dict[str, str]) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("type: task\ncomands: [a]\n", ".dstack.yml:2: unknown field 'comands'; did you mean 'commands'?"),
        ("type: task\ncommands: [a\n", ".dstack.yml:3: this is not valid YAML: "),
        ("type: task\nname: Bad_Name\ncommands: [a]\n", "'Bad_Name' is not a valid run name"),
    ],
)
def test_mistakes_are_told_in_a_line(cli: Cli, text: str, message: str) -> None:
    cli.write(text)
    status, out = cli("apply", "-y")
    assert status == 1
    assert any(line.startswith(message) for line in out.splitlines())
    assert "Traceback" not in out


def test_unknown_names_and_bad_tokens_are_told_in_a_line(cli: Cli) -> None:
    for argv in (
        ("ps", "--project", "nope"),
        ("logs", "nope"),
        ("stop", "nope", "-y"),
        ("secret", "get", "nope"),
        ("fleet", "delete", "nope", "-y"),
        ("project", "add", "--name", "nope", "--url", cli.server.url, "--token", TOKEN),
        ("project", "add", "--name", "main", "--url", cli.server.url, "--token", "bad", "-y"),
    ):
        status, out = cli(*argv)
        assert (status, len(out.splitlines())) == (1, 1), out


def test_a_fleet_and_offers(cli: Cli) -> None:
    status, out = cli("fleet")
    assert status == 0, out
    assert [line.split()[0] for line in out.splitlines()][:2] == ["NAME", "local"]
    status, out = cli("offer", "--cpu", "1..", "--memory", "0.1..")
    assert status == 0
    assert re.search(r"^1 +local +RESOURCES +local +\$0$", out, re.MULTILINE), out


def test_metrics_of_a_running_task(cli: Cli) -> None:
    cli.write(f'type: task\nname: busy\ncommands: ["while :; do :; done"]\n{SMALL}')
    assert cli("apply", "-y", "-d")[0] == 0
    status, out = cli("metrics", "busy")
    assert (status, out.splitlines()[0].split()) == (0, ["JOB", "UTILIZATION", "MEMORY"])
    shown = re.compile(r"^busy-0-0 +cpu +[▁▂▃▄▅▆▇█]+ \d+% +[▁▂▃▄▅▆▇█]+ [\d.]+MB/[\d.]+[MG]B$", re.MULTILINE)
    wait_for("two measurements", lambda: shown.search(cli("metrics", "busy")[1]), timeout=60)
    assert cli("metrics", "busy", "--replica", "7") == (1, "The run busy has no replica 7\n")
    assert cli("metrics", "nope") == (1, "Run nope does not exist\n")
    assert cli("stop", "busy", "-y")[0] == 0
