"""Our protocol under uvicorn with one static service, for `bench/proxy.py`.

    python -m bench.proxy_server PORT BACKEND_PORT protocol|asgi

`asgi` forwards nothing: an ASGI application that answers 1 KB by itself, the least that any ASGI path costs.
"""

from __future__ import annotations

import sys
from typing import Any

import uvicorn

from dstack.proxy.deps import ProxyDependencies
from dstack.proxy.protocol import make_http_protocol
from dstack.proxy.repo import Service


class OneService:
    def __init__(self, address: str) -> None:
        self._service = Service("id", "main", "bench", auth=True, strip_prefix=True, replicas=(address,))

    def find_service(self, project: str, run: str) -> Service | None:
        return self._service if (project, run) == ("main", "bench") else None


class OneToken:
    def is_allowed(self, project: str, token: str, address: str) -> bool:
        return token == "bench-token"


async def answer_alone(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1024")]})
    await send({"type": "http.response.body", "body": b"x" * 1024})


def main() -> None:
    port, backend_port, design = sys.argv[1:]
    deps = ProxyDependencies(OneService(f"127.0.0.1:{backend_port}"), OneToken())
    http = make_http_protocol(deps) if design == "protocol" else "httptools"
    config: dict[str, Any] = {"loop": "uvloop", "lifespan": "off", "log_level": "error", "access_log": False}
    uvicorn.run(answer_alone, port=int(port), http=http, **config)


if __name__ == "__main__":
    main()
