"""The service of the examples, published by the server's proxy, from before it runs until after it is stopped."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.harness import ROOT, TOKEN, Cli, ServerProcess, wait_for

EXAMPLE = ROOT / "examples/hello/service.dstack.yml"
PATH = "/proxy/services/main/hello/"


def request(
    server: ServerProcess, path: str = PATH, *, token: str | None = TOKEN, body: bytes | None = None
) -> tuple[int, Any]:
    """Status and body, decoded when it is JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        connection.request("GET" if body is None else "POST", path, body, headers)
        answer = connection.getresponse()
        data = answer.read()
        return answer.status, json.loads(data) if "json" in (answer.getheader("Content-Type") or "") else data
    finally:
        connection.close()


def answers(server: ServerProcess) -> Callable[[], bool]:
    return lambda: request(server)[0] == 200


def tokens_of_members(server: ServerProcess) -> tuple[str, str]:
    """Of a member of `main`, and of one of another project only."""
    tokens = []
    for name, project in (("insider", "main"), ("outsider", "elsewhere")):
        user = server.post("/api/users/create", {"username": name, "global_role": "user"})
        tokens.append(server.post("/api/users/get_user", {"username": user["username"]})["creds"]["token"])
        if project != "main":
            server.post("/api/projects/create", {"project_name": project})
        member = {"username": name, "project_role": "user"}
        server.post(f"/api/projects/{project}/add_members", {"members": [member]})
    return tokens[0], tokens[1]


@pytest.fixture
def port_of_example() -> None:
    """The example listens on port 8000 of the machine, which somebody else may use."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", 8000)) == 0:
            pytest.skip("port 8000, which the example listens on, is in use")


@pytest.mark.usefixtures("port_of_example")
def test_the_example_from_before_it_runs_until_it_is_stopped(cli: Cli) -> None:
    server = cli.server
    insider, outsider = tokens_of_members(server)
    assert request(server)[0] == 404
    status, out = cli("apply", "-y", "-d", "-f", str(EXAMPLE))
    assert status == 0, out
    wait_for("the service", answers(server))
    status, answer = request(server)
    assert (answer["message"], answer["run"]) == ("Hello!", "hello")
    assert request(server, PATH + "health") == (200, {"status": "ok"})
    assert request(server, PATH + "no/such/page")[0] == 404
    assert request(server, body=b"x" * 3_000_000) == (200, {"received_bytes": 3_000_000})
    assert request(server, token=insider)[0] == 200
    for token in (None, "no-such-token", outsider):
        assert request(server, token=token)[0] == 403
    assert request(server, "/proxy/services/main/other/")[0] == 404

    started = answer["up_seconds"]
    assert server.stop() == 0
    server.start()
    assert request(server, token=None)[0] == 403
    status, answer = request(server)
    assert (status, answer["up_seconds"] > started) == (200, True)

    assert cli("stop", "hello", "-y")[0] == 0
    server.wait_run("hello", "terminated")
    assert request(server)[0] == 404
    assert "Traceback" not in server.output


STREAMING = """
import http.server, time
class Stream(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number in range(40):
            self.wfile.write(b"3\\r\\n%02d\\n\\r\\n" % number)
            time.sleep(0.05)
        self.wfile.write(b"0\\r\\n\\r\\n")
    def log_message(self, *arguments):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Stream).serve_forever()
"""


def apply_streaming(server: ServerProcess, folder: Path, port: int) -> None:
    """A service `hello` that sends 40 lines within about two seconds."""
    program = folder / "stream.py"
    program.write_text(STREAMING.replace("PORT", str(port)))
    configuration = {"type": "service", "port": port, "commands": [f"exec python3 {program}"]}
    spec = {"run_name": "hello", "configuration": configuration}
    server.post("/api/project/main/runs/apply", {"plan": {"run_spec": spec}, "force": False})
    wait_for("the service", answers(server), 60)


def test_sigterm_lets_an_open_answer_end(server: ServerProcess, tmp_path: Path, free_port: int) -> None:
    apply_streaming(server, tmp_path, free_port)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.request("GET", PATH, headers={"Authorization": f"Bearer {TOKEN}"})
    answer = connection.getresponse()
    assert answer.readline() == b"00\n"
    assert server.process is not None
    assert server.process.poll() is None
    server.process.terminate()
    assert answer.read() == b"".join(b"%02d\n" % number for number in range(1, 40))
    connection.close()
    assert server.process.wait(timeout=30) == 0
    assert "Traceback" not in server.output
    with pytest.raises(ConnectionRefusedError):
        request(server)
