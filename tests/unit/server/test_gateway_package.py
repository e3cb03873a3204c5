"""What gateway hosts are given: wheels of what is installed here."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from importlib import metadata
from pathlib import Path

import pytest

import dstack
from dstack.core.errors import HostUnfit
from dstack.server.gateways import package
from dstack.server.gateways.looking import GatewayHost, checked
from dstack.server.gateways.provisioning import Wanted
from dstack.server.hosts.ssh.target import SSHTarget

TARGET = SSHTarget("host", "me")


def test_the_gateway_app_runs_from_what_is_packed(tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    wheel = package.own_wheel()
    (tmp_path / "wheels" / wheel.name).write_bytes(wheel.content)
    with tarfile.open(fileobj=io.BytesIO(package.wheelhouse())) as archive:
        archive.extractall(tmp_path / "wheels", filter="data")
    for path in (tmp_path / "wheels").iterdir():
        subprocess.run([sys.executable, "-m", "zipfile", "-e", path, tmp_path / "site"], check=True)
    command = [sys.executable, "-S", "-m", "dstack.proxy.gateway.main", "--help"]
    env = {"PYTHONPATH": str(tmp_path / "site"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "dstack gateway app" in done.stdout


def test_a_wheel_keeps_the_name_and_tags_of_the_one_it_came_from() -> None:
    wheel = package.repack(metadata.distribution("pydantic-core"))
    assert wheel.name.startswith("pydantic_core-")
    assert "-cp3" in wheel.name
    assert wheel.name.endswith(".whl")


def host(**changes: object) -> GatewayHost:
    known: dict[str, object] = dict.fromkeys(("user", "python", "platform", "folder"), "x")
    known |= {"system": "Linux", "is_root": False, "as_root": True, "has_venv": True, "has_systemd": True}
    known |= {"missing": [], "has_apt": True, "active": None, "source": None, **changes}
    return GatewayHost(**known)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"system": "Darwin"}, "needs Linux"),
        ({"as_root": False}, "may not use sudo"),
        ({"has_systemd": False}, "does not run systemd"),
        ({"missing": ["nginx"], "has_venv": False, "has_apt": False}, "lacks nginx, python3-venv"),
    ],
)
def test_hosts_that_are_unfit(changes: dict[str, object], told: str) -> None:
    with pytest.raises(HostUnfit, match=told):
        checked(host(**changes), TARGET)


def test_a_host_lacks_only_what_can_be_installed() -> None:
    assert checked(host(missing=["nginx", "ssh"]), TARGET).packages == ["nginx", "openssh-client"]


def test_which_version_is_wanted() -> None:
    assert Wanted().is_served_by(dstack.__version__)
    assert not Wanted().is_served_by("0.0.1")
    assert Wanted("https://example.com/x.whl").is_served_by("0.0.1")
    assert not Wanted("https://example.com/x.whl").is_served_by(None)
