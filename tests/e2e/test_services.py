"""Services with several replicas on one machine: rollouts without a failed request, probes, scaling from zero."""

from __future__ import annotations

import contextlib
import http.client
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.harness import TOKEN, Cli, ServerProcess, agent_call, wait_for
from tests.e2e.web import PROGRAM, Service


@pytest.fixture
def service(server: ServerProcess, tmp_path: Path) -> Service:
    return Service(server, tmp_path)


@pytest.mark.timeout(300)
def test_b8_a_rollout_fails_no_request_and_a_bad_version_changes_nothing(service: Service) -> None:
    assert service.apply("one", replicas=2) == "create"
    wait_for("both replicas", lambda: len(service.answering()) == 2)
    with service.requests() as seen:
        assert service.apply("two", replicas=2) == "update"
        wait_for("the new version", service.is_settled(2, 1), 60)
        assert service.versions() == {"two"}

        service.apply("three", replicas=2, commands=["exit 3"])
        run = wait_for("the failure", lambda: error(service.server))
        assert "exit status 3" in run
        wait_for("the version before", service.is_settled(2, 3), 60)
        assert service.versions() == {"two"}
    assert set(seen) == {200}, seen
    assert service.server.run("web")["run_spec"]["configuration"]["env"]["VERSION"] == "two"
    assert "Traceback" not in service.server.output


def error(server: ServerProcess) -> str:
    run = server.run("web")
    assert run["status"] == "running"
    return run["error"] or ""


@pytest.mark.timeout(300)
def test_b7_a_request_wakes_a_service_that_sleeps_and_is_answered(service: Service) -> None:
    scaling = {"metric": "rps", "target": 1, "window": "30s", "scale_up_delay": 0, "scale_down_delay": 0}
    assert service.ask()[0] == 404
    service.apply("one", replicas="0..2", scaling=scaling)
    assert service.server.wait_run("web", "pending")["jobs"] == []
    assert service.server.call("GET", "/proxy/services/main/web/", token=TOKEN)["version"] == "one"
    assert service.server.run("web")["status"] == "running"
    with service.requests() as seen:  # two clients make far more than one request a second
        wait_for("a second replica", lambda: len(service.replicas()) == 2)
    assert set(seen) == {200}, seen
    wait_for("sleep", lambda: service.server.run("web")["status"] == "pending", 90)
    assert service.ask()[0] == 200


