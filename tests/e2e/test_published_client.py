"""The published client, unmodified, against our server: each scenario of the compatibility page.

What is compared is what a person or a script would miss: exit statuses, names, statuses, columns, the effect.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from tests.e2e.harness import TOKEN, ServerProcess, end_processes_of, unique, wait_for
from tests.e2e.published import VERSION, PublishedClient, install
from tests.e2e.test_cli import SMALL
from tests.fixtures.git import Origin
from tests.fixtures.ports import take_free_port
from tests.fixtures.sshd import SshServer

pytestmark = pytest.mark.xdist_group("published")


@pytest.fixture(scope="module")
def path(ssh_folder: Path) -> str:
    """PATH of the server, and of whoever answers yes to host keys that are new."""
    return f"{ssh_folder}:{os.environ['PATH']}"


@pytest.fixture(scope="module")
def unattended(unattended_ssh_folder: Path) -> str:
    """PATH of the client."""
    return f"{unattended_ssh_folder}:{os.environ['PATH']}"


@pytest.fixture(scope="module")
def server(path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One for all scenarios, with its local fleet."""
    made = ServerProcess(tmp_path_factory.mktemp("server"), env={"PATH": path, "DSTACK_SERVER_SSH_PORT": "0"})
    try:
        yield made.start()
    finally:
        made.end()
        end_processes_of(made.home)


@pytest.fixture(scope="module")
def dstack(server: ServerProcess, unattended: str) -> Iterator[PublishedClient]:
    """The published command line, whose default project is the server's."""
    install()
    home = tempfile.mkdtemp(prefix="pc-")  # short: a socket below it has room for 107 bytes
    try:
        with PublishedClient(Path(home), env={"PATH": unattended}).started() as client:
            client.login(server)
            yield client
    finally:
        shutil.rmtree(home, ignore_errors=True)


def task(dstack: PublishedClient, *commands: str, name: str | None = None, rest: str = "") -> str:
    """Writes a task to `.dstack.yml`; its name."""
    name = name or unique("task")
    dstack.write(".dstack.yml", f"type: task\nname: {name}\ncommands: {json.dumps(commands)}\n{SMALL}{rest}")
    return name


def row(out: str, name: str) -> list[str]:
    """The words of the table's row that begins with the name."""
    return next((line.split() for line in out.splitlines() if line.split()[0] == name), [])


def ended(dstack: PublishedClient, name: str) -> str:
    """Waits until the run has ended; the words of its status."""

    def status() -> str | None:
        run = json.loads(dstack("run", "get", name, "--json").out)
        return str(run["status"]) if run["termination_reason"] and run["status"] != "terminating" else None

    found = wait_for(f"{name} to end", status)
    assert found is not None
    return found


def ssh(dstack: PublishedClient, name: str, command: str) -> str:
    """What a command in an attached run prints."""
    argv = ["ssh", "-F", str(dstack.home / ".dstack/ssh/config"), name, command]
    ran = subprocess.run(argv, env=dstack.environment(), capture_output=True, text=True, timeout=60)
    if ran.returncode != 0:
        raise OSError(ran.stderr)
    return ran.stdout.strip()


