"""`packtrain up` and `down` with a real broker; the coordinator and the agent are stand-ins that write their signs."""

from __future__ import annotations

import http.client
import json
import os
import signal
import stat
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import StringIO
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from packtrain.broker import keys
from packtrain.broker.connection import connect
from packtrain.broker.errors import BrokerUnavailable, SetupError
from packtrain.broker.ids import NodeId
from packtrain.broker.server import find_server
from packtrain.client.cli.flower_page import FlowerPage
from packtrain.client.cli.home import fleet_file, held_home, holder_pid
from packtrain.client.cli.up import UpOptions, run_down, run_up, running_fleet

pytestmark = pytest.mark.integration

_HEAD = (
    "import os, time\n"
    "from packtrain.broker import keys, lifeline\n"
    "from packtrain.broker.connection import connect\n"
    "lifeline.watch()\n"
    "redis = connect(os.environ['PACKTRAIN_URL'], name='stand-in')\n"
)
COORDINATOR = _HEAD + "redis.incr(keys.TERM); redis.set(keys.LEADER, 'me', px=keys.LEADER_TTL_MS)\ntime.sleep(600)\n"
AGENT = _HEAD + (
    "node = os.environ['PACKTRAIN_NODE']\n"
    "redis.hset(keys.node(node), mapping={'node': f'\"{node}\"', 'models': '[\"a\", \"b\"]'})\n"
    "redis.pexpire(keys.node(node), keys.NODE_TTL_MS)\n"
    "redis.zadd(keys.NODES, {node: time.time_ns()})\n"
    "print('pid', os.getpid(), flush=True)\n"
    "print('events', os.environ.get('PACKTRAIN_EVENTS'), 'models', os.environ.get('PACKTRAIN_MODELS'), flush=True)\n"
    "time.sleep(600)\n"
)


def until(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)


@pytest.fixture
def options(tmp_path: Path) -> UpOptions:
    return UpOptions(
        home=tmp_path / "home",
        port=0,
        flower_port=0,
        binary=find_server(search_path=""),
        node=NodeId("n1"),
        drain_s=1,
        quiet=True,
        coordinator=(sys.executable, "-c", COORDINATOR),
        agent=(sys.executable, "-c", AGENT),
    )


@contextmanager
def up_process(options: UpOptions) -> Iterator[subprocess.Popen[str]]:
    """`run_up` in a process of its own, as the command line runs it."""
    code = (
        "import sys; from pathlib import Path; from rich.console import Console\n"
        "from packtrain.client.cli.up import UpOptions, run_up\n"
        "o = UpOptions(home=Path(sys.argv[1]), port=0, node='n1', drain_s=1, print_logs=False,\n"
        "    coordinator=(sys.executable, '-c', sys.argv[2]), agent=(sys.executable, '-c', sys.argv[3]))\n"
        "sys.exit(run_up(o, Console()))\n"
    )
    argv = [sys.executable, "-c", code, str(options.home), options.coordinator[-1], options.agent[-1]]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def read_until(process: subprocess.Popen[str], text: str) -> str:
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if text in line:
            return seen
    raise AssertionError(f"ended without saying {text!r}: {seen}")


def pid_of_broker(home: Path) -> int:
    return int((home / "broker" / "broker.pid").read_text())


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def status_of(flower: FlowerPage, path: str, login: str = "") -> int:
    connection = http.client.HTTPConnection("127.0.0.1", flower.port, timeout=10)
    try:
        connection.request("GET", path, headers={"Authorization": f"Basic {b64encode(login.encode()).decode()}"})
        return connection.getresponse().status
    finally:
        connection.close()


def test_fleet_is_found_through_its_home_while_it_runs_and_gone_afterwards(options: UpOptions) -> None:
    with running_fleet(options) as fleet:
        announced = json.loads(fleet_file(options.home).read_text())
        mode = stat.S_IMODE(fleet_file(options.home).stat().st_mode)
        pids = fleet.pids
        broker_pid = pid_of_broker(options.home)

    assert announced["url"] == fleet.url
    assert announced["pid"] == os.getpid()
    assert mode == 0o600
    assert set(pids) == {"broker", "coordinator", "agent"}
    assert fleet.num_models == 2
    assert not fleet_file(options.home).exists()
    assert not any(is_running(pid) for pid in (*pids.values(), broker_pid))


def test_second_fleet_in_the_same_home_is_refused_with_the_first_ones_pid(options: UpOptions) -> None:
    with (
        held_home(options.home),
        pytest.raises(SetupError, match=rf"process {os.getpid()}.*packtrain down"),
        running_fleet(options),
    ):
        pass

    assert holder_pid(options.home) is None


