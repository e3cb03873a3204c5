"""The private key that this machine shows: the user's own, kept by the server, or one of the user's files."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from pathlib import Path

from dstack.api.errors import AttachError
from dstack.api.rest.client import RestClient

REFRESH_SECONDS = 600
"""After which the user's key is asked for again, because it may have been replaced."""


def ssh_folder() -> Path:
    """`~/.dstack/ssh`, which only its owner can read."""
    folder = Path.home() / ".dstack" / "ssh"
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder


def write_private(path: Path, text: str) -> None:
    """Writes the file at once as a whole, readable by its owner only."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def user_key(rest: RestClient, token: str, folder: Path) -> Path:
    """The file of the user's private key, fetched when there is none or it is old; its public half beside it."""
    path = folder / hashlib.sha1(token.encode()).hexdigest()[:8]
    public = path.with_name(f"{path.name}.pub")
    if _is_fresh(path) and public.exists():
        return path
    user = rest.users.get_my_user()
    if not user.get("ssh_private_key") or not user.get("ssh_public_key"):
        raise AttachError(
            "The server does not give your SSH key to this token:"
            " use your first token, or a key of your own with --ssh-identity"
        )
    write_private(public, user["ssh_public_key"])
    write_private(path, user["ssh_private_key"])
    return path


def choose_identity(rest: RestClient, token: str, *, given: str | None, run_key: str | None, folder: Path) -> Path:
    """The key to show: the one given, else the user's.

    `run_key`: where only the key lets in that the run was submitted with, its public half; a key that fits is
    looked for. Raises AttachError when there is none.
    """
    if given is not None:
        path = Path(given).expanduser().absolute()
        if not path.is_file():
            raise AttachError(f"There is no private key {path}")
        return path
    path = user_key(rest, token, folder)
    if run_key is None or _public_text(path) == run_key:
        return path
    legacy = folder / "id_rsa"
    if _public_text(legacy) == run_key:
        return legacy
    raise AttachError("The run was submitted with another SSH key: give its private half with --ssh-identity")


def _is_fresh(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime < REFRESH_SECONDS
    except FileNotFoundError:
        return False


def _public_text(path: Path) -> str | None:
    try:
        return path.with_name(f"{path.name}.pub").read_text(encoding="utf-8")
    except OSError:
        return None
