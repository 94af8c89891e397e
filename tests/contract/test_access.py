"""The rules of every user, asked of a real server: what the table allows is allowed, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import AuthenticationError, ConnectionError, NoPermissionError

from packtrain.broker.access import GROUPS, RIGHTS, Role, user_of
from packtrain.broker.connection import connect
from packtrain.broker.ids import NodeId
from packtrain.broker.server import BrokerServer
from packtrain.broker.users import UserFiles, admit, machines, revoke, with_user

pytestmark = pytest.mark.contract

ROLES = list(RIGHTS)
NEVER = [
    "FLUSHALL", "FLUSHDB", "KEYS *", "SCAN 0", "CONFIG GET *", "CONFIG SET maxmemory 1", "DEBUG SLEEP 0", "SHUTDOWN",
    "ACL LIST", "ACL SETUSER x", "ACL WHOAMI", "MONITOR", "CLIENT LIST", "CLIENT KILL ID 1", "SCRIPT FLUSH",
    "FUNCTION LIST", "EVAL return 0", "SAVE", "BGREWRITEAOF", "REPLICAOF no one", "MIGRATE h 1 k 0 1", "RANDOMKEY",
    "SWAPDB 0 1", "MODULE LIST", "LATENCY RESET", "SLOWLOG GET", "RESTORE pt:job:x 0 x",
]  # fmt: skip


@pytest.fixture
def admin(broker: BrokerServer) -> Iterator[Redis]:
    client = connect(broker.url, name="test", retries=0)
    yield client
    client.close()


def may(admin: Redis, user: str, *words: str) -> bool:
    said = admin.execute_command("ACL", "DRYRUN", user, *words)  # type: ignore[no-untyped-call]
    return bool(said == "OK")


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.value)
def test_a_user_reads_and_writes_what_the_table_says(admin: Redis, role: Role) -> None:
    for name, group in GROUPS.items():
        reach = RIGHTS[role].keys.get(name, "")
        for pattern in group.patterns:
            key = pattern.format(node="n1").replace("*", "x")

            assert may(admin, role.value, "HGET", key, "f") == ("r" in reach), f"{role} reads {key}"
            assert may(admin, role.value, "HSET", key, "f", "v") == ("w" in reach), f"{role} writes {key}"
            assert may(admin, role.value, "DEL", key) == ("w" in reach), f"{role} deletes {key}"
    assert not may(admin, role.value, "GET", "somebody:elses")


@pytest.mark.parametrize("command", NEVER)
def test_what_concerns_the_server_is_refused(admin: Redis, command: str) -> None:
    words = [*command.split(" ", 1), "0"] if command.startswith("EVAL") else command.split()

    assert not [role for role in ROLES if may(admin, role.value, *words)]


def test_only_who_runs_scripts_may_load_some(admin: Redis) -> None:
    may_load = {role.value for role in ROLES if may(admin, role.value, "SCRIPT", "LOAD", "return 0")}

    assert may_load == {role.value for role in ROLES} - {"reader"}


def test_only_workers_and_flower_hear_remote_control(admin: Redis) -> None:
    channels = {r.value for r in ROLES if may(admin, r.value, "PUBLISH", "/0.celery.pidbox", "x")}

    assert channels == {"node", "flower"}
    assert not [r for r in ROLES if may(admin, r.value, "PUBLISH", "mine", "x")]


def test_a_machine_is_let_in_alone_and_thrown_out_alone(broker: BrokerServer, admin: Redis) -> None:
    attic, cellar = NodeId("attic"), NodeId("cellar")
    of_attic = with_user(broker.url, user_of(attic), admit(admin, attic) or "")
    of_cellar = with_user(broker.url, user_of(cellar), admit(admin, cellar) or "")
    with connect(of_attic, name="attic", retries=0) as there, connect(of_cellar, name="cellar", retries=0) as other:
        there.hset("pt:node:attic", "f", "v")
        there.delete("pt:node:attic")
        assert other.hgetall("pt:node:attic") == {}
        for refused in ("pt:node:attic", "node.attic", "pt:offers:attic"):
            with pytest.raises(NoPermissionError):
                other.lpush(refused, "x")

        assert machines(admin) == [attic, cellar]
        assert revoke(admin, attic)
        assert not revoke(admin, attic)
        with pytest.raises((AuthenticationError, ConnectionError)):  # its connection is gone, and it gets no other
            there.get("pt:term")
        assert other.get("pt:term") is None
    assert revoke(admin, cellar)


def test_who_joins_again_has_a_new_password_and_the_old_one_is_refused(broker: BrokerServer, admin: Redis) -> None:
    attic = NodeId("attic")
    old = admit(admin, attic) or ""
    new = admit(admin, attic) or ""
    connect(with_user(broker.url, user_of(attic), new), name="t", retries=0).ping()
    with pytest.raises(AuthenticationError):
        connect(with_user(broker.url, user_of(attic), old), name="t", retries=0).ping()
    revoke(admin, attic)


def test_machines_are_kept_when_the_file_is_written_anew(broker: BrokerServer, admin: Redis) -> None:
    """As at each start of `packtrain up`, which may bring other rules."""
    attic = NodeId("attic")
    admit(admin, attic)
    before = [text for text in broker.users.acl_file.read_text().splitlines() if text.startswith("user node-attic")]
    broker.users.write()
    admin.acl_load()

    assert before
    assert machines(admin) == [attic]
    revoke(admin, attic)
    assert "node-attic" not in broker.users.acl()


def test_a_server_without_a_file_of_users_keeps_none(tmp_path: Path, admin: Redis) -> None:
    """Then machines get the common password, rather than one that a restart of the server would forget."""

    class NoFile:
        def __getattr__(self, name: str) -> object:
            return getattr(admin, name)

        def execute_command(self, *words: str) -> object:
            if words[:2] == ("ACL", "SAVE"):
                words = ("ACL", "LOAD", "nowhere")  # refused as it would be
            return admin.execute_command(*words)  # type: ignore[no-untyped-call]

    assert admit(NoFile(), NodeId("attic")) is None  # type: ignore[arg-type]
    assert machines(admin) == []


def test_passwords_are_made_once_and_private(tmp_path: Path) -> None:
    files = UserFiles(tmp_path)
    acl = files.acl()
    passwords = {role: files.password(role) for role in Role}

    assert files.acl() == acl
    assert len(set(passwords.values())) == len(Role)
    assert not [password for password in passwords.values() if password in acl]
    assert {(tmp_path / "users" / role.value).stat().st_mode & 0o777 for role in RIGHTS} == {0o600}
