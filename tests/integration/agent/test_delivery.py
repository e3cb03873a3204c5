"""Files and repositories that the agent brings to jobs, with a real agent, real Git and a real Docker daemon."""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import socket
import subprocess
import tarfile
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.git import TOKEN, Origin
from tests.integration.agent.harness import AgentProcess
from tests.integration.agent.test_container import DockerAgent
from tests.integration.agent.test_process import shell as process_shell

from dstack.agent.protocol import RepoCredentials, RepoSpec, StopRequest, TaskSpec, TaskState
from dstack.agent.repos import Checkout, CheckoutError

Shell = Callable[..., TaskSpec]
Entry = tuple[str, str | None]
"""Name and content; None: a folder. A content that starts with `->` is a link."""


@pytest.fixture(params=["process", "container"])
async def agent(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[AgentProcess]:
    folder = tmp_path / "agent"
    folder.mkdir()
    if request.param == "container":
        running: AgentProcess = DockerAgent(folder, request.getfixturevalue("docker_daemon"))
    else:
        running = AgentProcess(folder)
    await running.start()
    yield running
    for task in await running.client.list_tasks():
        await running.client.stop_task(task.id, StopRequest(grace_seconds=0))
        await running.ended(task.id)
        await running.client.delete_task(task.id)
    await running.clean_up()


@pytest.fixture
def shell(agent: AgentProcess) -> Shell:
    def make(text: str, **fields: object) -> TaskSpec:
        if isinstance(agent, DockerAgent):
            return agent.shell(text, **{"working_dir": "/workflow", "repo_dir": "/workflow", **fields})
        return process_shell(text, **{"repo_dir": ".", **fields})

    return make


def archive(*entries: Entry) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, text in entries:
            entry = tarfile.TarInfo(name)
            entry.mode = 0o755
            if text is None:
                entry.type = tarfile.DIRTYPE
            elif text.startswith("->"):
                entry.type, entry.linkname = tarfile.SYMTYPE, text[2:]
            else:
                entry.size = len(text)
            tar.addfile(entry, io.BytesIO((text or "").encode()))
    return content.getvalue()


async def run(agent: AgentProcess, task: TaskSpec, **uploads: bytes) -> tuple[TaskState, str]:
    for name, content in uploads.items():
        await agent.client.put_file(task.id, name, content)
    await agent.client.put_task(task)
    state = await agent.ended(task.id)
    return state, (await agent.output(task.id)).decode() if state.started_at else ""


async def test_files_and_folders_come_to_where_they_are_mapped(agent: AgentProcess, shell: Shell) -> None:
    files = [("one", "renamed.txt"), ("two", "deep/data"), ("two", "into/"), ("three", ".")]
    task = shell(
        "cat renamed.txt deep/data/a deep/data/sub/link into/data/a top; stat -c %a /tmp",
        files=[{"name": name, "path": path} for name, path in files],
    )
    folder = archive(("data", None), ("data/a", "A\n"), ("data/sub", None), ("data/sub/link", "->../a"))
    whole = archive(("..", None), ("../top", "T\n"))  # as older clients pack the parent folder
    state, out = await run(agent, task, one=archive(("file.txt", "one\n")), two=folder, three=whole)
    assert state.reason == "done_by_runner", state
    assert out.splitlines()[:5] == ["one", "A", "A", "A", "T"]


@pytest.mark.parametrize(
    ("content", "words"),
    [(archive(("a", None), ("a/../../b", "x")), "outside of its folder: a/../../b"),
     (archive(("/etc/x", "x")), "outside of its folder: /etc/x"),
     (archive(("a", None), ("a/link", "->../../x")), "leads outside of its folder"),
     (archive(("a", "x"), ("b", "x")), "more than one entry at its root"),
     (b"not an archive", "cannot be unpacked"), (None, "was not uploaded")],
)  # fmt: skip
async def test_an_archive_that_cannot_be_used_says_so(
    agent: AgentProcess, shell: Shell, content: bytes | None, words: str
) -> None:
    task = shell("true", files=[{"name": "bad", "path": "here"}])
    state, _ = await run(agent, task, **({"bad": content} if content is not None else {}))
    assert state.reason == "executor_error", state
    assert words in state.message


async def test_a_repository_at_a_commit_with_local_changes(
    agent: AgentProcess, shell: Shell, origin: Origin
) -> None:
    commit = origin.git("rev-parse", "HEAD")
    origin.commit("README", "second\n")
    origin.git("checkout", "-q", commit)
    (origin.work / "README").write_text("changed here\n")
    (origin.work / "blob").write_bytes(bytes(range(256)))
    origin.git("add", "-N", ".")
    diff = origin.diff(commit)
    repo = RepoSpec(origin.url, branch="main", hash=commit, config_name="Ann", diff="diff").to_json()
    text = "cat README; wc -c < blob; cat .git/HEAD .git/refs/heads/main; grep Ann .git/config; cat extra"
    task = shell(text, repo=repo, files=[{"name": "more", "path": "extra"}])
    state, out = await run(agent, task, diff=diff, more=archive(("x", "more\n")))
    assert state.reason == "done_by_runner", (state, out)
    lines = [line.strip() for line in out.splitlines()]
    assert lines == ["changed here", "256", "ref: refs/heads/main", commit, "name = Ann", "more"]


async def test_a_branch_that_was_never_pushed_starts_from_its_commit(
    agent: AgentProcess, shell: Shell, origin: Origin
) -> None:
    repo = RepoSpec(origin.url, branch="mine", hash=origin.git("rev-parse", "HEAD")).to_json()
    state, out = await run(agent, shell("cat README .git/HEAD", repo=repo))
    assert (state.reason, out) == ("done_by_runner", "first\nref: refs/heads/mine\n")


async def test_submodules_come_along(
    agent: AgentProcess, shell: Shell, private_origin: Origin, tmp_path: Path
) -> None:
    part = tmp_path / "part.git"
    shutil.copytree(private_origin.bare, part)
    url = private_origin.http_url.replace("origin.git", "part.git")
    private_origin.git("-c", "protocol.file.allow=always", "submodule", "add", "-q", f"file://{part}", "part")
    private_origin.git("config", "-f", ".gitmodules", "submodule.part.url", url)
    private_origin.commit("with-part", "")
    repo = RepoSpec(private_origin.http_url, credentials="creds").to_json()
    creds = json.dumps({"oauth_token": TOKEN}).encode()
    state, out = await run(agent, shell("cat part/README", repo=repo), creds=creds)
    assert (state.reason, out) == ("done_by_runner", "first\n"), state


async def test_credentials_open_a_repository_and_are_left_nowhere(
    agent: AgentProcess, shell: Shell, private_origin: Origin
) -> None:
    repo = RepoSpec(private_origin.http_url, credentials="creds").to_json()
    task = shell("cat README .git/config; env", repo=repo)
    state, out = await run(agent, task, creds=json.dumps({"oauth_token": TOKEN}).encode())
    assert state.reason == "done_by_runner", state
    assert out.startswith("first\n")
    assert TOKEN not in out
    holders = [path for path in agent.folder.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert holders == []


async def test_wrong_credentials_are_told_without_them(
    agent: AgentProcess, shell: Shell, private_origin: Origin
) -> None:
    repo = RepoSpec(private_origin.http_url, credentials="creds").to_json()
    state, _ = await run(agent, shell("true", repo=repo), creds=b'{"oauth_token": "wrong-token"}')
    assert state.reason == "container_exited_with_error"
    assert f"the repository {private_origin.http_url} cannot be cloned" in state.message
    assert "wrong-token" not in state.message


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"hash": "1" * 40}, "there is no commit 1111"), ({"branch": "none"}, "Remote branch none not found"),
     ({"diff": "diff"}, "the local changes cannot be applied")],
)  # fmt: skip
async def test_what_cannot_be_checked_out_says_why(
    agent: AgentProcess, shell: Shell, origin: Origin, fields: dict[str, str], words: str
) -> None:
    task = shell("true", repo={**RepoSpec(origin.url).to_json(), **fields})
    state, _ = await run(agent, task, diff=b"diff --git a/no b/no\n--- a/no\n+++ b/no\n@@ -1 +1 @@\n-x\n+y\n")
    assert state.reason == "container_exited_with_error", state
    assert words in state.message


