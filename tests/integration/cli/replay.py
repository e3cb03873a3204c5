"""A server that answers as recorded: requests of the CLI are checked against what the reference has on record."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

CAPTURES = Path(__file__).parents[2] / "reference" / "captures"

Answer = tuple[int, Any]
Handler = Callable[[Any], Answer]


def load_capture(name: str) -> dict[str, Any]:
    """The capture whose file name starts with the text."""
    path = next(path for path in sorted(CAPTURES.iterdir()) if path.name.startswith(name))
    capture: dict[str, Any] = json.loads(path.read_text())
    return capture


def recorded(name: str) -> Answer:
    """Status and body of a recorded answer."""
    response = load_capture(name)["response"]
    return response["status"], response["body"]


class ReplayServer:
    """Answers by path; keeps the requests."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        self._handlers: dict[str, Handler] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._make_handler())
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def on(self, path: str, *answers: Answer | Handler) -> None:
        """Answers in turn, the last one again and again. A list in place of a body is sent as JSON lines."""
        left = list(answers)

        def answer(body: Any) -> Answer:
            current = left.pop(0) if len(left) > 1 else left[0]
            return current(body) if callable(current) else current

        self._handlers[path] = answer

    def replay(self, *names: str) -> None:
        """Answers each path of the captures as recorded."""
        for name in names:
            self.on(load_capture(name)["request"]["path"], recorded(name))

    def bodies(self, path: str) -> list[Any]:
        """The bodies of the requests to the path."""
        return [body for requested, _, body in self.requests if requested == path]

    @contextmanager
    def running(self) -> Iterator[ReplayServer]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def _make_handler(self) -> type[BaseHTTPRequestHandler]:
        replay = self

        class Answering(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                is_json = self.headers.get("Content-Type") == "application/json"
                body = json.loads(content) if is_json else (content or None)
                replay.requests.append((self.path, dict(self.headers), body))
                handler = replay._handlers.get(self.path)
                status, answer = handler(body) if handler else (405, {"detail": "Method Not Allowed"})
                self._answer(status, answer)

            def _answer(self, status: int, answer: Any) -> None:
                lines = isinstance(answer, Lines)
                data = (
                    b"".join(json.dumps(item).encode() + b"\n" for item in answer)
                    if lines
                    else json.dumps(answer).encode()
                )
                self.send_response(status)
                self.send_header("Content-Type", "application/x-ndjson" if lines else "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Answering


class Lines(list[Any]):
    """A body of JSON lines."""