def get(port: int, target: str) -> int:
    """The status of a request to this machine."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    with contextlib.closing(connection):
        connection.request("GET", target)
        return connection.getresponse().status


def test_version(dstack: PublishedClient) -> None:
    command = dstack.start("--version", terminal=True)  # as a process of its own, not forked
    assert command.wait() == (0, VERSION)


def test_project_add_list_set_default_delete(server: ServerProcess, dstack: PublishedClient) -> None:
    server.post("/api/projects/create", {"project_name": "second", "is_public": False})
    added = ("project", "add", "--url", server.url, "--token")
    for refused in (
        dstack(*added, "wrong", "--name", "second", "-n"),
        dstack(*added, TOKEN, "--name", "nope", "-n"),
    ):
        assert (refused.status, len(refused.lines)) == (1, 1), refused.out
    assert row(dstack("project", "list").out, "second") == []
    assert dstack(*added, TOKEN, "--name", "second", "-n").status == 0
    listed = dstack("project", "list", "-v").out
    assert (row(listed, "second"), row(listed, "main")[:3]) == (
        ["second", server.url, "admin"],
        ["main", server.url, "admin"],
    )
    assert dstack("project", "set-default", "second").status == 0
    assert len(row(dstack("project").out, "second")) == 3
    assert dstack("project", "set-default", "main").status == 0
    assert dstack("project", "delete", "--name", "second", "-y").status == 0
    assert row(dstack("project").out, "second") == []


def test_environment_variables(server: ServerProcess, dstack: PublishedClient) -> None:
    assert dstack("ps", env={"DSTACK_PROJECT": "nope"}).status == 1
    away = {
        "DSTACK_SERVER_URL": server.url,
        "DSTACK_TOKEN": TOKEN,
        "DSTACK_PROJECT": "main",
        "HOME": str(dstack.work),
    }
    assert "local" in dstack("fleet", env=away).out
    refused = dstack("fleet", env={**away, "DSTACK_TOKEN": "wrong"})
    assert (refused.status, len(refused.lines)) == (1, 1), refused.out
    assert dstack("ps", env={"DSTACK_CLIENT_API_VERSION": "0.21.0"}).status == 0
    newer = dstack("ps", env={"DSTACK_CLIENT_API_VERSION": "0.99.0"})
    assert newer.status == 1
    assert "0.99.0" in newer.out


def test_init_and_a_repository(
    dstack: PublishedClient, path: str, origin: Origin, ssh_server: SshServer, tmp_path: Path
) -> None:
    origin.git("branch", "-q", "-u", "origin/main")
    origin.git("remote", "set-url", "origin", ssh_server.url(origin.bare))
    name = unique("repo")
    (origin.work / ".dstack.yml").write_text(
        f"type: task\nname: {name}\nrepos: [.]\ncommands: [cat README new, git branch --show-current]\n{SMALL}"
    )
    (origin.work / "new").write_text("not committed\n")
    run = partial(dstack, cwd=origin.work, env={"PATH": path})
    for refused in (run("init"), run("apply", "-y", "-d")):
        assert (refused.status, "credentials" in refused.out) == (1, True), refused.out
    assert run("init", "--git-identity", str(ssh_server.identity)).status == 0
    assert run("apply", "-y", "-d").status == 0
    assert ended(dstack, name) == "done"
    assert dstack("logs", name).lines == ["first", "not committed", "main"]
    assert run("init", "-P", str(tmp_path)).status == 1


def test_offer(dstack: PublishedClient) -> None:
    shown = dstack("offer", "--cpu", "1..", "--memory", "0.1..").out
    assert "# BACKEND RESOURCES INSTANCE TYPE PRICE" in shown
    assert row(shown, "1")[:3] == ["1", "ssh", "(local)"], shown
    answer = json.loads(dstack("offer", "--json", "--max-offers", "1").out)
    assert (answer["project"], len(answer["offers"])) == ("main", 1)
    grouped = json.loads(dstack("offer", "--group-by", "gpu,backend", "--json").out)
    assert grouped["group_by"] == ["gpu", "backend"]
    nothing = json.loads(dstack("offer", "--gpu", "H100", "--json").out)
    assert nothing["offers"] == []


def test_fleet(dstack: PublishedClient) -> None:
    name = unique("fleet")
    configuration = f"type: fleet\nname: {name}\nnodes: 0..1\nbackends: [remote]\n"
    dstack.write("fleet.dstack.yml", configuration)
    apply = ("apply", "-f", "fleet.dstack.yml", "-y")
    assert dstack(*apply, "-d").status == 0
    assert row(dstack("fleet").out, name)[1] == "0..1"
    again = dstack(*apply)
    assert (again.status, "No configuration changes" in again.out) == (0, True), again.out
    dstack.write("fleet.dstack.yml", configuration.replace("0..1", "0..2"))
    changed = dstack(*apply)
    assert (changed.status, "updated in-place" in changed.out) == (0, True), changed.out
    assert json.loads(dstack("fleet", "get", name, "--json").out)["spec"]["configuration"]["nodes"]["max"] == 2
    assert row(dstack("fleet", "list", "-v").out, name)[1] == "0..2"
    assert dstack("delete", "-f", "fleet.dstack.yml", "-y").status == 0
    for gone in (("get", name, "--json"), ("delete", name, "-y")):
        assert dstack("fleet", *gone).status == 1


def test_tasks_detached(server: ServerProcess, dstack: PublishedClient) -> None:
    name = task(dstack, "echo $GREETING ${{ run.args }}", rest="env: [GREETING]\n")
    submitted = dstack("apply", "-y", "-d", "--", "an argument", env={"GREETING": "hello"})
    assert (submitted.status, "detaching" in submitted.out) == (0, True), submitted.out
    assert ended(dstack, name) == "done"
    assert dstack("logs", name) == (0, "hello an argument")
    assert "exited (0)" in dstack("ps", "-a").out
    assert dstack("delete", "-y").status == 0
    assert dstack("logs", name).status == 1


def test_a_failed_task(dstack: PublishedClient) -> None:
    name = task(dstack, "echo before", "exit 3")
    assert dstack("apply", "-y", "-d").status == 0
    assert ended(dstack, name) == "failed"
    assert " ".join(row(dstack("ps", "-n", "20").out, name)).count("exited (3)") == 1
    assert dstack("logs", name).out.endswith("before")


def test_apply_again(server: ServerProcess, dstack: PublishedClient) -> None:
    name = task(dstack, "sleep 1000")
    assert dstack("apply", "-y", "-d").status == 0
    first = server.wait_run(name, "running")
    same = dstack("apply", "-y", "-d")
    assert (same.status, "Detected no changes" in same.out) == (0, True), same.out
    assert server.run(name)["deployment_num"] == 0
    task(dstack, "sleep 1000", name=name, rest="priority: 7\n")
    assert "updated in-place" in dstack("apply", "-y", "-d").out
    assert server.run(name)["run_spec"]["configuration"]["priority"] == 7
    assert server.run(name)["id"] == first["id"]
    task(dstack, "sleep 2000", name=name)
    replaced = dstack("apply", "-y", "-d")
    assert (replaced.status, "cannot be updated in-place" in replaced.out) == (0, True), replaced.out
    assert server.wait_run(name, "running")["id"] != first["id"]
    refused = dstack("delete", "-y")
    assert (refused.status, len(refused.lines)) == (1, 1), refused.out
    assert dstack("apply", "-d", stdin="n\n").status == 0
    assert dstack("stop", name, "-y").status == 0
    assert ended(dstack, name) == "terminated"
    assert "stopped" in " ".join(row(dstack("ps", "-a").out, name))


def test_service_detached(server: ServerProcess, dstack: PublishedClient) -> None:
    name = unique("web")
    service = f"type: service\nname: {name}\nport: 8137\nauth: false\nprobes: [{{type: http, interval: 1s}}]\n"
    service += f"commands: [python3 -m http.server 8137 --bind 127.0.0.1]\n{SMALL}"
    dstack.write("web.dstack.yml", service)
    apply = ("apply", "-f", "web.dstack.yml", "-y", "-d")
    assert dstack(*apply).status == 0
    wait_for("the service", lambda: server.call("GET", f"/proxy/services/main/{name}/"))
    assert "Detected no changes" in dstack(*apply).out
    assert dstack("stop", name, "-x", "-y").status == 0
    assert ended(dstack, name) == "terminated"
    assert dstack("delete", "-f", "web.dstack.yml", "-y").status == 0


def test_dev_environment_detached(server: ServerProcess, dstack: PublishedClient) -> None:
    name = unique("dev")
    dstack.write(
        "dev.dstack.yml", f"type: dev-environment\nname: {name}\nide: vscode\ninit: [echo ready]\n{SMALL}"
    )
    apply = ("apply", "-f", "dev.dstack.yml", "-y", "-d")
    assert dstack(*apply).status == 0
    server.wait_run(name, "running")
    assert "Detected no changes" in dstack(*apply).out
    wait_for("its log", lambda: "ready" in dstack("logs", name).out)
    assert dstack("stop", name, "-y").status == 0
    assert ended(dstack, name) == "terminated"


def test_attached_tasks(dstack: PublishedClient) -> None:
    task(dstack, "echo hello")
    short = dstack("apply", "-y")
    assert (short.status, short.lines[-2:]) == (0, ["hello", "Exited (0)"]), short.out
    task(dstack, "echo before", "exit 3")
    failed = dstack("apply", "-y")
    assert (failed.status, "Exited (3)" in failed.lines) == (1, True), failed.out
    name = task(dstack, "echo before", "while [ ! -e $HOME/go-on ]; do sleep 0.1; done", "exit 3")
    attached = dstack.start("apply", "-y")
    attached.wait_for_output("before", 60)
    assert ssh(dstack, name, "touch $HOME/go-on") == ""
    ended_badly = attached.wait()
    assert (ended_badly.status, "Exited (3)" in ended_badly.lines) == (1, True), ended_badly.out


def test_attached_ports_and_ssh(dstack: PublishedClient) -> None:
    local, remote = take_free_port(), take_free_port()
    name = task(dstack, f"python3 -m http.server {remote} --bind 127.0.0.1", rest=f"ports: ['{local}:{remote}']\n")
    attached = dstack.start("apply", "-y")
    attached.wait_for_output("Serving HTTP", 60)
    assert get(local, "/") == 200
    assert ssh(dstack, name, "echo $DSTACK_RUN_NAME") == name
    assert dstack("stop", name, "-y").status == 0
    stopped = attached.wait()
    assert (stopped.status, "Stopped" in stopped.lines) == (1, True), stopped.out


def test_attached_service_and_dev_environment(server: ServerProcess, dstack: PublishedClient) -> None:
    web, dev, port = unique("web"), unique("dev"), take_free_port()
    serve = f"python3 -m http.server {port} --bind 127.0.0.1"
    dstack.write("web.dstack.yml", f"type: service\nname: {web}\nport: {port}\ncommands: [{serve}]\n{SMALL}")
    dstack.write("dev.dstack.yml", f"type: dev-environment\nname: {dev}\nide: vscode\n{SMALL}")
    service, environment = (dstack.start("apply", "-f", f"{name}.dstack.yml", "-y") for name in ("web", "dev"))
    service.wait_for_output("Serving HTTP", 60)
    environment.wait_for_output("vscode://vscode-remote/ssh-remote+" + dev, 60)
    for name, attached in ((web, service), (dev, environment)):
        attached.interrupt()
        assert attached.wait().status == 0
        assert server.run(name)["status"] == "running"
    assert f"/proxy/services/main/{web}/" in service.plain
    assert dstack("stop", web, "-y").status == dstack("stop", dev, "-y").status == 0


def test_attach(server: ServerProcess, dstack: PublishedClient) -> None:
    name = task(dstack, "echo started", "sleep 1000")
    assert dstack("apply", "-y", "-d").status == 0
    server.wait_run(name, "running")
    attached = dstack.start("attach", name)
    attached.wait_for_output(f"`ssh {name}`")
    wait_for("the way into the job", lambda: ssh(dstack, name, "pwd"))
    attached.interrupt()
    assert attached.wait().status == 0
    following = dstack.start("attach", "--logs", name)
    following.wait_for_output("started")
    assert dstack("stop", name, "-y").status == 0
    assert following.wait().status == 1


def test_ps(server: ServerProcess, dstack: PublishedClient) -> None:
    name = task(dstack, "sleep 1000")
    assert dstack("apply", "-y", "-d").status == 0
    server.wait_run(name, "running")
    assert dstack("ps").lines[0] == "NAME BACKEND GPU PRICE STATUS SUBMITTED"
    assert row(dstack("ps").out, name)[:6] == [name, "ssh", "(local)", "-", "$0", "running"]
    verbose = dstack("ps", "-v").lines[0]
    assert verbose == "NAME BACKEND RESOURCES INSTANCE TYPE PRICE STATUS PROBES SUBMITTED ERROR"
    assert name in [run["run_spec"]["run_name"] for run in json.loads(dstack("ps", "--json").out)["runs"]]
    watching = dstack.start("ps", "-w", terminal=True)
    watching.wait_for_output(name)
    assert dstack("stop", name, "-y").status == 0
    ended(dstack, name)
    watching.interrupt()
    watching.wait()
    shown = dstack("ps", "-n", "1")
    assert (len(shown.lines), row(shown.out, name)[5]) == (2, "stopped")


def test_logs(server: ServerProcess, dstack: PublishedClient) -> None:
    name = task(dstack, "seq 1 2500", "echo last 1>&2")
    assert dstack("apply", "-y", "-d").status == 0
    ended(dstack, name)
    shown = dstack("logs", name)
    assert shown.status == 0
    assert shown.lines == [*map(str, range(1, 2501)), "last"]
    assert dstack("logs", name, "--since", "1h").lines[-1] == "last"
    assert dstack("logs", name, "--since", "2099-01-01T00:00:00Z").out == ""
    assert dstack("logs", "-d", name).status == 0
    assert dstack("logs", unique("nope")).status == 1


def test_metrics(server: ServerProcess, dstack: PublishedClient) -> None:
    name = task(dstack, "python3 -c 'while True: pass'")
    assert dstack("apply", "-y", "-d").status == 0

    def shown() -> bool:
        out = dstack("metrics", name).out
        return "cpu" in out and "no data" not in out and bool(re.search(r"[1-9]\d*% .* [1-9]\d*MB/\d+GB", out))

    wait_for("the load of the job", shown, 60)
    assert dstack("stop", name, "-y").status == 0
    assert dstack("metrics", unique("nope")).status == 1


def test_event(server: ServerProcess, dstack: PublishedClient) -> None:
    name = task(dstack, "true")
    assert dstack("apply", "-y", "-d").status == 0
    ended(dstack, name)
    lines = dstack("event", "--target-run", name).lines
    assert lines[0].endswith(f"[job {name}-0-0, run {name}] Run submitted")
    assert "admin" in lines[0]
    assert lines[-1].endswith(
        f"[run {name}] Run status changed TERMINATING -> DONE. Termination reason: ALL_JOBS_DONE"
    )
    within = dstack("event", "list", "--since", "1h", "--within-run", name, "--include-target-type", "job").lines
    assert "Job status changed" in within[-1]
    watching = dstack.start("event", "-w", "--target-fleet", "local")
    watching.wait_for_output("[fleet local] Fleet created")
    watching.interrupt()
    watching.wait()


def test_secret(dstack: PublishedClient) -> None:
    assert dstack("secret", "set", "key", "one").status == 0
    assert dstack("secret", "set", "key", "two").status == 0
    assert row(dstack("secret", "list").out, "key") == ["key", "******"]
    assert row(dstack("secret", "get", "key").out, "key") == ["key", "two"]
    name = task(dstack, "echo $KEY", rest='env: {KEY: "${{ secrets.key }}"}\n')
    assert dstack("apply", "-y", "-d").status == 0
    ended(dstack, name)
    assert dstack("logs", name).out == "two"
    assert dstack("secret", "delete", "key", "-y").status == 0
    for gone in (("get", "key"), ("delete", "key", "-y")):
        refused = dstack("secret", *gone)
        assert (refused.status, len(refused.lines)) == (1, 1), refused.out


def test_stop_and_delete_of_what_is_not_there(dstack: PublishedClient) -> None:
    name = task(dstack, "true")
    for argv in (("stop", name, "-y"), ("delete", "-y"), ("attach", name), ("run", "get", name, "--json")):
        refused = dstack(*argv)
        assert (refused.status, len(refused.lines)) == (1, 1), refused.out


def test_volume(dstack: PublishedClient) -> None:
    name = unique("volume")
    dstack.write("volume.dstack.yml", f"type: volume\nname: {name}\nbackend: aws\nregion: us-east-1\nsize: 10GB\n")
    assert dstack("volume").lines == ["NAME BACKEND STATUS CREATED"]
    assert dstack("volume", "list", "-v").lines == ["NAME BACKEND REGION STATUS ATTACHED CREATED ERROR"]
    failed = dstack("apply", "-f", "volume.dstack.yml", "-y")
    assert (failed.status, "no backend 'aws'" in failed.out) == (1, True), failed.out
    assert json.loads(dstack("volume", "get", name, "--json").out)["status"] == "failed"
    assert row(dstack("volume", "-v").out, name)[1:4] == ["aws", "us-east-1", "failed"]
    assert dstack("delete", "-f", "volume.dstack.yml", "-y").status == 0
    for argv in (("get", name, "--json"), ("delete", name, "-y")):
        refused = dstack("volume", *argv)
        assert (refused.status, len(refused.lines)) == (1, 1), refused.out


def test_gateway(dstack: PublishedClient) -> None:
    assert dstack("gateway", "list").lines == ["NAME BACKEND HOSTNAME DOMAIN DEFAULT STATUS"]
    assert json.loads(dstack("gateway", "--json").out) == {"project": "main", "gateways": []}
    configuration = "type: gateway\nname: gw\nbackend: aws\nregion: us-east-1\ndomain: example.com\n"
    dstack.write("gateway.dstack.yml", configuration)
    refused = dstack("apply", "-f", "gateway.dstack.yml", "-y")
    assert (refused.status, "aws" in refused.out.replace("Backend aws", "")) == (1, True), refused.out
    for argv in (("get", "gw", "--json"), ("delete", "gw", "-y"), ("update", "gw", "--set-default")):
        refused = dstack("gateway", *argv)
        assert (refused.status, len(refused.lines)) == (1, 1), refused.out


def test_export_and_import(server: ServerProcess, dstack: PublishedClient) -> None:
    name, other = unique("export"), unique("project")
    server.post("/api/projects/create", {"project_name": other, "is_public": False})
    added = ("project", "add", "--name", other, "--url", server.url, "--token", TOKEN, "-n")
    assert dstack(*added).status == 0
    assert dstack("export", "create", name, "--fleet", "local", "--importer", other).status == 0
    assert row(dstack("export").out, name) == [name, "local", "-", other]
    assert row(dstack("import", "--project", other).out, f"main/{name}") == [f"main/{name}", "local", "-"]
    assert row(dstack("fleet", "--project", other).out, "main/local") != []
    assert dstack("import", "--project", other, "delete", f"main/{name}", "-y").status == 0
    assert dstack("export", "update", name, "--set-global").status == 0
    assert row(dstack("export", "list").out, name) == [name, "local", "-", "*"]
    assert dstack("export", "delete", name, "-y").status == 0
    refused = dstack("export", "delete", name, "-y")
    assert (refused.status, len(refused.lines)) == (1, 1), refused.out
    assert dstack("project", "delete", "--name", other, "-y").status == 0


def test_login(server: ServerProcess, dstack: PublishedClient) -> None:
    refused = dstack("login", "--url", server.url)
    assert (refused.status, len(refused.lines)) == (1, 1), refused.out


def test_completion(server: ServerProcess, dstack: PublishedClient) -> None:
    for shell in ("bash", "zsh"):
        script = dstack("completion", shell)
        assert (script.status, "dstack" in script.out) == (0, True)
    assert dstack("completion", "fish").status == 2
    name = task(dstack, "true")
    assert dstack("apply", "-y", "-d").status == 0
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": f"dstack logs {name[:8]}", "COMP_TYPE": "9"}
    asked.update(COMP_POINT=str(len(asked["COMP_LINE"])), _ARGCOMPLETE_STDOUT_FILENAME=str(dstack.work / "words"))
    dstack(env=asked)
    assert (dstack.work / "words").read_text().split() == [name]


def test_python_client(dstack: PublishedClient) -> None:
    name = unique("api")
    ran = dstack.python(f"""
