"""What goes into an archive of files."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from dstack.api.archives import build_archive
from dstack.api.errors import ConfigError


def _names(content: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return tar.getnames()


def _write(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_a_file_is_under_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("data")
    assert _names(build_archive(tmp_path / "x")) == ["x"]


def test_a_folder_is_sorted_and_the_same_every_time(tmp_path: Path) -> None:
    _write(tmp_path / "d", b="2", a="1", sub__c="3")
    assert _names(build_archive(tmp_path / "d")) == ["d", "d/a", "d/b", "d/sub", "d/sub/c"]
    assert build_archive(tmp_path / "d") == build_archive(tmp_path / "d")


def test_ignore_files_and_git_are_obeyed(tmp_path: Path) -> None:
    root = tmp_path / "d"
    _write(root, a="", sub__b="", build__x="", deep__er__log="", keep__er__log="")
    _write(root, **{".git__HEAD": "", ".hidden": "", "one.tmp": "", "two.tmp": ""})
    (root / ".gitignore").write_text("# comment\n*.tmp\n!two.tmp\nbuild/\n/deep/**/log\n")
    (root / "sub" / ".dstackignore").write_text("b\n")
    assert _names(build_archive(root)) == [
        "d", "d/.gitignore", "d/.hidden", "d/a", "d/deep", "d/deep/er", "d/keep", "d/keep/er", "d/keep/er/log",
        "d/sub", "d/sub/.dstackignore", "d/two.tmp",
    ]  # fmt: skip


def test_links_inside_stay_and_links_outside_become_files(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("text")
    _write(tmp_path / "d", a="1", sub__x="")
    (tmp_path / "d" / "inner").symlink_to("a")
    (tmp_path / "d" / "sub" / "absolute").symlink_to(tmp_path / "d" / "a")
    (tmp_path / "d" / "outer").symlink_to(tmp_path / "outside")
    with tarfile.open(fileobj=io.BytesIO(build_archive(tmp_path / "d"))) as tar:
        assert tar.getmember("d/inner").linkname == "a"
        assert tar.getmember("d/sub/absolute").linkname == "../a"
        outer = tar.extractfile("d/outer")
        assert outer is not None
        assert outer.read() == b"text"


def test_a_link_to_nothing_is_told(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "broken").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="is a link to nothing"):
        build_archive(tmp_path / "d")
