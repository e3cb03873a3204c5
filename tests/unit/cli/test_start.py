"""What starting the command costs, and what it says without doing anything."""

from __future__ import annotations

import subprocess
import sys

from dstack import __version__

HEAVY = {"pydantic", "rich", "urllib3", "fastapi", "sqlalchemy", "asyncssh", "yaml", "asyncio", "http.client"}


def _modules(*argv: str) -> set[str]:
    code = (
        "import sys\nfrom dstack.cli import main\n"
        "try:\n    main.main(sys.argv[1:])\nexcept SystemExit: pass\nprint('MODULES', *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=True)
    return set(done.stdout.rpartition("MODULES")[2].split())


def test_help_loads_nothing_heavy() -> None:
    assert not _modules("--help") & HEAVY


def test_ps_loads_no_models() -> None:
    loaded = _modules("ps", "--project", "nowhere")
    assert not loaded & (HEAVY - {"yaml", "http.client"})


def test_usage() -> None:
    def dstack(*argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "dstack", *argv], capture_output=True, text=True, check=False)

    assert dstack().stdout == dstack("--help").stdout
    assert dstack("-v").stdout == f"{__version__}\n"
    unknown = dstack("nope")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "invalid choice: 'nope'" in unknown.stderr
    extra = dstack("ps", "--nope")
    assert (extra.returncode, extra.stdout) == (1, "Unrecognized arguments: --nope; see `dstack ps --help`\n")
