"""The server's configuration file."""

import pytest
from pydantic import ValidationError

from dstack.core.server_config import ServerConfig

KEY = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="


def test_whole_file() -> None:
    config = ServerConfig.model_validate(
        {
            "projects": [
                {"name": "main", "backends": [{"type": "local"}, {"type": "aws", "creds": {"type": "default"}}]}
            ],
            "encryption": {"keys": [{"type": "aes", "name": "k", "secret": KEY}, {"type": "identity"}]},
            "default_permissions": {"allow_managers_manage_secrets": True},
        }
    )
    backends = config.projects[0].backends
    assert backends is not None
    assert [backend.type for backend in backends] == ["local", "aws"]
    assert backends[1].settings() == {"creds": {"type": "default"}}
    assert KEY not in repr(config)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"projects": [{"name": "main", "backends": [{"type": "awz"}]}]}, "'awz' is not a backend"),
        ({"encryption": {"keys": [{"type": "aes", "name": "k", "secret": "?"}]}}, "Base64"),
        ({"encryption": {"keys": [{"type": "aes", "name": "k", "secret": "AAAA"}]}}, "not 3"),
        ({"projects": [{"name": "a b"}]}, "not a valid project name"),
        ({"project": []}, "Extra inputs"),
    ],
)
def test_mistakes_are_named(data: object, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        ServerConfig.model_validate(data)
