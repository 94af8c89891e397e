"""The prober: asks llama.cpp what models will take, in the background, one short-lived process at a time.

The agent's loop polls it, so it never waits. A model whose probe fails is not asked about again until its file changes
or the agent starts anew: until then the header's formula stands.
"""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from packtrain.broker.model_info import ModelMemory
from packtrain.workers.memory_book import LoadKey
from packtrain.workers.memory_probe import TIMEOUT_S, MemoryQuestion

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Asked:
    key: LoadKey
    question: MemoryQuestion
    process: subprocess.Popen[bytes]


class MemoryProber:
    """Belongs to one thread."""

    def __init__(self) -> None:
        self._queue: deque[tuple[LoadKey, MemoryQuestion]] = deque()
        self._failed: set[LoadKey] = set()
        self._asked: _Asked | None = None

    @property
    def is_idle(self) -> bool:
        """True when nothing is asked or waits to be asked."""
        return self._asked is None and not self._queue

    def want(self, questions: Mapping[LoadKey, MemoryQuestion]) -> None:
        """From now on find out these, and no others any more."""
        self._queue = deque(
            (key, question)
            for key, question in questions.items()
            if key not in self._failed and not (self._asked and self._asked.key == key)
        )

    def poll(self) -> tuple[LoadKey, ModelMemory] | None:
        """An answer that has come in, if one has; and ask the next question. Never blocks."""
        answer = self._collect()
        if self._asked is None and self._queue:
            key, question = self._queue.popleft()
            try:
                self._asked = _Asked(key, question, _ask(question))
            except OSError as error:  # no memory for another process, or no more processes
                self._give_up(key, question, str(error))
        return answer

    def close(self) -> None:
        """End a probe that runs."""
        self._queue.clear()
        if self._asked:
            self._asked.process.kill()
            self._asked.process.communicate()
            self._asked = None

    def _collect(self) -> tuple[LoadKey, ModelMemory] | None:
        if self._asked is None or self._asked.process.poll() is None:
            return None
        asked, self._asked = self._asked, None
        output, _ = asked.process.communicate()  # some hundred bytes: they never filled the pipe
        code = asked.process.returncode
        try:
            if code == 0:
                return asked.key, ModelMemory.model_validate_json(output)
            reason = _reason(output, code)
        except ValidationError as error:
            reason = f"the probe's answer is odd: {error}"
        self._give_up(asked.key, asked.question, reason)
        return None

    def _give_up(self, key: LoadKey, question: MemoryQuestion, reason: str) -> None:
        self._failed.add(key)
        logger.warning(
            "Memory of %s stays an estimate from its header: %s", question.path, reason,
            extra={"event": "memory.unprobed"},
        )  # fmt: skip


def _ask(question: MemoryQuestion) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "packtrain.workers.memory_probe", question.model_dump_json()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _reason(output: bytes, code: int) -> str:
    try:
        return str(json.loads(output)["error"])
    except (ValueError, KeyError, TypeError):
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
        return f"the probe ended {how}; one that takes {TIMEOUT_S} s is ended by SIGALRM"
