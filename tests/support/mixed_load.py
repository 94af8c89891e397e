"""A mixed stream of jobs over more models than a host can hold: on a fleet, and as one would run it without one.

The jobs are such that a wrong answer shows: each asks for a word of its own, which a small model can only say by
reading it, and the receipt says which file computed it.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import psutil

from tests.support.fleets import eventually
from tests.support.host_fleet import HostFleet, host_fleet
from tests.support.quantised import TYPES, quantised

#: All quantisations of `quantised.py` repeat each of them.
WORDS = (
    "river", "window", "garden", "purple", "market", "doctor", "silver", "yellow", "monkey", "castle", "winter",
    "summer", "pencil", "dragon", "bridge", "cheese", "forest", "guitar", "hammer", "island", "jungle", "kitten",
    "lemon", "mountain",
)  # fmt: skip
_SHOTS = "".join(f"The word is {w}. Repeat the word: {w}\n" for w in ("apple", "train", "butter", "ocean"))
SAMPLE_S = 0.2
#: An instance of the smallest takes 250 MiB, of the largest 300: room for two, and for no three.
BUDGET = 650 * 2**20
HOLDS = 2


@dataclass(frozen=True, slots=True)
class Asked:
    """One job of the stream."""

    model: str
    word: str

    @property
    def prompt(self) -> str:
        """Answered by its word."""
        return f"{_SHOTS}The word is {self.word}. Repeat the word:"


@dataclass(frozen=True, slots=True)
class Report:
    """What came of a stream."""

    wrong: list[str]  # jobs with the answer of another, or by another model
    loads: int
    longest_wait_s: float  # from submit to claim
    seconds: float
    peaks: dict[str, int] = field(default_factory=dict)  # most resident bytes of all instances of a host at one sample
    samples: int = 0


@dataclass(frozen=True, slots=True)
class Models:
    """Five models of which a host holds two, in one folder."""

    folder: Path
    names: list[str]

    @contextmanager
    def fleet(self, home: Path) -> Iterator[HostFleet]:
        """Three hosts that offer them."""
        config = "".join(f"[models.{model}]\nslots = 4\ncontext = 512\n" for model in self.names)
        env = {
            "PACKTRAIN_SCRIPTED": "0",
            "PACKTRAIN_MODELS": str(self.folder),
            "PACKTRAIN_MEMORY": str(BUDGET),
            "PACKTRAIN_CORES": "1",
        }
        home.mkdir()
        with host_fleet(home, {}, "n1", "n2", "n3", config=config, env=env) as running:
            yield running


def five_models(folder: Path, source: Path) -> Models:
    """Made of one, in a minute or less."""
    folder.mkdir()
    return Models(folder, [quantised(folder, source, name).stem for name in TYPES])


def mixed_stream(models: Sequence[str], count: int, seed: int) -> list[Asked]:
    """Jobs over these models in random order; no two that follow each other for one model ask for the same word."""
    random = Random(seed)
    return [Asked(random.choice(models), WORDS[number % len(WORDS)]) for number in range(count)]


def run_on_fleet(fleet: HostFleet, stream: Sequence[Asked], models: Models, *, per_s: float) -> Report:
    """Submit the stream, so many jobs a second, and check every answer and its receipt."""
    hashes = {model: _sha256(models.folder / f"{model}.gguf") for model in models.names}
    begin = time.monotonic()
    with _sampled(fleet) as sampler:
        jobs = [
            fleet.client.submit(
                asked.model, asked.prompt, raw=True, stream=False, max_tokens=4, temperature=0, ignore_eos=True
            )
            for asked in _paced(stream, per_s)
        ]
        wrong = []
        for asked, job in zip(stream, jobs, strict=True):
            result = job.result(timeout=600)
            said = (result.text.split() or [""])[0]
            computed_by = result.receipt.model_sha256 if result.receipt else ""
            if (said, computed_by) != (asked.word, hashes[asked.model]):
                wrong.append(f"{job.id}: {said!r} for {asked}, by {computed_by[:8]}")
    seconds = time.monotonic() - begin
    waits = [(status.started_ms or 0) - status.submitted_ms for status in (job.status() for job in jobs)]
    loads = len(fleet.instances())  # ended ones are remembered for ten minutes
    return Report(wrong, loads, max(waits) / 1000, seconds, dict(sampler.peaks), sampler.samples)


def run_first_come(fleet: HostFleet, stream: Sequence[Asked], models: Models, *, per_s: float) -> Report:
    """The same stream on the same hosts without a fleet, each of which takes the oldest job as soon as it is free."""
    arguments = [sys.executable, "-m", "tests.support.fifo_host", fleet.url, str(models.folder), str(HOLDS)]
    processes = [node.host.start(arguments, {}, node.home / "fifo.log") for node in fleet.nodes.values()]
    begin = time.monotonic()
    try:
        for number, asked in enumerate(_paced(stream, per_s)):
            fleet.redis.rpush("fifo:jobs", json.dumps((number, asked.model, asked.prompt, time.time())))
        eventually(lambda: fleet.redis.llen("fifo:done") == len(stream), "the last job", 3600)
    finally:
        for process in processes:
            process.kill()
    seconds = time.monotonic() - begin
    done = [json.loads(row) for row in fleet.redis.lrange("fifo:done", 0, -1)]
    fleet.redis.delete("fifo:jobs", "fifo:done")
    wrong = [f"{text!r} for {stream[n]}" for n, text, _, _ in done if (text.split() or [""])[0] != stream[n].word]
    loads = sum(was_load for _, _, was_load, _ in done)
    return Report(wrong, loads, max(wait_s for *_, wait_s in done), seconds)


def _paced(stream: Sequence[Asked], per_s: float) -> Iterator[Asked]:
    """Each when its turn has come."""
    begin = time.monotonic()
    for number, asked in enumerate(stream):
        time.sleep(max(0.0, begin + number / per_s - time.monotonic()))
        yield asked


@dataclass(slots=True)
class _Sampler:
    peaks: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    samples: int = 0


@contextmanager
def _sampled(fleet: HostFleet) -> Iterator[_Sampler]:
    """Resident memory of every host's instances, by the kernel's word, as long as the block runs.

    Of a mapped model file counts what its layout reads there. Pages of weights that were copied into another order stay
    mapped until somebody needs the memory, and are the first that the kernel takes back: 74 MiB of a Q4_0 here.
    """
    sampler, over = _Sampler(), threading.Event()

    def run() -> None:
        while not over.wait(SAMPLE_S):
            read_there = {
                info.id: sum(buffer.weights for buffer in info.memory.buffers if buffer.buffer == "CPU")
                for info in fleet.client.models()
            }
            for name, node in fleet.nodes.items():
                assert node.agent is not None
                sampler.peaks[name] = max(sampler.peaks[name], _resident(node.agent.pid, read_there))
            sampler.samples += 1

    thread = threading.Thread(target=run, name="sampler")
    thread.start()
    try:
        yield sampler
    finally:
        over.set()
        thread.join()


def _resident(agent: int, read_there: Mapping[str, int]) -> int:
    total = 0
    for process in psutil.Process(agent).children(recursive=True):
        with suppress(psutil.Error):
            arguments = process.cmdline()
            if "packtrain.workers.instance_main" in arguments:
                model = json.loads(arguments[-1])["model"]
                mapped = sum(part.rss for part in process.memory_maps() if part.path.endswith(".gguf"))
                total += process.memory_info().rss - max(0, mapped - read_there[model])
    return total


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
