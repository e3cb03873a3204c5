"""`python -m dstack.proxy.gateway.main`: the gateway app on the loopback.

`uvicorn dstack.proxy.gateway.main:app` does the same with the default settings.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from dstack.proxy.gateway.app import make_app
from dstack.proxy.gateway.settings import GatewaySettings

DEFAULT_DIR = Path.home() / "dstack"


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Runs the dstack gateway app. Only the server is meant to call it."
    )
    parser.add_argument("--dir", type=Path, default=DEFAULT_DIR, help="state and sockets (default: ~/dstack)")
    parser.add_argument("--port", type=int, default=8000, help="on the loopback (default: 8000)")
    parser.add_argument(
        "--settings",
        type=Path,
        help="JSON file for a host that is not laid out like Debian; instead of the others",
    )
    arguments = parser.parse_args()
    settings = GatewaySettings(dir=arguments.dir.resolve(), app_port=arguments.port)
    if arguments.settings:
        try:
            settings = GatewaySettings.read(arguments.settings)
        except (OSError, ValueError) as error:
            parser.error(f"{arguments.settings} holds no settings of a gateway: {error}")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    uvicorn.run(make_app(settings), host="127.0.0.1", port=settings.app_port, log_config=None, access_log=False)


def __getattr__(name: str) -> FastAPI:
    if name == "app":
        return make_app(GatewaySettings(dir=DEFAULT_DIR))
    raise AttributeError(name)


if __name__ == "__main__":
    main()
