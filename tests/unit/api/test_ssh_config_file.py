"""The file of entries, which several processes and other programs write."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dstack.api.ssh.config_file import EntriesFile, include_entries, this_process
from dstack.api.ssh.hosts import HostEntry

OTHER = "# mine\nHost other\n    HostName other.example\n\nHost two three\n    User me\n"


def _entry(name: str, address: str = "a.example") -> HostEntry:
    return HostEntry(name, (("HostName", address),))


def _dead_process() -> str:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return this_process().replace(this_process().split()[1], str(process.pid))


@pytest.fixture
def file(tmp_path: Path) -> EntriesFile:
    return EntriesFile(tmp_path / "config")


def test_entries_come_and_go(file: EntriesFile) -> None:
    file.path.write_text(OTHER)
    known = file.file_of("train", ".known_hosts")
    file.put([_entry("train-host"), _entry("train")], {known: "train key\n"}, this_process())
    comment = f"    # attached by {this_process()}\n"
    assert file.path.read_text() == (
        f"{OTHER}Host train-host\n    HostName a.example\n{comment}Host train\n    HostName a.example\n{comment}"
    )
    assert known.read_text() == "train key\n"
    assert file.path.stat().st_mode & 0o777 == known.stat().st_mode & 0o777 == 0o600
    file.remove(["train-host", "train"], this_process())
    assert file.path.read_text() == OTHER
    assert not known.exists()


def test_an_entry_stays_while_somebody_uses_it(file: EntriesFile) -> None:
    file.put([_entry("train")], {}, this_process())
    file.put([_entry("train", "b.example")], {}, this_process())
    file.remove(["train"], this_process())
    assert "HostName b.example" in file.path.read_text()
    file.remove(["train"], this_process())
    assert file.path.read_text() == ""


def test_entries_of_dead_processes_go(file: EntriesFile) -> None:
    access = file.file_of("old", ".access.json")
    file.put([_entry("old")], {access: "{}"}, _dead_process())
    elsewhere = "process 1 on elsewhere"
    file.put([_entry("shared-home")], {}, elsewhere)
    file.put([_entry("new")], {}, this_process())
    text = file.path.read_text()
    assert "Host old" not in text
    assert not access.exists()
    assert "Host shared-home" in text
    assert "Host new" in text


def test_an_entry_of_another_program_is_replaced(file: EntriesFile) -> None:
    file.path.write_text("Host train\n    HostName old.example\n")
    file.put([_entry("train")], {}, this_process())
    assert "old.example" not in file.path.read_text()


def test_the_include_line_comes_first_and_once(tmp_path: Path) -> None:
    entries, user_config = tmp_path / "entries", tmp_path / ".ssh" / "config"
    include_entries(entries, user_config)
    assert user_config.read_text() == f"Include {entries}\n"
    assert user_config.parent.stat().st_mode & 0o777 == 0o700
    user_config.write_text("Host mine\n")
    user_config.chmod(0o644)
    include_entries(entries, user_config)
    include_entries(entries, user_config)
    assert user_config.read_text() == f"Include {entries}\n\nHost mine\n"
    assert user_config.stat().st_mode & 0o777 == 0o644


def test_a_linked_configuration_stays_a_link(tmp_path: Path) -> None:
    real, link = tmp_path / "dotfiles-config", tmp_path / ".ssh" / "config"
    real.write_text("Host mine\n")
    link.parent.mkdir()
    link.symlink_to(real)
    (tmp_path / "with space").mkdir()
    include_entries(tmp_path / "with space" / "config", link)
    assert link.is_symlink()
    assert real.read_text().startswith('Include "')
