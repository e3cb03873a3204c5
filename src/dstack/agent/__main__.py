"""`python -m dstack.agent`, and the entry point of the zipapp."""

import sys

from dstack.agent.main import main

if __name__ == "__main__":
    sys.exit(main())
