"""The supervisor, with small real processes as children."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from io import StringIO
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from packtrain.broker.errors import SetupError
from packtrain.client.cli.child_log import ChildLog
from packtrain.client.cli.restarts import RestartPolicy
from packtrain.client.cli.supervisor import Child, StopAsked, Supervisor

pytestmark = pytest.mark.integration

#: The waits of the real policy, a hundred times shorter.
hasty = partial(RestartPolicy, first_delay_s=0.01, longest_delay_s=0.3)

SLEEP = "import time; print('here', flush=True); time.sleep(600)"
STUBBORN = (
    "import signal, time\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "print('here', flush=True)\n"
    "while True: time.sleep(1)\n"
)


def until(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)


def python(name: str, code: str, *args: str, ready: Callable[[], bool] | None = None) -> Child:
    return Child(name, [sys.executable, "-c", code, *args], {}, ready)


def is_gone(pid: int) -> bool:
    """True once it has ended; an orphan may stay a zombie where nobody plays init."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def lines_of(supervisor: Supervisor, name: str) -> list[str]:
    path = supervisor.logs / f"{name}.log"
    return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    supervisor = Supervisor(tmp_path / "logs", policy=hasty)
    yield supervisor
    supervisor.kill()
    supervisor.stop(0)


def test_lines_of_a_child_reach_its_log_and_the_terminal_with_its_name(tmp_path: Path) -> None:
    screen = StringIO()
    supervisor = Supervisor(tmp_path, console=Console(file=screen))
    supervisor.start(
        python(
            "talker", "import sys, time; print('out [red]' + 'x' * 200); print('err', file=sys.stderr); time.sleep(600)"
        )
    )
    until(lambda: len(lines_of(supervisor, "talker")) == 2)

    supervisor.stop(5)

    assert lines_of(supervisor, "talker") == ["out [red]" + "x" * 200, "err"]
    assert screen.getvalue().splitlines() == ["talker       out [red]" + "x" * 200, "talker       err"]


def test_control_characters_of_a_child_cannot_steer_the_terminal(tmp_path: Path) -> None:
    screen = StringIO()
    log = ChildLog(tmp_path / "a.log", console=Console(file=screen))

    log.write("name\x1b[2J\x07.gguf")
    log.close()

    assert screen.getvalue() == "a            name?[2J?.gguf\n"


def test_log_is_rotated_once_it_is_large(tmp_path: Path) -> None:
    log = ChildLog(tmp_path / "a.log", rotate_bytes=100)

    for number in range(50):
        log.write(f"line {number:04d}")
    log.close()

    assert {path.name for path in tmp_path.iterdir()} == {"a.log", "a.log.1"}
    assert (tmp_path / "a.log").stat().st_size <= 100
    assert (tmp_path / "a.log").read_text().endswith("line 0049\n")


def test_log_that_cannot_be_written_does_not_stop_the_reader(tmp_path: Path) -> None:
    log = ChildLog(tmp_path / "no such folder" / "a.log")
    reader, writer = os.pipe()
    with open(writer, "wb") as pipe:
        pipe.write(b"one\ntwo\n")

    log.read_all(os.fdopen(reader, "rb"))

    assert log.tail() == ["one", "two"]


def test_crashed_child_is_started_again(supervisor: Supervisor, tmp_path: Path) -> None:
    supervisor.start(python("worker", SLEEP))
    until(lambda: lines_of(supervisor, "worker") == ["here"])
    first = supervisor.pids()["worker"]

    os.kill(first, signal.SIGKILL)

    until(lambda: lines_of(supervisor, "worker").count("here") == 2)
    assert supervisor.pids()["worker"] != first
    assert "killed by SIGKILL" in lines_of(supervisor, "worker")[1]


def test_fifth_fast_failure_gives_up_and_shows_the_last_words(supervisor: Supervisor) -> None:
    supervisor.start(python("broken", "import sys; sys.exit('no such setting: colour')"))

    with pytest.raises(SetupError, match=r"(?s)broken ended 5 times.*exit code 1.*no such setting: colour") as caught:
        supervisor.wait()

    assert caught.value.data["child"] == "broken"
    assert lines_of(supervisor, "broken").count("no such setting: colour") == 5


def test_failure_ends_the_wait_for_readiness_too(supervisor: Supervisor) -> None:
    supervisor.start(python("broken", "raise SystemExit(3)", ready=lambda: False))

    with pytest.raises(SetupError, match="exit code 3"):
        supervisor.wait_ready(20)


