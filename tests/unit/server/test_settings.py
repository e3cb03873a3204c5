"""The registry of settings: defaults, parsing, messages."""

from __future__ import annotations

import dataclasses
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from dstack.core.images import Images
from dstack.server.settings import SETTINGS, Settings, SettingsError, load


def test_the_registry_and_the_fields_are_the_same() -> None:
    assert {s.field for s in SETTINGS} == {field.name for field in dataclasses.fields(Settings)}


def test_defaults() -> None:
    settings = load({})
    assert (settings.host, settings.port) == ("127.0.0.1", 3000)
    assert settings.public_url == "http://127.0.0.1:3000"
    assert settings.server_dir == Path("~/.dstack/server").expanduser()
    assert settings.database_url == f"sqlite+aiosqlite:///{settings.server_dir}/data/sqlite.db"
    assert settings.code_upload_limit == 2097152
    assert not settings.config_disabled


def test_the_images_of_jobs_that_name_none() -> None:
    own = load(
        {
            "DSTACK_DOCKER_BASE_IMAGE": "reg.example:5000/base",
            "DSTACK_DOCKER_BASE_IMAGE_VERSION": "7",
            "DSTACK_DOCKER_BASE_IMAGE_UBUNTU_VERSION": "26.04",
            "DSTACK_DIND_IMAGE": "reg.example:5000/dind:7",
        }
    ).images
    assert (own.base, own.docker) == ("reg.example:5000/base:7-base-ubuntu26.04", "reg.example:5000/dind:7")
    assert own.nvcc == "reg.example:5000/base:7-devel-ubuntu26.04"
    assert load({}).images == Images()


@pytest.mark.parametrize("value", ["", "0", "1"])
def test_a_flag_is_on_when_it_is_present(value: str) -> None:
    assert load({"DSTACK_SERVER_CONFIG_DISABLED": value}).config_disabled


def test_the_public_url_has_no_slash_at_its_end() -> None:
    assert load({"DSTACK_SERVER_URL": "https://dstack.example/"}).public_url == "https://dstack.example"
    assert load({"DSTACK_SERVER_HOST": "::1"}).public_url == "http://[::1]:3000"


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_who_listens_everywhere_tells_an_address_that_leads_here(host: str) -> None:
    url = urlsplit(load({"DSTACK_SERVER_HOST": host}).public_url)
    assert url.port == 3000
    assert not ip_address(url.hostname or "").is_unspecified


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("DSTACK_SERVER_PORT", "many", "expected a whole number, 0 to 65535"),
        ("DSTACK_SERVER_PORT", "70000", "expected a whole number, 0 to 65535"),
        ("DSTACK_DOCKER_BASE_IMAGE", "reg.example/base:1", "expected a repository without a tag"),
        ("DSTACK_DOCKER_BASE_IMAGE_VERSION", "1/2", "expected a part of a tag"),
        ("DSTACK_DIND_IMAGE", "two words", "expected the name of an image"),
        ("DSTACK_LOCAL_BACKEND", "maybe", "expected one of auto, on, off"),
        ("DSTACK_SERVER_LOG_LEVEL", "loud", "expected one of DEBUG"),
    ],
)
def test_a_bad_value_is_named_with_what_would_be_right(name: str, value: str, text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load({name: value})
    assert f"{name}={value}" in str(caught.value)
    assert text in str(caught.value)


def test_contradicting_flags_are_refused() -> None:
    with pytest.raises(SettingsError, match="exclude each other"):
        load({"DSTACK_UPDATE_DEFAULT_PROJECT": "", "DSTACK_DO_NOT_UPDATE_DEFAULT_PROJECT": ""})