async def test_a_folder_that_is_not_empty_is_an_error_or_left_as_it_is(
    agent: AgentProcess, shell: Shell, origin: Origin, tmp_path: Path
) -> None:
    filled = tmp_path / "filled"
    filled.mkdir()
    (filled / "README").write_text("mine\n")
    folder = "/etc" if isinstance(agent, DockerAgent) else str(filled)
    text = "ls passwd" if isinstance(agent, DockerAgent) else "cat README"
    places = {"working_dir": folder, "repo_dir": folder}
    state, _ = await run(agent, shell(text, repo=RepoSpec(origin.url).to_json(), **places))
    assert state.reason == "container_exited_with_error", state
    assert f"{folder}: the folder is not empty" in state.message
    state, out = await run(agent, shell(text, repo=RepoSpec(origin.url, if_exists="skip").to_json(), **places))
    assert (state.reason, out.strip()) == ("done_by_runner", "passwd" if folder == "/etc" else "mine"), state


async def test_a_kill_at_any_moment_brings_everything_in_once(
    agent: AgentProcess, shell: Shell, origin: Origin
) -> None:
    for delay in (0.0, 0.01, 0.03, 0.1):
        task = shell(
            "cat README a; echo end", repo=RepoSpec(origin.url).to_json(), files=[{"name": "a", "path": "a"}]
        )
        await agent.client.put_file(task.id, "a", archive(("a", "A\n")))
        await agent.client.put_task(task)
        await asyncio.sleep(delay)
        agent.end()
        await agent.start()
        state = await agent.ended(task.id)
        assert (state.reason, await agent.output(task.id)) == ("done_by_runner", b"first\nA\nend\n"), state


