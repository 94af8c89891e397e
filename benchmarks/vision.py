"""What looking at images costs running texts: time between two tokens of streams, with images coming in and without.

Streams of text decode on an engine; then the same while image after image, each a new one, is looked at and computed.
The projector is the shipped one, which takes a millisecond, or one with random weights of the size of ViT-B (86 M
parameters, 576 rows), which takes seconds. Of the gaps between tokens, in ms, the median and the 95th percentile:
alone, while the projector looks at an image, and of all the time with images, in which their rows are computed, too.

    python benchmarks/vision.py --model ~/.cache/packtrain/models/smollm2.gguf
"""

from __future__ import annotations

import sys
from pathlib import Path

# Run as a file, its folder would come first on the path, and queue.py there would be everybody's `queue`.
sys.path[0] = str(Path(__file__).parent.parent)

import tempfile
import threading
import time
from dataclasses import dataclass, field
from itertools import count

import gguf
import numpy as np

from benchmarks.common import arguments_parser
from packtrain.broker.ids import JobId
from packtrain.broker.sampling import SamplingParams
from packtrain.workers.backends.llama_cpp_backend import LlamaCppBackend
from packtrain.workers.engine.engine import Engine
from packtrain.workers.engine.media import place
from packtrain.workers.engine.sequence import End, SequenceRequest, Tokens
from packtrain.workers.load_options import LoadOptions
from tests.support.pictures import PROJECTOR
from tests.support.tiny_projectors import write_tiny_projector

GREEDY = SamplingParams(temperature=0, ignore_eos=True)
SLOTS, CONTEXT = 16, 1024


@dataclass
class Streams:
    """Texts that decode, and the gaps between their tokens in milliseconds."""

    engine: Engine
    gaps: list[tuple[float, float]] = field(default_factory=list)  # when it ended, how long it was
    numbers: count[int] = field(default_factory=count)
    is_over: bool = False

    def begin(self, many: int) -> None:
        for _ in range(many):
            self._one()

    def _one(self) -> None:
        last: list[float] = []

        def on_tokens(_: Tokens) -> None:
            now = time.perf_counter()
            if last:
                self.gaps.append((now, 1e3 * (now - last[-1])))
            last[:] = [now]

        def on_end(_: object) -> None:
            if not self.is_over:
                self._one()

        number = next(self.numbers)
        prompt = tuple((101 * (i + number)) % 40_000 for i in range(24))
        self.engine.submit(SequenceRequest(JobId(f"text-{number}"), prompt, GREEDY, 0, 600, on_tokens, on_end))


def look_on(
    backend: LlamaCppBackend, engine: Engine, until: float, first: int, *, lends: bool
) -> list[tuple[float, float]]:
    """Ask about new images one after the other; when each began and ended to be looked at."""
    rng, looked = np.random.default_rng(first), list[tuple[float, float]]()
    while time.perf_counter() < until:
        picture = rng.integers(0, 256, (384, 384, 3), dtype=np.uint8)
        begin = time.perf_counter()
        engine.lend(1 if lends else 0)
        seen = backend.see(picture)
        engine.lend(0)
        looked.append((begin, time.perf_counter()))
        tokens, spans = place(f"{first + len(looked):064x}", seen, 4)
        done = threading.Event()
        engine.submit(
            SequenceRequest(
                JobId(f"image-{first}-{len(looked)}"), (1, 2, 3, 4, *tokens, 5, 6), GREEDY, 0, 8, lambda _: None,
                lambda _, done=done: done.set(), media=tuple(spans),  # type: ignore[misc]
            )
        )  # fmt: skip
        done.wait()
    return looked


def measure(model: Path, projector: Path, threads: int, streams: int, seconds: float, *, lends: bool) -> list[str]:
    """A row of the table."""
    backend = LlamaCppBackend(
        model, model="m", n_slots=SLOTS, n_ctx=CONTEXT, n_threads=threads, options=LoadOptions(), projector=projector
    )
    engine = Engine(backend, clock=time.monotonic, n_threads=threads)
    runner = threading.Thread(target=engine.run, daemon=True)
    runner.start()
    texts = Streams(engine)
    texts.begin(streams)
    alone, beside, during = list[float](), list[float](), list[float]()
    looks: list[tuple[float, float]] = []
    for turn in range(6):  # turn about, so that a change of the machine meets both
        has_images = turn % 2 == 1
        texts.gaps = []
        until = time.perf_counter() + seconds
        if has_images:
            looked = look_on(backend, engine, until, 1000 * turn, lends=lends)
            looks += looked
            beside += [gap for _, gap in texts.gaps]
            during += [gap for end, gap in texts.gaps if any(first <= end <= last for first, last in looked)]
        else:
            time.sleep(seconds)
            alone += [gap for _, gap in texts.gaps]
    texts.is_over = True
    for number in range(next(texts.numbers)):
        engine.cancel(JobId(f"text-{number}"), End.CANCELLED)
    engine.stop()
    runner.join()
    backend.shutdown()
    p95 = np.percentile(alone, 95)
    kinds = (alone, during, beside)
    cells = [f"{np.percentile(gaps, 50):.0f} / {np.percentile(gaps, 95):.0f}" if gaps else "" for gaps in kinds]
    ratios = [f"{np.percentile(gaps, 95) / p95:.2f}" if gaps else "" for gaps in (during, beside)]
    took = float(np.median([last - first for first, last in looks]))
    return [str(streams), *cells, *ratios, str(len(looks)), f"{1e3 * took:.0f}"]


def main() -> None:
    """Entry point."""
    parser = arguments_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=8, help="of each of six turns")
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--keep-threads", action="store_true", help="the engine lends none of its threads")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        large = write_large_projector(Path(folder) / "large-mmproj.gguf")
        print("| projector | streams | alone | looking | with images | looking : alone | all : alone | images | ms |")
        print("|---|---|---|---|---|---|---|---|---|")
        for name, projector in (("shapes, 1.4 M", PROJECTOR), ("ViT-B, 86 M", large)):
            for streams in arguments.streams:
                row = measure(
                    arguments.model, projector, arguments.threads, streams, arguments.seconds,
                    lends=not arguments.keep_threads,
                )  # fmt: skip
                print(f"| {name} | {' | '.join(row)} |", flush=True)


def write_large_projector(path: Path) -> Path:
    """LLaVA's kind with random weights: ViT-B/16 at 384 pixels, 576 rows of SmolLM2's width."""
    return write_tiny_projector(
        path, "mlp", width=576, hidden=768, n_ff=3072, n_layer=12, n_head=12, patch=16, side=384,
        kind=gguf.GGMLQuantizationType.F16,
    )  # fmt: skip


if __name__ == "__main__":
    main()