import time
from dstack.api import Client, Resources, RunStatus, Task

def finished(run):
    while not run.status.is_finished():
        time.sleep(0.1)
        run.refresh()
    return run.status

client = Client.from_config(project_name="main")
small = Resources(cpu="1..", memory="0.1GB..", disk="0.1GB..")
task = Task(name="{name}", commands=["echo one", "sleep 5", "echo two"], resources=small)
run = client.runs.apply_configuration(task)
run.attach()
print(b"".join(run.logs()).decode().split())
run.detach()
assert finished(run) is RunStatus.DONE
print(b"".join(run.logs()).decode().split())
endless = client.runs.apply_configuration(Task(name="{name}-2", commands=["sleep 1000"], resources=small))
endless.stop()
assert finished(endless) is RunStatus.TERMINATED
print([run.name for run in client.runs.list(all=True)][:2], client.runs.get("{name}").status.value)
""")
    assert ran == (0, 2 * "['one', 'two']\n" + f"['{name}-2', '{name}'] done\n")


def test_rest_client(dstack: PublishedClient) -> None:
    name, other = unique("rest"), unique("user")
    ran = dstack.python(f"""
from dstack.api import Client

api = Client.from_config(project_name="main").client
api.users.create("{other}", "user")
assert "{other}" in [user.username for user in api.users.list()]
assert api.users.get_user("{other}").username == "{other}"
old = api.users.refresh_token("{other}").creds.token
assert api.users.refresh_token("{other}").creds.token != old
api.projects.create("{name}")
api.projects.add_member("{name}", "{other}", "manager")
assert [member.project_role.value for member in api.projects.get("{name}").members] == ["admin", "manager"]
api.projects.remove_member("{name}", "{other}")
api.secrets.create_or_update("{name}", "key", "value")
assert api.secrets.get("{name}", "key").value == "value"
assert [secret.value for secret in api.secrets.list("{name}")] == [None]
api.secrets.delete("{name}", ["key"])
for empty in (api.volumes, api.gateways, api.repos, api.fleets):
    assert empty.list("{name}") == []
assert [fleet.name for fleet in api.fleets.list("main")] == ["local"]
assert api.fleets.get("main", "local").instances is not None
assert api.events.list()[0].message
assert api.auth.list_providers() == []
api.projects.delete(["{name}"])
print("{name}" in [project.project_name for project in api.projects.list()])
""")
    assert ran == (0, "False\n")