def test_b10_requests_at_work_bring_replicas_and_are_shown(
    make_server: Callable[..., ServerProcess], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    server = make_server(DSTACK_ENABLE_PROMETHEUS_METRICS="1").start()
    service = Service(server, tmp_path)
    scaling = {"metric": "in_flight", "target": 1, "window": "30s", "scale_up_delay": 0}
    service.apply("one", replicas="1..2", scaling=scaling)
    wait_for("the service", lambda: service.ask()[0] == 200)
    with ThreadPoolExecutor(8) as clients:
        while len(service.replicas()) < 2:
            assert {answer[0] for answer in clients.map(service.ask, ["slow"] * 8)} == {200}
    run = server.run("web")
    told = run["run_spec"]["configuration"]["scaling"]
    assert (told["metric"], told["effective_metric"]) == ("rps", "in_flight"), "published clients know rps alone"
    stats = wait_for("all requests", lambda: told_of_all(server)) or {}
    assert stats["errors"] == stats["prompt_tokens"] == 0
    assert stats["first_byte"]["mean"] <= stats["latency"]["mean"] <= 2 * stats["latency"]["p99"]
    assert "/s, p50 " in Cli(server)("ps", "-v")[1]
    assert 'dstack_service_requests_total{project="main",run="web"}' in server.call("GET", "/metrics").decode()


def told_of_all(server: ServerProcess) -> dict[str, Any] | None:
    stats: dict[str, Any] | None = server.run("web")["service_stats"]
    return stats if stats and stats["requests"] >= 9 and not stats["in_flight"] else None


def test_b6_replicas_are_probed(service: Service) -> None:
    probe = {"type": "http", "url": "/health", "interval": "1s", "ready_after": 2}
    service.apply("one", replicas=2, probes=[probe])
    wait_for("both replicas", lambda: len(service.answering()) == 2)
    ill = service.replicas()[0]
    assert ill["probes"][0]["success_streak"] >= 2
    (service.folder / f"ill-{ill['id']}").touch()
    wait_for("the other one alone", lambda: ill["id"] not in service.answering())
    (service.folder / f"ill-{ill['id']}").unlink()
    wait_for("both again", lambda: len(service.answering()) == 2)


def test_an_update_of_balancing_holds_from_the_next_request_on(service: Service) -> None:
    """And leaves the replicas as they are."""
    service.apply("one", replicas=2)
    wait_for("both replicas", lambda: len(service.answering()) == 2)
    before = [replica["id"] for replica in service.replicas()]
    by_session = {"policy": "session", "header": "Authorization"}
    assert service.apply("one", replicas=2, balancing=by_session) == "update"
    assert len(service.answering()) == 1
    shown = service.server.run("web")["run_spec"]["configuration"]["balancing"]
    assert shown == {**by_session, "cookie": None}
    assert service.apply("one", replicas=2) == "update"
    assert len(service.answering()) == 2
    assert [replica["id"] for replica in service.replicas()] == before
    assert "balancing" not in service.server.run("web")["run_spec"]["configuration"]


CRASHES = ("run:after-record:1", "job:before-facts:1", "job:after-record:6")


@pytest.mark.timeout(300)
def test_a_rollout_goes_on_though_the_server_dies(service: Service) -> None:
    """At different points, each in a rollout of its own: one replica of the new version is left each time."""
    server = service.server
    service.apply("0")
    wait_for("the service", lambda: service.ask()[0] == 200)
    for number, crash_at in enumerate(CRASHES, 1):
        assert server.stop() == 0
        server.start(DSTACK_TEST_CRASH_AT=crash_at)
        version = str(number)
        with contextlib.suppress(OSError, http.client.HTTPException):  # it may die while it answers
            service.apply(version)
        assert server.process is not None
        assert server.process.wait(timeout=30) == -signal.SIGKILL, crash_at
        server.start()
        if server.run("web")["run_spec"]["configuration"]["env"]["VERSION"] != version:
            service.apply(version)
        wait_for(f"version {version} after {crash_at}", service.is_settled(1, number), 60)
        assert service.versions() == {version}, crash_at
        tasks = agent_call(server.home, "GET", "/v1/tasks")["tasks"]
        assert [task["status"] for task in tasks] == ["running"], crash_at
    assert "Traceback" not in server.output


def test_an_update_and_a_stop_may_come_during_a_rollout(service: Service) -> None:
    server = service.server
    slow = [{"type": "http", "url": "/health", "interval": "1s", "ready_after": 1000}]
    service.apply("one")
    wait_for("the service", lambda: service.ask()[0] == 200)
    service.apply("two", probes=slow)
    wait_for("a replica that is not ready", lambda: len(service.replicas()) == 2)
    assert service.versions() == {"one"}
    service.apply("three")
    wait_for("the third version", service.is_settled(1, 2), 60)
    assert service.versions() == {"three"}

    service.apply("four", probes=slow)
    wait_for("a replica that is not ready", lambda: len(service.replicas()) == 2)
    server.post("/api/project/main/runs/stop", {"runs_names": ["web"], "abort": False})
    run = server.wait_run("web", "terminated")
    assert {job["job_submissions"][-1]["finished_at"] is not None for job in run["jobs"]} == {True}
    wait_for("nothing is left", lambda: agent_call(server.home, "GET", "/v1/tasks")["tasks"] == [])
    assert service.ask()[0] == 404


@pytest.mark.timeout(300)
def test_two_servers_wake_count_and_replace_together(
    make_server: Callable[..., ServerProcess], postgres_url: str, tmp_path: Path
) -> None:
    """On one PostgreSQL: what one server sees has effects that the other carries out, and both publish."""
    shared = {"DSTACK_DATABASE_URL": postgres_url, "DSTACK_SERVER_DIR": str(tmp_path / "shared")}
    first, second = (make_server(name, **shared).start() for name in ("first", "second"))
    service, other = Service(first, tmp_path), Service(second, tmp_path)
    other.port = service.port
    (tmp_path / "program.py").write_text(PROGRAM.replace("PORT", str(service.port)))
    scaling = {"metric": "rps", "target": 1000, "scale_down_delay": "1h"}
    service.apply("one", replicas="0..1", scaling=scaling)
    assert other.ask()[0] == 200
    assert service.ask()[0] == 200
    with service.requests() as seen, other.requests() as seen_by_other:
        other.apply("two", replicas="0..1", scaling=scaling)
        wait_for("the new version", service.is_settled(1, 1), 60)
        assert service.versions() == other.versions() == {"two"}
    assert (set(seen), set(seen_by_other)) == ({200}, {200})
    for server in (first, second):
        assert "Traceback" not in server.output