def test_modules_in_the_current_folder_are_not_imported_by_children(
    supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "queue.py").write_text("raise SystemExit('imported from the current folder')")
    monkeypatch.chdir(tmp_path)

    supervisor.start(Child("guard", [sys.executable, "-m", "packtrain.broker.guard", "0", sys.executable, "-c", SLEEP]))

    until(lambda: lines_of(supervisor, "guard") == ["here"])


def test_missing_program_is_named(supervisor: Supervisor) -> None:
    supervisor.start(Child("ghost", ["/no/such/program"]))

    with pytest.raises(SetupError, match="cannot start /no/such/program"):
        supervisor.wait()


def test_child_that_is_never_ready_is_named(supervisor: Supervisor) -> None:
    supervisor.start(python("slow", SLEEP, ready=lambda: False))

    with pytest.raises(SetupError, match=r"slow was not ready after 0\.1 s"):
        supervisor.wait_ready(0.1)


def test_interrupt_ends_the_wait_for_readiness(supervisor: Supervisor) -> None:
    supervisor.start(python("slow", SLEEP, ready=lambda: False))
    threading.Timer(0.05, supervisor.interrupt).start()

    with pytest.raises(StopAsked):
        supervisor.wait_ready(20)


def test_children_end_in_reverse_order_each_before_the_next_is_asked(supervisor: Supervisor, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    code = (
        "import pathlib, signal, sys, time\n"
        "def end(*_):\n"
        "    for word in ('asked', 'gone'):\n"
        "        with open(sys.argv[2], 'a') as file: file.write(f'{sys.argv[1]} {word}\\n')\n"
        "        time.sleep(0.05)\n"
        "    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "print('here', flush=True)\n"
        "time.sleep(600)\n"
    )
    for name in ("broker", "coordinator", "agent"):
        supervisor.start(python(name, code, name, str(journal)))
    until(lambda: all(lines_of(supervisor, name) for name in ("broker", "coordinator", "agent")))

    supervisor.stop(10)

    assert journal.read_text().splitlines() == [
        "agent asked",
        "agent gone",
        "coordinator asked",
        "coordinator gone",
        "broker asked",
        "broker gone",
    ]


def test_child_that_ignores_sigterm_is_killed_at_the_deadline(supervisor: Supervisor) -> None:
    supervisor.start(python("stubborn", STUBBORN))
    until(lambda: bool(lines_of(supervisor, "stubborn")))
    pid = supervisor.pids()["stubborn"]

    supervisor.stop(0.2)

    assert is_gone(pid)
    assert supervisor.pids() == {}
    assert lines_of(supervisor, "stubborn")[-1].endswith("did not end in time: killed")


def test_second_interrupt_kills_at_once(supervisor: Supervisor) -> None:
    supervisor.start(python("stubborn", STUBBORN))
    until(lambda: bool(lines_of(supervisor, "stubborn")))
    stopper = threading.Thread(target=supervisor.stop, args=(600,))

    supervisor.interrupt()
    stopper.start()
    supervisor.interrupt()

    stopper.join(20)
    assert not stopper.is_alive()


def test_grandchild_ends_with_its_parent(supervisor: Supervisor) -> None:
    code = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {SLEEP!r}])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    supervisor.start(python("parent", code))
    until(lambda: len(lines_of(supervisor, "parent")) == 2)
    grandchild = next(int(line) for line in lines_of(supervisor, "parent") if line.isdigit())

    supervisor.stop(5)

    until(lambda: is_gone(grandchild))


def test_child_in_its_wait_before_a_restart_does_not_start_any_more(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path, policy=partial(RestartPolicy, first_delay_s=600, longest_delay_s=600))
    supervisor.start(python("broken", "print('here')"))
    until(lambda: len(lines_of(supervisor, "broken")) == 2)

    supervisor.stop(5)

    assert lines_of(supervisor, "broken").count("here") == 1


def test_children_of_a_killed_supervisor_end_by_their_lifeline(tmp_path: Path) -> None:
    child = "from packtrain.broker import lifeline; lifeline.watch(); " + SLEEP
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from packtrain.client.cli.supervisor import Child, Supervisor\n"
        "supervisor = Supervisor(Path(sys.argv[1]))\n"
        "for name in ('a', 'b'):\n"
        "    supervisor.start(Child(name, [sys.executable, '-c', sys.argv[2]]))\n"
        "while not all((Path(sys.argv[1]) / f'{name}.log').exists() for name in ('a', 'b')): time.sleep(0.01)\n"
        "print(*supervisor.pids().values(), flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), child], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        pids = [int(word) for word in parent.stdout.readline().split()]

    parent.kill()
    parent.wait()

    assert len(pids) == 2
    until(lambda: all(is_gone(pid) for pid in pids))
