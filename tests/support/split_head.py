"""A head of a split model, as a process of its own: a shard that dies ends it.

    python -m tests.support.split_head MODEL SPLIT NUMERICS

Computes greedily and writes a JSON object a line: when it is loaded, then for each token. It goes on with each line
that it reads, and ends with its input.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from packtrain.broker.fields import Numerics
from packtrain.broker.sampling import SamplingParams
from packtrain.workers.backends.base import StepRows
from packtrain.workers.load_options import LoadOptions
from packtrain.workers.shards.split import Split
from tests.support.hosts import Host

PROMPT = tuple(range(10, 40))
N_CTX, N_SLOTS = 256, 2


@dataclass(frozen=True, slots=True)
class Token:
    """One step: the token, and a hash of the bits of all its logits."""

    token: int
    logits: str


def tokens_of(path: Path, split: Split | None, numerics: Numerics) -> Iterator[Token]:
    """Load, then compute as long as somebody asks."""
    from packtrain.workers.backends.llama_cpp_backend import LlamaCppBackend

    options = LoadOptions(numerics=numerics)
    backend = LlamaCppBackend(
        path, model="m", n_slots=N_SLOTS, n_ctx=N_CTX, n_threads=1, options=options, split=split
    )  # fmt: skip
    yield Token(-1, backend.shape.recipe)
    backend.open(0, SamplingParams(temperature=0), 1, [], 0)
    backend.truncate(0, 0)
    rows, position = list(PROMPT), 0
    try:
        while True:
            token = backend.step([StepRows(0, position, rows, True)], None)[0].token
            yield Token(token, hashlib.sha256(backend.logits(1).tobytes()).hexdigest()[:16])
            position, rows = position + len(rows), [token]
    finally:
        backend.shutdown()


def alone(path: Path, numerics: Numerics, count: int) -> list[Token]:
    """What the same model computes unsplit, in this process: its recipe, then tokens."""
    made = tokens_of(path, None, numerics)
    tokens = [next(made) for _ in range(count + 1)]
    made.close()  # type: ignore[attr-defined]
    return tokens


class Head:
    """The process, as a test holds it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def take(self, count: int) -> list[Token]:
        """Its next lines; fewer where it ended."""
        assert self.process.stdin
        assert self.process.stdout
        found: list[Token] = []
        for _ in range(count):
            if not (line := self.process.stdout.readline()):
                break
            found.append(Token(**json.loads(line)))
            try:
                self.process.stdin.write("\n")
                self.process.stdin.flush()
            except BrokenPipeError:
                break
        return found

    def last_words(self) -> str:
        """What it said at its end."""
        _, said = self.process.communicate(timeout=60)
        return said


@contextmanager
def head(path: Path, split: Split, numerics: Numerics, on: Host | None = None) -> Iterator[Head]:
    """One that loads, on this machine or on a host of ours."""
    command = [sys.executable, "-m", "tests.support.split_head", str(path), split.model_dump_json(), numerics]
    if on:
        command = on.command(*command)
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Head(process)
        finally:
            process.kill()


def main(argv: Sequence[str]) -> None:
    """The process."""
    path, split, numerics = Path(argv[1]), Split.model_validate_json(argv[2]), argv[3]
    assert numerics in ("fast", "deterministic")
    for made in tokens_of(path, split, "deterministic" if numerics == "deterministic" else "fast"):
        sys.stdout.write(json.dumps({"token": made.token, "logits": made.logits}) + "\n")
        sys.stdout.flush()
        if not sys.stdin.readline():
            return


if __name__ == "__main__":
    main(sys.argv)
