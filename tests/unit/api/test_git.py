"""Git repositories, read from real ones."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from dstack.api.errors import ConfigError
from dstack.api.git import GitRepo, is_url, read_repo


def _git(folder: Path, *args: str) -> str:
    identity = ["-c", "user.name=Ann", "-c", "user.email=ann@example.com"]
    command = ["git", "-C", str(folder), *identity, *args]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone with one pushed commit."""
    _git(tmp_path, "init", "-q", "--bare", "-b", "main", "origin.git")
    _git(tmp_path, "clone", "-q", f"file://{tmp_path}/origin.git", "clone")
    folder = tmp_path / "clone"
    (folder / "a").write_text("1\n")
    _git(folder, "add", ".")
    _git(folder, "commit", "-qm", "first")
    _git(folder, "push", "-q", "origin", "HEAD")
    return folder


def test_a_clean_clone_has_no_diff(clone: Path) -> None:
    repo = read_repo(clone)
    assert (repo.name, repo.commit, repo.diff) == ("origin", _git(clone, "rev-parse", "HEAD"), b"")


def test_the_diff_makes_the_working_tree(clone: Path, tmp_path: Path) -> None:
    pushed = _git(clone, "rev-parse", "HEAD")
    (clone / "a").write_text("2\n")
    _git(clone, "commit", "-qam", "not pushed")
    (clone / "b").write_bytes(b"\x00\x01binary")
    (clone / "sub").mkdir()
    (clone / "sub" / "new file").write_text("new\n")
    (clone / ".gitignore").write_text("ignored\n")
    (clone / "ignored").write_text("")
    repo = read_repo(clone / "sub")
    assert repo.commit == pushed
    _git(tmp_path, "clone", "-q", str(tmp_path / "origin.git"), "other")
    other = tmp_path / "other"
    (tmp_path / "diff").write_bytes(repo.diff)
    _git(other, "apply", str(tmp_path / "diff"))
    assert (other / "a").read_text() == "2\n"
    assert (other / "b").read_bytes() == b"\x00\x01binary"
    assert (other / "sub" / "new file").read_text() == "new\n"
    assert not (other / "ignored").exists()


def test_what_cannot_be_cloned_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not in a Git repository"):
        read_repo(tmp_path)
    _git(tmp_path, "init", "-q", "bare")
    with pytest.raises(ConfigError, match="has no remote to clone it from"):
        read_repo(tmp_path / "bare")


def test_the_id_is_the_same_however_it_is_reached() -> None:
    urls = ("https://host/team/My_Repo.git", "git@host:team/My_Repo.git", "ssh://git@host/team/My_Repo")
    ids = {GitRepo(url).id for url in urls}
    assert len(ids) == 1
    assert ids.pop().rpartition("-")[0] == "my-repo"
    assert [is_url(text) for text in (*urls, ".", "../x")] == [True, True, True, False, False]