def test_signs_of_an_earlier_run_do_not_count_as_readiness(options: UpOptions) -> None:
    silent = (
        sys.executable,
        "-c",
        "import time; from packtrain.broker import lifeline; lifeline.watch(); time.sleep(600)",
    )
    with running_fleet(options):
        pass

    with (
        pytest.raises(SetupError, match="agent was not ready"),
        running_fleet(replace(options, agent=silent, ready_timeout_s=3)),
    ):
        pass


def test_external_broker_is_used_and_left_running(options: UpOptions, tmp_path: Path) -> None:
    with running_fleet(options) as first:
        second = replace(options, home=tmp_path / "second", node=NodeId("n2"), broker_url=first.url)
        with running_fleet(second) as fleet:
            assert set(fleet.pids) == {"coordinator", "agent"}
            assert fleet.broker == "external"

        client = connect(first.url, name="test", retries=0)
        assert client.exists(keys.NODES)
        client.close()


def test_external_broker_that_is_not_there_is_an_error_without_its_password(options: UpOptions) -> None:
    with (
        pytest.raises(BrokerUnavailable, match=r":\*\*\*@127\.0\.0\.1:1/"),
        running_fleet(replace(options, broker_url="redis://:secret@127.0.0.1:1/0")),
    ):
        pass


def test_up_prints_one_page_without_secrets_and_down_stops_it(options: UpOptions) -> None:
    screen = StringIO()
    with up_process(options) as up:
        page = read_until(up, "a second one kills")
        password = (options.home / "broker" / "password").read_text().strip()
        broker_pid = pid_of_broker(options.home)

        code = run_down(options.home, Console(file=screen))

        assert code == 0
        assert up.wait(20) == 0
    assert "models  2" in page
    assert "redis://:***@127.0.0.1:" in page
    assert password not in page
    assert "has stopped" in screen.getvalue()
    assert not is_running(broker_pid)


def test_ctrl_c_stops_the_fleet_cleanly(options: UpOptions) -> None:
    with up_process(options) as up:
        read_until(up, "a second one kills")

        up.send_signal(signal.SIGINT)

        assert up.wait(20) == 0
    assert not fleet_file(options.home).exists()


def test_everything_ends_when_up_is_killed_and_the_next_up_keeps_the_data(options: UpOptions) -> None:
    with up_process(options) as up:
        read_until(up, "a second one kills")
        url = json.loads(fleet_file(options.home).read_text())["url"]
        client = connect(url, name="test", retries=0)
        client.set("kept", "yes")
        client.close()
        leftover = pid_of_broker(options.home)
        agent = int((options.home / "logs" / "agent.log").read_text().split()[1])

        up.kill()
        up.wait()

        assert run_down(options.home, Console(file=StringIO())) == 0
        with running_fleet(options) as fleet:
            client = connect(fleet.url, name="test", retries=0)
            assert client.get("kept") == "yes"
            client.close()
            until(lambda: not is_running(leftover))
            until(lambda: not is_running(agent))


def test_down_says_so_when_nothing_runs(tmp_path: Path) -> None:
    screen = StringIO()

    assert run_down(tmp_path, Console(file=screen)) == 0
    assert "no fleet runs" in screen.getvalue()


def test_failing_child_ends_up_with_code_one_and_its_last_words(options: UpOptions) -> None:
    screen = StringIO()
    broken = replace(
        options, agent=(sys.executable, "-c", "raise SystemExit('no such model folder')"), ready_timeout_s=2
    )

    assert run_up(broken, Console(file=screen)) == 1
    assert "no such model folder" in screen.getvalue()
    assert holder_pid(options.home) is None


def test_flower_is_on_loopback_behind_a_password_that_no_argument_shows(
    options: UpOptions, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "packtrain.py").write_text("raise SystemExit('imported from the current folder')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLOWER_ADDRESS", "0.0.0.0")
    monkeypatch.setenv("FLOWER_BASIC_AUTH", "left:over")
    with running_fleet(replace(options, flower=True)) as fleet:
        flower = fleet.flower
        assert flower is not None
        arguments = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout

        assert status_of(flower, "/") == 401
        assert status_of(flower, "/", "left:over") == 401
        assert status_of(flower, "/", f"packtrain:{flower.password}") == 200
        assert flower.password not in arguments
        assert fleet.url not in arguments
        assert stat.S_IMODE(flower.conf_file.stat().st_mode) == 0o600
        assert json.loads(fleet_file(options.home).read_text())["flower_url"] == flower.url
        until(lambda: "events 1" in (options.home / "logs" / "agent.log").read_text())


def test_missing_flower_names_the_remedy(options: UpOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flower", None)

    with (
        pytest.raises(SetupError, match=r"its \[monitor\] extra"),
        running_fleet(replace(options, flower=True)),
    ):
        pass
