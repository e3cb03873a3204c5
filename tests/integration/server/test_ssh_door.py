"""Who the SSH door lets in, with a real SSH client against the door of an application on either database."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import uuid
from dataclasses import replace

import asyncssh
import pytest
from sqlalchemy import select, update
from tests.fixtures.api import Api

from dstack.server.db.tables import JobRow, RunRow, SshHostKeyRow
from dstack.server.settings import SshAddress, SshPort
from dstack.server.ssh_door import host_key, visits
from dstack.server.ssh_door.door import SshDoor

RUN_KEY = asyncssh.generate_private_key("ssh-ed25519")


class Door:
    """The door of an application, and how to come to it."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.door: SshDoor = api.app.state.ssh_door
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.port: int = self.listener.getsockname()[1]
        self.door.open(self.listener)

    async def connect(self, user: str, *keys: asyncssh.SSHKey) -> asyncssh.SSHClientConnection:
        """Raises asyncssh.PermissionDenied when it is not let in."""
        return await asyncssh.connect(
            "127.0.0.1",
            self.port,
            username=user,
            client_keys=list(keys),
            known_hosts=None,
            config=None,
            agent_path=None,
            preferred_auth="publickey",
        )

    async def opens(self, user: str, *keys: asyncssh.SSHKey) -> bool:
        try:
            connection = await self.connect(user, *keys)
        except asyncssh.PermissionDenied:
            return False
        connection.close()
        await connection.wait_closed()
        return True

    async def add_job(self, name: str = "run", *, project: str = "main", owner: str = "admin") -> uuid.UUID:
        """A job that runs as far as the database knows, of a run with a key."""
        api = self.api if owner == "admin" else await self.api.as_user(owner)
        spec = {
            "run_name": name,
            "configuration": {"type": "task", "commands": ["true"]},
            "ssh_key_pub": public(RUN_KEY) + " of the run\n",
        }
        run = await api.ok(f"project/{project}/runs/apply", {"plan": {"run_spec": spec}, "force": False})
        return uuid.UUID(run["jobs"][0]["job_submissions"][-1]["id"])

    async def key_of(self, api: Api) -> asyncssh.SSHKey:
        """A new key, registered."""
        key = asyncssh.generate_private_key("ssh-ed25519")
        await api.ok("users/public_keys/add", {"key": public(key) + " laptop"})
        return key


def public(key: asyncssh.SSHKey) -> str:
    """Type and base64."""
    return " ".join(key.export_public_key().decode().split()[:2])


@pytest.fixture
async def door(api: Api) -> Door:
    return Door(api)


async def test_members_come_in_with_their_keys_and_strangers_do_not(door: Door) -> None:
    api = door.api
    member = await api.as_user("member", role="user")
    stranger = await api.as_user("stranger")
    job = str(await door.add_job())
    admin_key, member_key, stranger_key = [await door.key_of(user) for user in (api, member, stranger)]
    made = asyncssh.import_private_key((await member.ok("users/get_my_user"))["ssh_private_key"])
    unknown = asyncssh.generate_private_key("ssh-rsa", key_size=2048)

    for key in (admin_key, member_key, made):
        assert await door.opens(job, key)
        assert await door.opens(f"{job}_root", unknown, key)
    for key in (stranger_key, unknown):
        assert not await door.opens(job, key)
    for user in ("admin", "run", str(uuid.uuid4()), f"{job}_", job[:-1]):
        assert not await door.opens(user, admin_key)


async def test_the_key_of_a_run_opens_its_jobs_only(door: Door) -> None:
    member = await door.api.as_user("member", role="user")
    job, other = await door.add_job("one", owner="member"), await door.add_job("two", owner="member")
    async with door.api.context.database.transaction() as session:
        await session.execute(update(RunRow).where(RunRow.run_name == "two").values(run_spec="{}"))
    assert await door.opens(str(job), RUN_KEY)
    assert not await door.opens(str(other), RUN_KEY)
    await door.api.ok("projects/main/set_members", {"members": [{"username": "admin", "project_role": "admin"}]})
    assert not await door.opens(str(job), RUN_KEY), "its owner has left the project"
    assert not await door.opens(str(job), await door.key_of(member))


async def test_jobs_of_other_projects_and_of_deleted_runs_stay_closed(door: Door) -> None:
    await door.api.ok("projects/create", {"project_name": "other"})
    member = await door.api.as_user("member", role="user")
    key = await door.key_of(member)
    assert not await door.opens(str(await door.add_job("there", project="other")), key)
    job = await door.add_job("gone")
    assert await door.opens(str(job), key)
    async with door.api.context.database.transaction() as session:
        await session.execute(update(RunRow).where(RunRow.run_name == "gone").values(deleted=True))
    assert not await door.opens(str(job), key)


