"""The lifeline as a channel: what the parent writes comes line by line, and its end is still noticed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from packtrain.broker import lifeline

pytestmark = pytest.mark.unit

CHILD = """
import os, threading
from packtrain.broker import lifeline
cut = threading.Event()
lifeline.watch(cut.set, lambda line: print(repr(line), flush=True))
cut.wait()
print("cut", flush=True)
"""


@pytest.mark.parametrize("written", [[b"one\ntwo\n"], [b"on", b"e\ntw", b"o\nhalf"]])
def test_lines_are_passed_on_whole_and_the_end_is_noticed(written: list[bytes]) -> None:
    environment = {**os.environ, lifeline.VARIABLE: "1"}
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    assert child.stdin is not None
    for part in written:
        child.stdin.write(part)
        child.stdin.flush()
    said, _ = child.communicate(timeout=30)

    assert said.decode().splitlines() == ["'one'", "'two'", "cut"]
