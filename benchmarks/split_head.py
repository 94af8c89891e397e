"""A head that `benchmarks.split` measures: a process of its own, so that no proxy shares its interpreter.

    python -m benchmarks.split_head MODEL OPTIONS

Tells as JSON how long it loaded, then decodes with as many slots and for as long as each line that it reads says.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from packtrain.broker.sampling import SamplingParams
from packtrain.workers.backends import llama_cpp_params
from packtrain.workers.backends.base import StepRows
from packtrain.workers.backends.llama_cpp_backend import LlamaCppBackend
from packtrain.workers.shards.split import Split
from tests.support.hosts import Host

SLOTS, CONTEXT, PROMPT = 8, 512, 32
GREEDY = SamplingParams(temperature=0)


class HeadOptions(BaseModel):
    """What a head is told."""

    split: Split | None = None
    as_llama_cpp: bool = False  # the output on the last shard, as llama.cpp lays a split out by itself


class Decoding(BaseModel):
    """What it is asked for."""

    slots: int = 1
    seconds: float


class Head:
    """The process, as the benchmark holds it. It is loaded."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.load_s = float(self._read()["load_s"])

    def decode(self, slots: int, seconds: float) -> tuple[float, int]:
        """Tokens per second of so many jobs together, and steps."""
        assert self._process.stdin
        self._process.stdin.write(Decoding(slots=slots, seconds=seconds).model_dump_json() + "\n")
        self._process.stdin.flush()
        told = self._read()
        return told["tokens_per_s"], told["steps"]

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        if not (line := self._process.stdout.readline()):
            raise RuntimeError(f"the head ended: {self._process.communicate()[1][-2000:]}")
        return dict(json.loads(line))


@contextmanager
def head(model: Path, split: Split | None, *, as_llama_cpp: bool = False, on: Host | None = None) -> Iterator[Head]:
    """One that has loaded.

    Args:
        on: Where it runs; None: here.

    Raises:
        RuntimeError: It ended.
    """
    options = HeadOptions(split=split, as_llama_cpp=as_llama_cpp)
    command = [sys.executable, "-m", "benchmarks.split_head", str(model), options.model_dump_json()]
    with subprocess.Popen(
        on.command(*command) if on else command,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            yield Head(process)
        finally:
            process.kill()


def decode(backend: LlamaCppBackend, slots: range, seconds: float) -> dict[str, float]:
    """Tokens per second of these slots, by the median step, for others may use this machine; and steps."""
    for slot in slots:
        backend.open(slot, GREEDY, 1, [], 0)
        backend.truncate(slot, 0)
    rows = [StepRows(slot, 0, [100 + 7 * slot + i for i in range(PROMPT)], True) for slot in slots]
    last = [sampled.token for sampled in backend.step(rows, None)]
    times, position, end = list[float](), PROMPT, time.perf_counter() + seconds
    while time.perf_counter() < end and position < CONTEXT:
        begin = time.perf_counter()
        rows = [StepRows(slot, position, [token], True) for slot, token in zip(slots, last, strict=True)]
        last = [sampled.token for sampled in backend.step(rows, None)]
        times.append(time.perf_counter() - begin)
        position += 1
    for slot in slots:
        backend.close(slot)
    return {"tokens_per_s": len(slots) / statistics.median(times), "steps": len(times) + 1}


def _say(content: dict[str, float]) -> None:
    sys.stdout.write(json.dumps(content) + "\n")
    sys.stdout.flush()


def main(argv: Sequence[str]) -> None:
    """The process."""
    options = HeadOptions.model_validate_json(argv[2])
    if options.as_llama_cpp:
        llama_cpp_params._OUTPUT = ()  # type: ignore[assignment]
    begin = time.perf_counter()
    backend = LlamaCppBackend(Path(argv[1]), model="m", n_slots=SLOTS, n_ctx=CONTEXT, n_threads=1, split=options.split)
    _say({"load_s": time.perf_counter() - begin})
    for line in sys.stdin:
        asked = Decoding.model_validate_json(line)
        _say(decode(backend, range(asked.slots), asked.seconds))


if __name__ == "__main__":
    main(sys.argv)