async def test_a_stop_ends_a_clone_that_hangs(agent: AgentProcess, shell: Shell) -> None:
    server = await asyncio.start_server(lambda reader, writer: asyncio.sleep(1000), "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        task = shell("true", repo=RepoSpec(f"http://127.0.0.1:{port}/x").to_json())
        await agent.client.put_task(task)
        await agent.client.stop_task(task.id, StopRequest("terminated_by_user"))
        assert (await agent.ended(task.id)).reason == "terminated_by_user"


def test_a_stop_while_git_is_being_started_ends_the_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = subprocess.Popen

    def stopped_meanwhile(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        process = start(command, **options)
        checkout.cancel()
        return process

    monkeypatch.setattr("dstack.agent.repos.subprocess.Popen", stopped_meanwhile)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        repo = RepoSpec(f"http://127.0.0.1:{silent.getsockname()[1]}/x")
        checkout = Checkout(repo, RepoCredentials(), str(tmp_path / "x"), b"", str(tmp_path))
        with pytest.raises(CheckoutError):
            checkout.run()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may run jobs as somebody else")
async def test_a_process_of_another_user_owns_what_it_gets(tmp_path: Path, origin: Origin) -> None:
    folder = tmp_path / "agent"
    folder.mkdir()
    agent = AgentProcess(folder)
    await agent.start()
    task = process_shell(
        "id -un; stat -c %U a README; cat $DSTACK_MPI_HOSTFILE; cd $DSTACK_REPO_DIR && pwd",
        user="nobody", repo_dir=".", files=[{"name": "a", "path": "a"}], hostfile="10.0.0.1 slots=8\n",
    )  # fmt: skip
    bare = Path(tempfile.gettempdir(), f"dstack-test-{task.id}.git")  # where everybody may look
    try:
        shutil.copytree(origin.bare, bare)
        for path in [bare, *bare.rglob("*")]:
            shutil.chown(path, "nobody")
        task = TaskSpec.from_json({**task.to_json(), "repo": RepoSpec(str(bare)).to_json()})
        state, out = await run(agent, task, a=archive(("a", "A")))
        assert state.reason == "done_by_runner", state
        base = f"{tempfile.gettempdir()}/dstack-{task.id}"
        assert out.splitlines() == ["nobody", "nobody", "nobody", "10.0.0.1 slots=8", f"{base}/work"]
        await agent.client.delete_task(task.id)
        assert not os.path.exists(base)
    finally:
        shutil.rmtree(bare, ignore_errors=True)
        await agent.clean_up()
