"""What runs the jobs of an instance: the engine of a loaded model, wired.

`remote/parts.py` wires a client of another server instead.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from queue import SimpleQueue

from packtrain.broker.blobs import BlobStore
from packtrain.broker.errors import ModelLoadFailed
from packtrain.broker.fields import Recipe
from packtrain.broker.ids import JobId, ModelId
from packtrain.broker.jobs import JobStore
from packtrain.broker.sampling import SamplingParams
from packtrain.workers.backends.base import Backend
from packtrain.workers.engine.embedding import EmbedRequest
from packtrain.workers.engine.engine import Engine
from packtrain.workers.engine.parking import most_parked
from packtrain.workers.engine.seam import JobEngine
from packtrain.workers.engine.sequence import Ended, SequenceRequest
from packtrain.workers.engine_jobs import EngineJobs
from packtrain.workers.instance_messages import InstanceConfig
from packtrain.workers.receipts import Computer, Prover
from packtrain.workers.runner import Starter
from packtrain.workers.senses import Senses


@dataclass(frozen=True, slots=True)
class Parts:
    """Of one instance."""

    engine: JobEngine
    starter: Starter
    prover: Prover
    recipe: Recipe
    numerics_class: str  # that a begun job may go on in
    warm_up: Callable[[], None]  # once the engine runs, before the first job; raises ModelLoadFailed
    extra_jobs: int = 0  # interactive ones beyond the slots, see runner.py
    num_images: Callable[[], int] = lambda: 0  # and sounds, encoded so far


def load_backend(config: InstanceConfig) -> Backend:
    """The loaded model.

    Raises:
        ModelLoadFailed
    """
    if config.backend == "scripted":
        from packtrain.workers.backends.scripted_files import load_scripted

        return load_scripted(
            Path(config.path), n_slots=config.n_slots, n_ctx=config.n_ctx, numerics=config.options.numerics
        )
    from packtrain.workers.backends.llama_cpp_backend import LlamaCppBackend

    return LlamaCppBackend(
        Path(config.path),
        model=config.model,
        n_slots=config.n_slots,
        n_ctx=config.n_ctx,
        n_threads=config.n_threads,
        options=config.options,
        adapters=config.adapters,
        projector=Path(config.projector) if config.projector else None,
        split=config.split,
    )


def import_backend(config: InstanceConfig) -> None:
    """Import what `load_backend` needs, so that the memory it takes counts as the process's and not as the model's."""
    if config.backend == "llama_cpp":
        importlib.import_module("packtrain.workers.backends.llama_cpp_backend")


def loaded_parts(
    config: InstanceConfig,
    backend: Backend,
    model_sha256: str,
    adapter_sha256: Mapping[str, str],
    projector_sha256: str,
    store: JobStore,
    blobs: BlobStore,
    on_activity: Callable[[], None],
) -> Parts:
    """Of a loaded model."""
    engine = Engine(
        backend,
        clock=time.monotonic,
        on_activity=on_activity,
        speculation=config.options.speculation,
        parks=config.options.parking,
        n_threads=config.n_threads,
    )
    senses = Senses(blobs, backend, model=ModelId(config.model), lend=engine.lend)
    recipe = backend.shape.recipe
    decoder = _decoders(backend) if projector_sha256 else ""
    computer = Computer(
        backend.build, model_sha256, config.options.numerics, recipe, adapter_sha256, projector_sha256, decoder
    )
    return Parts(
        engine=engine,
        starter=EngineJobs(store, backend, engine, model=ModelId(config.model), clock=time.monotonic, look=senses.look),
        prover=computer,
        recipe=recipe,
        numerics_class=computer.class_of_moves({file.name: file.scale for file in config.adapters}),
        warm_up=lambda: _warm_up(engine, config.model, embeds_only=backend.shape.embeds_only),
        extra_jobs=most_parked(config.n_slots) if config.options.parking else 0,
        num_images=lambda: senses.num_seen,
    )


def _decoders(backend: Backend) -> str:
    """What turns files into what the projector takes."""
    found = [f"pillow {version('pillow')}"] if backend.sees or not backend.hears else []
    if backend.hears:
        from packtrain.workers.sounds import VERSIONS

        found.append(VERSIONS)
    return ", ".join(found)


def _warm_up(engine: Engine, model: str, *, embeds_only: bool) -> None:
    """Compute one token, so that the first job does not pay for page faults and graphs."""
    ends: SimpleQueue[Ended] = SimpleQueue()
    job_id, prompt = JobId("warm-up"), (1,)
    if embeds_only:
        engine.submit(EmbedRequest(job_id, prompt, None, ends.put))
    else:
        greedy = SamplingParams(temperature=0)
        engine.submit(SequenceRequest(job_id, prompt, greedy, 0, 1, lambda _: None, ends.put))
    if error := ends.get().error:
        raise ModelLoadFailed(f"{model!r} is loaded but computes nothing: {error}")
