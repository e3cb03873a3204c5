"""Secrets at rest (better B17)."""

from __future__ import annotations

import base64
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstack.server.encryption import AesKey, Encryption, EncryptionError, IdentityKey, Secret, own_key

ONE = base64.b64encode(b"1" * 32).decode()
TWO = base64.b64encode(b"2" * 32).decode()
HERE = "users.token:6a0e"


@given(st.text(), st.sampled_from([AesKey("a", ONE), AesKey("name:with %", TWO), IdentityKey()]))
def test_b17_what_is_encrypted_is_decrypted(text: str, key: AesKey | IdentityKey) -> None:
    encryption = Encryption([key])
    assert encryption.decrypt(encryption.encrypt(text, HERE), HERE) == text


def test_b17_a_ciphertext_hides_the_text_and_names_its_key() -> None:
    stored = Encryption([AesKey("main", ONE)]).encrypt("hunter2", HERE)
    assert stored.startswith("enc:aes:main:")
    assert "hunter2" not in stored
    assert stored != Encryption([AesKey("main", ONE)]).encrypt("hunter2", HERE)


def test_b17_a_ciphertext_moved_to_another_row_or_column_does_not_decrypt() -> None:
    encryption = Encryption([AesKey("main", ONE)])
    stored = encryption.encrypt("hunter2", HERE)
    for elsewhere in ("users.token:6a0f", "users.ssh_private_key:6a0e"):
        with pytest.raises(EncryptionError, match="changed or moved"):
            encryption.decrypt(stored, elsewhere)


def test_b17_a_key_is_rotated_by_putting_a_new_one_first() -> None:
    old = Encryption([AesKey("old", ONE)])
    stored = old.encrypt("hunter2", HERE)
    rotated = Encryption([AesKey("new", TWO), AesKey("old", ONE)])
    assert rotated.decrypt(stored, HERE) == "hunter2"
    assert rotated.needs_rotation(stored)
    again = rotated.encrypt("hunter2", HERE)
    assert not rotated.needs_rotation(again)
    assert Encryption([AesKey("new", TWO)]).decrypt(again, HERE) == "hunter2"


def test_a_missing_key_is_named() -> None:
    stored = Encryption([AesKey("old", ONE)]).encrypt("x", HERE)
    with pytest.raises(EncryptionError, match="key 'old' of type aes, which is not among the configured"):
        Encryption([IdentityKey()]).decrypt(stored, HERE)


def test_a_key_with_another_value_is_named() -> None:
    stored = Encryption([AesKey("main", ONE)]).encrypt("x", HERE)
    with pytest.raises(EncryptionError, match="cannot be decrypted with the key 'main'"):
        Encryption([AesKey("main", TWO)]).decrypt(stored, HERE)


@pytest.mark.parametrize(
    ("secret", "says"),
    [("not base64!", "not base64"), (base64.b64encode(b"short").decode(), "has 5 bytes, not 32")],
)
def test_an_unusable_key_says_what_is_wrong(secret: str, says: str) -> None:
    with pytest.raises(EncryptionError, match=says):
        AesKey("main", secret)


def test_two_keys_of_one_name_are_refused() -> None:
    with pytest.raises(EncryptionError, match="two encryption keys of type aes named 'main'"):
        Encryption([AesKey("main", ONE), AesKey("main", TWO)])


def test_b17_without_a_configured_key_one_is_made_that_only_we_can_read(tmp_path: Path) -> None:
    key, message = own_key(tmp_path / "server")
    path = tmp_path / "server" / "encryption.key"
    assert message is not None
    assert str(path) in message
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again, silence = own_key(tmp_path / "server")
    assert silence is None
    stored = Encryption([key]).encrypt("x", HERE)
    assert Encryption([again]).decrypt(stored, HERE) == "x"


def test_a_secret_does_not_show_itself() -> None:
    assert repr(Secret("hunter2")) == "Secret(***)"
    assert f"{[Secret('hunter2')]}" == "[Secret(***)]"