async def test_a_public_key_alone_lets_nobody_in(door: Door) -> None:
    """An offered key names its user before it is proven: only the one whose signature holds counts."""
    victim, thief = door.api, await door.api.as_user("thief")
    job = str(await door.add_job())
    known, own = await door.key_of(victim), await door.key_of(thief)

    with pytest.raises(asyncssh.PermissionDenied):
        await asyncssh.connect(
            "127.0.0.1", door.port, username=job, client_keys=[_forged(own, known)], known_hosts=None, config=None
        )
    assert await door.opens(job, known)


def _forged(own: asyncssh.SSHKey, known: asyncssh.SSHKey) -> asyncssh.SSHKeyPair:
    pair = asyncssh.load_keypairs([own])[0]
    pair.public_data = known.public_data
    return pair


async def test_too_many_wrong_keys_are_turned_away_and_good_ones_are_not(door: Door) -> None:
    job = str(await door.add_job())
    good = await door.key_of(door.api)
    door.api.context.failed_attempts.allowed = 3
    wrong = [asyncssh.generate_private_key("ssh-ed25519") for _ in range(2)]
    reasons = []
    for _ in range(10):
        with pytest.raises(asyncssh.DisconnectError) as caught:
            await door.connect(job, *wrong)
        reasons.append(caught.value.reason)
    assert "Permission denied" in reasons[0]
    assert "Too many failed attempts" in reasons[-1]
    assert await door.opens(job, good)


async def test_a_crowd_at_the_door_is_turned_away(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visits, "MAX_AT_THE_DOOR", 2)
    job = str(await door.add_job())
    silent = [await asyncio.open_connection("127.0.0.1", door.port) for _ in range(2)]
    for reader, _ in silent:
        assert (await reader.readline()).startswith(b"SSH-2.0-")
    with pytest.raises((asyncssh.Error, ConnectionError)):
        await asyncio.wait_for(door.connect(job, RUN_KEY), 10)
    for _, writer in silent:
        writer.close()
        await writer.wait_closed()

    async def is_let_in() -> bool:
        with contextlib.suppress(asyncssh.ConnectionLost, asyncssh.ProtocolError, ConnectionError):
            return await door.opens(job, RUN_KEY)
        return False

    for _ in range(500):
        if await asyncio.wait_for(is_let_in(), 10):
            return
        await asyncio.sleep(0.02)
    pytest.fail("nobody is let in though the crowd has gone")


async def test_whoever_may_not_stay_is_sent_away(door: Door) -> None:
    names = ("left", "deactivated", "stays")
    apis = [await door.api.as_user(name, role="user") for name in names]
    job = str(await door.add_job())
    left, deactivated, stays = [await door.connect(job, await door.key_of(api)) for api in apis]
    await door.api.ok("projects/main/remove_members", {"usernames": ["left"]})
    await asyncio.wait_for(left.wait_closed(), 20)
    await door.api.ok("users/update", {"username": "deactivated", "global_role": "user", "active": False})
    await asyncio.wait_for(deactivated.wait_closed(), 20)
    assert not stays.is_closed()
    stays.close()
    await stays.wait_closed()


async def test_nobody_stays_in_a_job_that_has_ended(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visits, "ENDED_GRACE_SECONDS", 0.1)
    job = await door.add_job()
    connection = await door.connect(str(job), RUN_KEY)
    result = await connection.run("true", check=False)
    assert (result.exit_status, "does not run yet: it is submitted" in str(result.stderr)) == (255, True)
    run = await door.api.ok("project/main/runs/get", {"run_name": "run"})
    project = (await door.api.ok("projects/main/get"))["project_id"]
    async with door.api.context.database.transaction() as session:
        await session.execute(update(JobRow).where(JobRow.id == job).values(status="done"))
    result = await connection.run("true", check=False)
    assert (result.exit_status, "does not run any more: it is done" in str(result.stderr)) == (255, True)
    door.api.context.database.wakeups.publish([f"changed:run:{project}:{run['id']}"])
    await asyncio.wait_for(connection.wait_closed(), 20)


