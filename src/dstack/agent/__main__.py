"""`python -m dstack.agent`, and the entry point of the zipapp."""

import sys

import dstack.agent.without_openssl  # noqa: F401 - has to come first
from dstack.agent.main import main

if __name__ == "__main__":
    sys.exit(main())
