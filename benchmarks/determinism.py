"""Does an answer depend on its company? 24 jobs over 16 slots against each of them alone, by weight type.

    python benchmarks/determinism.py --model ~/.cache/packtrain/models/smollm2.gguf

Prompts of 10 to 900 random tokens, half of them with a common beginning, arrive a few steps apart at one engine, which
answers each with 24 tokens at temperature 0 or 0.8. Compared are the tokens and, to the last bit, the logprob of each.
The model is requantised into a temporary folder; the mixture of experts is random. `--numerics fast` shows what is
otherwise.
"""

from __future__ import annotations

import sys
from pathlib import Path

# Run as a file, its folder would come first on the path, and queue.py there would be everybody's `queue`.
sys.path[0] = str(Path(__file__).parent.parent)

import argparse
import ctypes
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass

import gguf
import llama_cpp
import numpy as np

from packtrain.broker.fields import Numerics
from packtrain.broker.ids import JobId
from packtrain.broker.sampling import SamplingParams
from packtrain.workers.backends.llama_cpp_backend import LlamaCppBackend
from packtrain.workers.engine.engine import Engine
from packtrain.workers.engine.sequence import SequenceRequest, Tokens
from packtrain.workers.load_options import LoadOptions

FILE_TYPES = {"F16": 1, "Q8_0": 7, "Q4_0": 2, "Q4_K": 15}  # enum llama_ftype
ALL = (*FILE_TYPES, "mixture-F16", "mixture-Q4_K")
NUM_JOBS, NUM_SLOTS, N_CTX, NUM_NEW = 24, 16, 1024, 24
Answer = list[tuple[int, float | None]]


@dataclass(frozen=True, slots=True)
class Job:
    """One request, and how many steps after the one before it it comes."""

    prompt: tuple[int, ...]
    temperature: float
    after: int


def make_jobs(n_vocab: int, seed: int = 7) -> list[Job]:
    """The same jobs each time."""
    rng = random.Random(seed)

    def noise(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(5, n_vocab) for _ in range(count))

    common = noise(250)
    lengths = [10, 25, 60, 130, 300, 640]
    return [
        Job(
            (*(common if number % 2 else ()), *noise(lengths[number % len(lengths)])),
            0.8 if number % 4 < 2 else 0.0,
            rng.randrange(4),
        )
        for number in range(NUM_JOBS)
    ]


def run(backend: LlamaCppBackend, jobs: Sequence[tuple[int, Job]]) -> dict[int, Answer]:
    """Answers by number, all on one engine."""
    engine = Engine(backend, clock=time.monotonic)
    answers: dict[int, Answer] = {}
    for number, job in jobs:
        answer = answers.setdefault(number, [])

        def on_tokens(tokens: Tokens, answer: Answer = answer) -> None:
            answer.extend((entry.token, entry.logprob) for entry in tokens.logprobs)

        params = SamplingParams(temperature=job.temperature, logprobs=0, ignore_eos=True)
        for _ in range(job.after if len(jobs) > 1 else 0):
            engine.step()
        engine.submit(
            SequenceRequest(JobId(str(number)), job.prompt, params, number, NUM_NEW, on_tokens, lambda _: None)
        )
    while engine.is_busy:
        engine.step()
    return answers


def measure(path: Path, numerics: Numerics, threads: int) -> tuple[str, int, int]:
    """Recipe, and how many of the jobs have equal tokens, and equal logprobs, alone and together."""
    backend = LlamaCppBackend(
        path,
        model=path.stem,
        n_slots=NUM_SLOTS,
        n_ctx=N_CTX,
        n_threads=threads,
        options=LoadOptions(numerics=numerics),
    )
    jobs = list(enumerate(make_jobs(backend.shape.n_vocab)))
    alone = {number: run(backend, [(number, job)])[number] for number, job in jobs}
    together = run(backend, jobs)
    backend.shutdown()
    same_tokens = sum([t for t, _ in alone[n]] == [t for t, _ in together[n]] for n, _ in jobs)
    return backend.shape.recipe, same_tokens, sum(alone[n] == together[n] for n, _ in jobs)


def requantise(source: Path, target: Path, file_type: int) -> None:
    """The model again in another weight type."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize = file_type, True
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params))
    if code:
        raise SystemExit(f"llama_model_quantize returned {code}")


def write_mixture(path: Path) -> None:
    """A random mixture of 8 experts, 2 of them active, F16 with a router in F32; 3 layers, 2,048 tokens."""
    n_embd, n_ff, n_layer, n_head, n_kv, n_vocab, n_experts = 256, 512, 3, 4, 2, 2048, 8
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(4096)
    writer.add_embedding_length(n_embd)
    writer.add_block_count(n_layer)
    writer.add_feed_forward_length(n_ff)
    writer.add_head_count(n_head)
    writer.add_head_count_kv(n_kv)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(n_embd // n_head)
    writer.add_vocab_size(n_vocab)
    writer.add_expert_count(n_experts)
    writer.add_expert_used_count(2)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", *(f"t{number}" for number in range(3, n_vocab))])
    writer.add_token_scores([0.0] * n_vocab)
    writer.add_token_types([2, 3, 3, *[1] * (n_vocab - 3)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_file_type(FILE_TYPES["F16"])

    def add(name: str, *shape: int, scale: float = 0.08, dtype: type = np.float16) -> None:
        writer.add_tensor(name, (rng.standard_normal(shape, dtype=np.float32) * scale).astype(dtype))

    def norm(name: str) -> None:
        writer.add_tensor(name, np.ones(n_embd, np.float32))

    add("token_embd.weight", n_vocab, n_embd, scale=0.8)
    add("output.weight", n_vocab, n_embd)
    norm("output_norm.weight")
    for layer in range(n_layer):
        block = f"blk.{layer}."
        norm(block + "attn_norm.weight")
        norm(block + "ffn_norm.weight")
        for name, rows in (("q", n_embd), ("k", n_embd * n_kv // n_head), ("v", n_embd * n_kv // n_head)):
            add(f"{block}attn_{name}.weight", rows, n_embd)
        add(block + "attn_output.weight", n_embd, n_embd)
        add(block + "ffn_gate_inp.weight", n_experts, n_embd, dtype=np.float32)
        add(block + "ffn_gate_exps.weight", n_experts, n_ff, n_embd)
        add(block + "ffn_up_exps.weight", n_experts, n_ff, n_embd)
        add(block + "ffn_down_exps.weight", n_experts, n_embd, n_ff)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="GGUF file")
    parser.add_argument("--numerics", choices=["fast", "deterministic"], default="deterministic")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--weights", default=",".join(ALL), help="some of these, separated by commas")
    options = parser.parse_args()
    print("| weights | recipe | equal tokens | equal logprobs |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        mixture = Path(folder) / "mixture-F16.gguf"
        write_mixture(mixture)
        for name in options.weights.split(","):
            path = Path(folder) / f"{name}.gguf"
            if name != mixture.stem:
                source = mixture if name.startswith("mixture") else options.model
                requantise(source, path, FILE_TYPES[name.removeprefix("mixture-")])
            recipe, tokens, logprobs = measure(path, options.numerics, options.threads)
            print(f"| {path.stem} | {recipe} | {tokens} of {NUM_JOBS} | {logprobs} of {NUM_JOBS} |", flush=True)


if __name__ == "__main__":
    main()
