"""`python -m dstack` is `dstack`."""

from dstack.cli.main import main

main()
