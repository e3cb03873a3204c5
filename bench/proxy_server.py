"""Our protocol under uvicorn with static services, for `bench/proxy.py` and `bench/balancing.py`.

    python -m bench.proxy_server PORT BACKEND protocol|asgi

BACKEND is a port, or `unix:/path` (of `bench/proxy_ssh.py`: both replicas are then the same).
`asgi` forwards nothing: an ASGI application that answers 1 KB by itself, the least that any ASGI path costs.
"""

from __future__ import annotations

import sys
from typing import Any

import uvicorn

from dstack.proxy.balancing import ByPrefix, BySession, LeastRequests, Policy
from dstack.proxy.deps import ProxyDependencies
from dstack.proxy.openai.app import ModelsApp
from dstack.proxy.openai.upstream import ServiceUpstream
from dstack.proxy.protocol import make_http_protocol
from dstack.proxy.repo import Model, Service

POLICIES: dict[str, Policy] = {
    "random": None,
    "least_requests": LeastRequests(),
    "session": BySession(b"authorization", None),
    "prefix": ByPrefix(1024, 1.25),
}
"""Of services of these names with two replicas, which are the same one at two addresses."""


class StaticServices:
    """`bench` with one replica, those of `POLICIES`, and `random` as the model `bench`."""

    def __init__(self, backend: str) -> None:
        is_path = backend.startswith("unix:")
        one, two = (backend if is_path else f"127.0.0.{number}:{backend}" for number in (1, 2))
        self._services = {"bench": Service("id", "main", "bench", auth=True, strip_prefix=True, replicas=(one,))}
        for name, policy in POLICIES.items():
            self._services[name] = Service(name, "main", name, True, True, (one, two), balancing=policy)

    def find_service(self, project: str, run: str) -> Service | None:
        return self._services.get(run) if project == "main" else None

    def list_models(self, project: str) -> tuple[Model, ...]:
        return (Model("bench", 0, self._services["random"], prefix="/"),)


class OneToken:
    def is_allowed(self, project: str, token: str, address: str) -> bool:
        return token == "bench-token"


async def answer_alone(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1024")]})
    await send({"type": "http.response.body", "body": b"x" * 1024})


def main() -> None:
    port, backend, design = sys.argv[1:]
    services = StaticServices(backend)
    deps = ProxyDependencies(services, OneToken())
    app: Any = ModelsApp(services, OneToken(), ServiceUpstream(deps)) if design == "protocol" else answer_alone
    http = make_http_protocol(deps) if design == "protocol" else "httptools"
    config: dict[str, Any] = {"loop": "uvloop", "lifespan": "off", "log_level": "error", "access_log": False}
    uvicorn.run(app, port=int(port), http=http, **config)


if __name__ == "__main__":
    main()
