"""What `files` and `repos` of a configuration bring to a job, through the command line and a real server."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.harness import Cli
from tests.e2e.test_cli import SMALL
from tests.fixtures.git import TOKEN as GIT_TOKEN
from tests.fixtures.git import Origin


def _apply(cli: Cli, name: str, commands: str, rest: str, *flags: str) -> tuple[int, str]:
    cli.write(f"type: task\nname: {name}\ncommands: [{commands}]\n{rest}\n{SMALL}")
    return cli("apply", "-y", *flags)


def test_files_reach_the_job(cli: Cli) -> None:
    (cli.folder / "note.txt").write_text("a note\n")
    (cli.folder / "data" / "sub").mkdir(parents=True)
    (cli.folder / "data" / "sub" / "part").write_text("a part\n")
    (cli.folder / "data" / ".gitignore").write_text("secret\n")
    (cli.folder / "data" / "secret").write_text("not to be sent\n")
    files = 'files: [note.txt, "data:input", "note.txt:other/name"]'
    commands = '"cat note.txt other/name input/sub/part", "ls input", "test $PWD = $DSTACK_WORKING_DIR"'
    status, out = _apply(cli, "with-files", commands, files)
    assert status == 0, out
    assert cli("logs", "with-files") == (0, "a note\na note\na part\nsub\n")


def test_a_repository_with_changes_that_are_not_committed(cli: Cli, origin: Origin) -> None:
    (origin.work / "README").write_text("changed\n")
    (origin.work / "new").write_text("new\n")
    commands = '"cat README new", "cd $DSTACK_REPO_DIR", git status -s --porcelain, cat $DSTACK_MPI_HOSTFILE'
    status, out = _apply(cli, "with-repo", commands, f"repos: ['{origin.work}']")
    assert status == 0, out
    assert cli("logs", "with-repo") == (0, "changed\nnew\n M README\n?? new\n127.0.0.1\n")


def test_a_private_repository_and_its_path(cli: Cli, private_origin: Origin) -> None:
    repos = f"repos: [{{url: '{private_origin.http_url}', path: code}}]"
    status, out = _apply(cli, "private", "cat code/README", repos, "--token", GIT_TOKEN)
    assert status == 0, out
    assert cli("logs", "private") == (0, "first\n")
    status, out = _apply(cli, "refused", "cat code/README", repos, "--token", "wrong-token")
    assert status == 1
    assert "cannot be cloned" in out
    assert "wrong-token" not in out


def test_what_cannot_be_brought_in_says_why(cli: Cli, origin: Origin, tmp_path: Path) -> None:
    no_commit = f"repos: [{{url: '{origin.url}', hash: '{'1' * 40}'}}]"
    status, out = _apply(cli, "no-commit", "ls", no_commit)
    assert status == 1
    assert f"there is no commit {'1' * 40} in the repository {origin.url}" in out.replace("\n", " ")
    (tmp_path / "filled").mkdir()
    (tmp_path / "filled" / "kept").write_text("kept\n")
    filled = f"repos: [{{url: '{origin.url}', path: '{tmp_path}/filled', if_exists: %s}}]"
    status, out = _apply(cli, "filled", "cat kept", filled % "error")
    assert status == 1
    assert "the folder is not empty" in out
    status, out = _apply(cli, "skipped", "cat kept", filled % "skip")
    assert status == 0, out
    assert cli("logs", "skipped") == (0, "kept\n")
