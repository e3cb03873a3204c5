"""What one can do with a job that this machine is attached to."""

from __future__ import annotations

from typing import Any

from dstack.api.attach import Attachment

Document = dict[str, Any]


def print_ways_in(job: Document, attachment: Attachment, host: str) -> None:
    """The link for the IDE, the shell, and the local ports."""
    told = job.get("job_connection_info") or {}
    if told.get("attached_ide_url"):
        print(f"Open it in {told.get('ide_name') or 'your IDE'}: {told['attached_ide_url']}")
    command = told.get("attached_ssh_command") or ["ssh", attachment.name]
    print(f"Open a shell in it: {' '.join(map(str, command))}")
    for remote, local in attachment.ports.items():
        print(f"Its port {remote} is here: {host}:{local}")
    print("Ctrl-C leaves it.", flush=True)
