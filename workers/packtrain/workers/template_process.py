"""Chat templates are code that comes with a model, so they run in a process of their own, whose time and memory end.

    instance                                  child
    arguments of `ChatTemplate`  ->  compiles      one JSON object a line, each way
    variables of a chat          ->  renders
                                 <-  {"text"} or {"error"}

Nothing less bounds them. A loop could be counted, but `9 ** 9 ** 9`, `'a' * 10 ** 10` or a filter on a large text is
one operation of the interpreter, which holds its lock and so the whole instance; and Jinja folds constants, so the bomb
may go off while it compiles. Here a timer of the kernel ends the child in the midst of anything (SIGPROF, which nobody
handles, after `CPU_S` of its own CPU time), and memory ends at `MEMORY_BYTES`. The next chat gets a new child.

It costs 0.1 ms a chat and 11 MiB an instance. The child has no environment to speak of, so no password to find either.
"""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from threading import Lock
from typing import Any

from packtrain.workers.bare_process import bare_environment
from packtrain.workers.chat.template import ChatTemplate

#: CPU time for one chat, seconds. Usual templates take 0.0002, and 0.2 for the longest chats that are let in.
CPU_S = 2.0
#: Address space of the child; Python with Jinja has 50 MiB, a prompt of the greatest length as much again some times.
MEMORY_BYTES = 1024**3
#: Of JSON for one character, at most.
_JSON_BYTES = 12


class TemplateUnusable(Exception):
    """It cannot be compiled within the limits; it never will."""


class TemplateRefuses(Exception):
    """It raised an error for these variables."""


class TemplateLimit(Exception):
    """It took more than it may for these variables. The message says what and how much.

    Args:
        is_certain: False where something else may have ended the child, such as a lack of memory of the machine.
    """

    def __init__(self, message: str, *, is_certain: bool = True) -> None:
        super().__init__(message)
        self.is_certain = is_certain


class TemplateProcess:
    """A template in a child process. May be used from any thread; one chat is rendered at a time.

    Args:
        source: Jinja.
        max_chars: Of a prompt.
        cpu_s: CPU time for one chat, and for compiling, seconds.
    """

    def __init__(self, source: str, *, bos_token: str, eos_token: str, max_chars: int, cpu_s: float = CPU_S) -> None:
        self._first = {"source": source, "bos_token": bos_token, "eos_token": eos_token, "max_chars": max_chars}
        self._max_reply_bytes = _JSON_BYTES * max_chars + 10_000
        self._cpu_s = cpu_s
        self._lock = Lock()
        self._fault = ""
        self._child: subprocess.Popen[bytes] | None = None
        self._end_child: Callable[[], object] = lambda: None
        self._is_compiled = False
        self._start()

    def render(self, variables: Mapping[str, Any]) -> str:
        """The prompt. Blocks for at most `cpu_s` of CPU time for each chat that is before this one.

        Args:
            variables: What JSON can say.

        Raises:
            TemplateUnusable, TemplateRefuses, TemplateLimit
        """
        with self._lock:
            self._compile()
            try:
                reply = self._ask(variables)
            except BrokenPipeError:  # it ended between two chats, such as by lack of memory of the machine
                self._end()
                self._compile()
                reply = self._ask(variables)
        if reply.get("is_memory"):
            raise TemplateLimit(f"more than {MEMORY_BYTES // 1024**2} MiB of memory")
        if "error" in reply:
            raise TemplateRefuses(reply["error"])
        return str(reply["text"])

    def close(self) -> None:
        """End the child."""
        with self._lock:
            self._end()

    def _compile(self) -> None:
        if self._fault:
            raise TemplateUnusable(self._fault)
        if self._child is None:
            self._start()
        if self._is_compiled:
            return
        try:
            reply = self._reply()
        except TemplateLimit as limit:
            reply = {"error": f"it takes {limit} to compile"}
            if not limit.is_certain:  # the next chat may try again
                raise TemplateUnusable(reply["error"]) from None
        if "error" in reply:
            self._fault = str(reply["error"])
            self._end()
            raise TemplateUnusable(self._fault)
        self._is_compiled = True

    def _start(self) -> None:
        # Its stderr might show parts of a prompt. Not of our session: Ctrl-C is for us, and it ends when we do.
        self._child = subprocess.Popen(
            [sys.executable, "-m", __name__, str(self._cpu_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=bare_environment(),
            start_new_session=True,
        )
        self._end_child = weakref.finalize(self, _end, self._child)  # also where nobody closes this
        with suppress(BrokenPipeError):  # its end shows when it is asked
            self._send(self._first)

    def _ask(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        self._send(variables)
        return self._reply()

    def _send(self, message: Mapping[str, Any]) -> None:
        assert self._child is not None
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(message).encode() + b"\n")
        self._child.stdin.flush()

    def _reply(self) -> dict[str, Any]:
        assert self._child is not None
        assert self._child.stdout is not None
        line = self._child.stdout.readline(self._max_reply_bytes)
        if line.endswith(b"\n"):
            return dict(json.loads(line))
        code = self._end()
        if code == -signal.SIGPROF:
            raise TemplateLimit(f"more than {self._cpu_s:g} s of CPU time")
        raise TemplateLimit(f"so much that its process ended with code {code}", is_certain=False)

    def _end(self) -> int:
        child, self._child, self._is_compiled = self._child, None, False
        self._end_child()
        return child.wait() if child else 0


def _end(child: subprocess.Popen[bytes]) -> None:
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdout.close()
    with suppress(BrokenPipeError):
        child.stdin.close()  # the end of its input is the end of it, at the latest when its time is up
    child.wait()


def main(argv: list[str]) -> int:
    """The child: compile the first line, render the others."""
    cpu_s = float(argv[1])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError, ValueError):  # not every system knows it
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    template: ChatTemplate | None = None
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, cpu_s)
        reply: dict[str, Any] = {}
        try:
            message = json.loads(line)
            if template is None:
                template = ChatTemplate(**message)
            else:
                reply = {"text": template.render(message)}
        except MemoryError:
            reply = {"error": "no memory", "is_memory": True}
        except Exception as error:  # code from the model file: it may raise anything
            reply = {"error": str(error)[:1000] or type(error).__name__}
        sys.stdout.buffer.write(json.dumps(reply).encode() + b"\n")
        sys.stdout.buffer.flush()
        signal.setitimer(signal.ITIMER_PROF, 0)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
