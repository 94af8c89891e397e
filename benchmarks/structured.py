"""Random JSON schemas on a real model: how many outputs validate, and what the constraint costs per token.

Two runs of the same schemas. In the first the model speaks, at temperature 1.5, as jobs do: a token is drawn, checked,
and drawn again only on a reject. In the second the whole mask is computed for every token: what a reject costs.

    python benchmarks/structured.py --model ~/.cache/packtrain/models/smollm2.gguf
"""

from __future__ import annotations

import sys
from pathlib import Path

# Run as a file, its folder would come first on the path, and queue.py there would be everybody's `queue`.
sys.path[0] = str(Path(__file__).parent.parent)

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import jsonschema
import numpy as np

from packtrain.broker.sampling import SamplingParams
from packtrain.broker.structured import JsonSchema
from packtrain.workers.backends.base import StepRows
from packtrain.workers.backends.constraint import Compiler, Constraint
from packtrain.workers.backends.llama_cpp_backend import LlamaCppBackend
from tests.support.schemas import random_schema

SLOTS, N_CTX = 16, 1024


class Meter:
    """Microseconds of constraint work, call by call; patched around `Constraint` for as long as the run takes."""

    def __init__(self) -> None:
        self.us: dict[str, list[float]] = {"allows": [], "allowed": [], "accept": []}

    @contextmanager
    def on(self) -> Iterator[None]:
        """Measure within."""
        originals = {name: getattr(Constraint, name) for name in self.us}
        for name, original in originals.items():
            setattr(Constraint, name, self._timed(name, original))
        try:
            yield
        finally:
            for name, original in originals.items():
                setattr(Constraint, name, original)

    def _timed(self, name: str, original: Any) -> Any:
        def timed(*arguments: Any) -> Any:
            begin = time.perf_counter()
            try:
                return original(*arguments)
            finally:
                self.us[name].append((time.perf_counter() - begin) * 1e6)

        return timed


def generate(backend: LlamaCppBackend, schemas: list[dict[str, Any]], meter: Meter) -> list[tuple[int, str | None]]:
    """For each schema how many tokens its output has, and the text; None for one that the slot could not hold."""
    results: dict[int, tuple[int, str | None]] = {}
    waiting = list(enumerate(schemas))
    live: dict[int, tuple[int, list[int], int, int]] = {}  # slot: schema, tokens, cached, of the prompt
    with meter.on():
        while waiting or live:
            for slot in sorted(set(range(SLOTS)) - live.keys()):
                if waiting:
                    index, schema = waiting.pop(0)
                    params = SamplingParams(temperature=1.5, response_format=JsonSchema(schema))
                    asked = {"role": "user", "content": f"Give me JSON: {json.dumps(schema)}"[:200]}
                    text = backend.render_chat({"messages": [asked]})
                    prompt = backend.tokenize(text, add_special=False, parse_special=True)
                    backend.prepare(params)
                    backend.truncate(slot, 0)
                    backend.open(slot, params, index, prompt, 0)
                    live[slot] = (index, prompt, 0, len(prompt))
            room = backend.shape.n_batch
            rows = []
            for slot, (_, tokens, cached, _) in sorted(live.items()):
                count = min(len(tokens) - cached, room)
                if count:
                    rows.append(StepRows(slot, cached, tokens[cached : cached + count], cached + count == len(tokens)))
                    room -= count
            drawn = iter(backend.step(rows, lambda: False))
            for row in rows:
                index, tokens, cached, num_prompt = live[row.seq_id]
                cached += len(row.tokens)
                output = tokens[num_prompt:]
                if row.wants_token:
                    token = next(drawn).token
                    has_ended = backend.is_end(token)
                    if has_ended or len(tokens) + 1 >= N_CTX:
                        said = b"".join(backend.piece(t) for t in output).decode() if has_ended else None
                        results[index] = (len(output), said)
                        backend.close(row.seq_id)
                        del live[row.seq_id]
                        continue
                    tokens = [*tokens, token]
                live[row.seq_id] = (index, tokens, cached, num_prompt)
    return [results[index] for index in range(len(schemas))]


def is_valid(schema: dict[str, Any], text: str) -> bool:
    """True when the text parses and validates."""
    try:
        jsonschema.Draft202012Validator(schema).validate(json.loads(text))
    except (ValueError, jsonschema.ValidationError) as error:
        print(f"NOT VALID: {json.dumps(schema)}\n{text}\n{error}")
        return False
    return True


def walk(backend: LlamaCppBackend, schemas: list[dict[str, Any]], meter: Meter) -> None:
    """Random outputs with the mask computed at every token."""
    n_vocab = backend.shape.n_vocab
    compiler = Compiler(n_vocab, backend.piece, [token for token in range(n_vocab) if backend.is_end(token)])
    with meter.on():
        for index, schema in enumerate(schemas):
            rng = np.random.default_rng(index)
            constraint = compiler.constraint(SamplingParams(response_format=JsonSchema(schema)), [])
            assert constraint
            for _ in range(100):
                token = int(rng.choice(constraint.allowed()))
                if backend.is_end(token):
                    break
                constraint.accept(token)


def main() -> int:
    """Entry point; 1 if any output was invalid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cache = Path(os.environ.get("PACKTRAIN_CACHE") or "~/.cache/packtrain").expanduser()
    parser.add_argument("--model", type=Path, default=cache / "models" / "smollm2.gguf")
    parser.add_argument("--schemas", type=int, default=200)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    backend = LlamaCppBackend(arguments.model, model="m", n_slots=SLOTS, n_ctx=N_CTX, n_threads=arguments.threads)
    schemas = [random_schema(Random(seed)) for seed in range(arguments.schemas)]
    begin = time.perf_counter()
    backend.prepare(SamplingParams(response_format=JsonSchema({})))
    vocabulary_s = time.perf_counter() - begin

    spoken, masked = Meter(), Meter()
    results = generate(backend, schemas, spoken)
    walk(backend, schemas, masked)
    whole = [(schema, text) for schema, (_, text) in zip(schemas, results, strict=True) if text is not None]
    num_valid = sum(is_valid(schema, text) for schema, text in whole)

    num_tokens, rejects = len(spoken.us["accept"]), len(spoken.us["allowed"])
    per_token = sum(map(sum, spoken.us.values())) / num_tokens
    print(f"vocabulary of {backend.shape.n_vocab} tokens, made ready in {vocabulary_s:.2f} s\n")
    print(f"| {len(schemas)} random schemas, temperature 1.5 | |\n|---|---|")
    print(f"| outputs that ended | {len(whole)} |\n| of these, parse and validate | {num_valid} |")
    print(f"| tokens | {num_tokens} |\n| rejects per token | {rejects / num_tokens:.3f} |")
    print(f"| constraint, us per token | {per_token:.0f} |")
    for name, us in (("check of one token", spoken.us["allows"]), ("whole mask", masked.us["allowed"])):
        p99 = statistics.quantiles(us, n=100)[98]
        print(f"| {name}, us: mean, 99 %, most | {statistics.mean(us):.0f}, {p99:.0f}, {max(us):.0f} |")
    backend.shutdown()
    return 0 if num_valid == len(whole) else 1


if __name__ == "__main__":
    sys.exit(main())
