"""A service `web` for end-to-end tests, and clients that never stop asking."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.e2e.harness import TOKEN, ServerProcess
from tests.fixtures.ports import take_free_port

PROGRAM = """
import http.server, json, os, pathlib, time
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer is written at once
    def do_GET(self):
        if self.path == "/slow":
            time.sleep(1.5)
        is_ill = self.path == "/health" and pathlib.Path(os.environ["ILL"] + os.environ["DSTACK_JOB_ID"]).exists()
        body = json.dumps({"version": os.environ["VERSION"], "job": os.environ["DSTACK_JOB_ID"]}).encode()
        self.send_response(503 if is_ill else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *arguments):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
"""


class Service:
    """A service `web` whose program listens on one fixed port in every replica."""

    def __init__(self, server: ServerProcess, folder: Path) -> None:
        self.server = server
        self.folder = folder
        """Its replicas are ill while there is a file `ill-<job>` here."""
        self.port = take_free_port()
        (folder / "program.py").write_text(PROGRAM.replace("PORT", str(self.port)))

    def configuration(self, version: str, **more: Any) -> dict[str, Any]:
        env = {"VERSION": version, "ILL": str(self.folder / "ill-")}
        commands = [f"exec python3 {self.folder}/program.py"]
        return {"type": "service", "port": self.port, "commands": commands, "env": env, **more}

    def apply(self, version: str, **more: Any) -> str:
        """Plans and applies; the plan's action."""
        spec = {"run_name": "web", "configuration": self.configuration(version, **more)}
        plan = self.server.post("/api/project/main/runs/get_plan", {"run_spec": spec})
        wanted = {"run_spec": spec, "current_resource": plan["current_resource"]}
        self.server.post("/api/project/main/runs/apply", {"plan": wanted, "force": False})
        return str(plan["action"])

    def ask(self, path: str = "") -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        try:
            headers = {"Authorization": f"Bearer {TOKEN}"}
            connection.request("GET", f"/proxy/services/main/web/{path}", headers=headers)
            answer = connection.getresponse()
            data = answer.read()
            return answer.status, json.loads(data)
        finally:
            connection.close()

    def answering(self) -> set[str]:
        """The jobs that take traffic, as far as some requests tell."""
        answers = [self.ask() for _ in range(12)]
        return {answer["job"] for status, answer in answers if status == 200}

    def versions(self) -> set[str]:
        """Of the replicas that take traffic, as far as some requests tell."""
        answers = [self.ask() for _ in range(12)]
        return {answer["version"] for status, answer in answers if status == 200}

    def replicas(self) -> list[dict[str, Any]]:
        """The newest submissions of the replicas that run."""
        newest = [job["job_submissions"][-1] for job in self.server.run("web")["jobs"]]
        return [one for one in newest if one["status"] == "running"]

    def is_settled(self, count: int, deployment_num: int) -> Callable[[], bool]:
        def holds() -> bool:
            newest = [job["job_submissions"][-1] for job in self.server.run("web")["jobs"]]
            living = [one for one in newest if one["finished_at"] is None]
            return [(one["status"], one["deployment_num"]) for one in living] == [
                ("running", deployment_num)
            ] * count

        return holds

    @contextmanager
    def requests(self) -> Iterator[Counter[int]]:
        """Without a break, from two clients, while the block runs: how many answers had which status."""
        seen: Counter[int] = Counter()
        is_over = threading.Event()

        def go_on(path: str) -> None:
            while not is_over.is_set():
                try:
                    seen[self.ask(path)[0]] += 1
                except (OSError, http.client.HTTPException):
                    seen[0] += 1
                time.sleep(0.005)

        clients = [threading.Thread(target=go_on, args=(path,)) for path in ("", "slow")]
        for client in clients:
            client.start()
        try:
            yield seen
        finally:
            is_over.set()
            for client in clients:
                client.join()
