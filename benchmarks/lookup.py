"""What prompt lookup brings: tokens per second of the engine alone, with and without, turn about in one run.

Two workloads: *quoting* goes on with a list that stands in the prompt twice, *ordinary* tells a story. Temperature 0,
so in deterministic numerics both ways say the same, which is checked; 1 and 4 sequences at once.

    python benchmarks/lookup.py --model ~/.cache/packtrain/models/smollm2.gguf
"""

from __future__ import annotations

import sys
from pathlib import Path

# Run as a file, its folder would come first on the path, and queue.py there would be everybody's `queue`.
sys.path[0] = str(Path(__file__).parent.parent)

import statistics
import time
from typing import get_args

from benchmarks.common import arguments_parser, spread
from packtrain.broker.ids import JobId
from packtrain.broker.sampling import SamplingParams
from packtrain.workers.backends.llama_cpp_backend import LlamaCppBackend
from packtrain.workers.engine.engine import Engine, EngineStats
from packtrain.workers.engine.sequence import SequenceRequest
from packtrain.workers.load_options import LoadOptions, Speculation

SLOTS = 4
MAX_NEW = 64
GREEDY = SamplingParams(temperature=0, ignore_eos=True)
CITIES = ("Lima", "Oslo", "Cairo", "Quito", "Delhi", "Turin", "Osaka", "Lagos", "Perth", "Havana", "Minsk", "Seoul")


def prompts(workload: str, number: int) -> str:
    """One prompt; other numbers give others."""
    if workload == "ordinary":
        return f"Chapter {number + 1}. Once upon a time there was a {('miller', 'tailor', 'sailor', 'fox')[number % 4]}"
    cities = CITIES[number:] + CITIES[:number]
    whole = "".join(f"{place}. {city}, {place * 37 + number} miles\n" for place, city in enumerate(cities, 1))
    return f"The list:\n{whole}\nThe same list again:\n{whole}\nThe same list again:\n"


def run(
    backend: LlamaCppBackend, workload: str, at_once: int, speculation: Speculation
) -> tuple[float, list[list[int]], EngineStats]:
    """Tokens per second from the first token on, the answers, and the engine's counters."""
    for slot in range(SLOTS):
        backend.truncate(slot, 0)
    engine = Engine(backend, clock=time.monotonic, speculation=speculation)
    answers: list[list[int]] = [[] for _ in range(at_once)]
    for number, answer in enumerate(answers):
        prompt = tuple(backend.tokenize(prompts(workload, number)))
        engine.submit(
            SequenceRequest(
                JobId(f"j{number}"), prompt, GREEDY, 0, MAX_NEW,
                lambda tokens, answer=answer: answer.extend(tokens.tokens),  # type: ignore[misc]
                lambda _: None,
            )
        )  # fmt: skip
    while not all(answers):
        engine.step()
    begin, before = time.perf_counter(), engine.stats.tokens_out
    while engine.is_busy:
        engine.step()
    rate = (engine.stats.tokens_out - before) / (time.perf_counter() - begin)
    return rate, answers, engine.stats


def main() -> None:
    """Entry point."""
    parser = arguments_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--numerics", choices=["fast", "deterministic"], default="fast")
    arguments = parser.parse_args()
    options = LoadOptions(numerics=arguments.numerics)
    backend = LlamaCppBackend(
        arguments.model, model="m", n_slots=SLOTS, n_ctx=1024, n_threads=arguments.threads, options=options
    )
    print("| workload | at once | plain, tokens/s | prompt lookup, tokens/s | ratio | guessed right |")
    print("|---|---|---|---|---|---|")
    for workload in ("quoting", "ordinary"):
        for at_once in (1, 4):
            rates: dict[Speculation, list[float]] = {way: [] for way in get_args(Speculation)}
            for _ in range(arguments.rounds):
                said = {}
                for way in rates:
                    rate, said[way], stats = run(backend, workload, at_once, way)
                    rates[way].append(rate)
            if backend.shape.recipe == "batched":
                assert said["off"] == said["prompt-lookup"], "guesses changed an answer"
            ratio = statistics.median(rates["prompt-lookup"]) / statistics.median(rates["off"])
            print(
                f"| {workload} | {at_once} | {spread(rates['off'])} | {spread(rates['prompt-lookup'])} | {ratio:.2f} "
                f"| {stats.guessed_right} of {stats.guessed} |",
                flush=True,
            )
    backend.shutdown()


if __name__ == "__main__":
    main()