async def test_what_the_door_does_not_do_is_refused(door: Door) -> None:
    connection = await door.connect(str(await door.add_job()), RUN_KEY)
    with pytest.raises(asyncssh.ChannelOpenError, match="only ports of the job are reached here, not example"):
        await connection.open_connection("example.org", 80)
    with pytest.raises(asyncssh.ChannelOpenError, match="does not run yet"):
        await connection.open_connection("localhost", 80)
    with pytest.raises(asyncssh.ChannelListenError):
        await connection.forward_remote_port("", 0, "localhost", 1)
    with pytest.raises(asyncssh.ChannelOpenError):
        await connection.create_process(subsystem="shell")
    connection.close()
    await connection.wait_closed()


async def test_all_replicas_and_starts_have_one_host_key(door: Door) -> None:
    context = door.api.context
    made = await asyncio.gather(*(host_key.ensure(context.database, context.encryption) for _ in range(5)))
    shown = await asyncssh.get_server_host_key("127.0.0.1", door.port, config=None)
    assert shown is not None
    assert {" ".join(pair.public.split()[:2]) for pair in made} == {public(shown)}
    async with context.database.session() as session:
        rows = list(await session.scalars(select(SshHostKeyRow)))
    assert len(rows) == 1
    assert "PRIVATE KEY" not in rows[0].private_key


async def test_a_proxy_gets_the_way_to_a_job_and_may_go_it(sqlite_api: Api) -> None:
    door = Door(sqlite_api)
    context = sqlite_api.context
    context.settings = replace(context.settings, sshproxy_token="proxy", ssh_port=SshPort(door.port))
    proxy = Api(sqlite_api.app, "proxy")
    job = await door.add_job()
    assert (await sqlite_api.post("sshproxy/get_upstream", {"id": str(job)})).status_code == 403
    assert (await proxy.post("sshproxy/get_upstream", {"id": str(job)})).status_code == 400
    async with context.database.transaction() as session:
        await session.execute(update(JobRow).where(JobRow.id == job).values(status="running"))
    member = await sqlite_api.as_user("member", role="user")
    registered = public(await door.key_of(member))
    answer = await proxy.ok("sshproxy/get_upstream", {"id": str(job)})
    host = answer["hosts"][0]
    assert (host["host"], host["port"], host["user"]) == ("127.0.0.1", door.port, str(job))
    assert registered in answer["authorized_keys"]
    assert public(RUN_KEY) in answer["authorized_keys"]
    assert await door.opens(host["user"], asyncssh.import_private_key(host["private_key"]))


async def run_job(door: Door) -> str:
    """The id of a job that runs, as far as the database knows, on a host of that name."""
    job = await door.add_job()
    async with door.api.context.database.transaction() as session:
        values = {"status": "running", "provisioning_data": '{"hostname": "10.0.0.5"}'}
        await session.execute(update(JobRow).where(JobRow.id == job).values(**values))
    return str(job)


async def test_behind_the_door_stands_the_ssh_server_of_the_job(door: Door) -> None:
    job, key = await run_job(door), await door.key_of(door.api)
    outer = await door.connect(job, key)
    with contextlib.closing(outer):
        for host in ("10.0.0.5", "localhost"):
            inner = await asyncssh.connect(
                host, 10022, tunnel=outer, username="root", known_hosts=None, config=None
            )
            with contextlib.closing(inner):
                assert inner.get_extra_info("username") == "root"
                shown = inner.get_server_host_key()
                assert shown is not None
                assert public(shown) == door.door.ctx.ssh_host_key
                with pytest.raises(asyncssh.ChannelOpenError, match="only ports of the job"):
                    await inner.open_connection("10.0.0.6", 80)
        with pytest.raises(asyncssh.ChannelOpenError, match="only ports of the job"):
            await outer.open_connection("10.0.0.6", 10022)
    await outer.wait_closed()


async def test_with_an_enforced_proxy_nobody_else_comes_in(sqlite_api: Api) -> None:
    door = Door(sqlite_api)
    job, key = await run_job(door), await door.key_of(sqlite_api)
    context = sqlite_api.context
    context.settings = replace(
        context.settings,
        ssh_told_address=SshAddress("ssh.example", 22),
        sshproxy_token="proxy",
        sshproxy_enforced=True,
        ssh_port=SshPort(door.port),
    )
    with pytest.raises(asyncssh.DisconnectError, match=r"through ssh\.example:22 only"):
        await door.connect(job, key)
    answer = await Api(sqlite_api.app, "proxy").ok("sshproxy/get_upstream", {"id": job})
    assert await door.opens(job, asyncssh.import_private_key(answer["hosts"][0]["private_key"]))
