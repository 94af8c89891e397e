"""From a leased job to a request: the `Starter` of a remote model, beside `engine_jobs.py` of a loaded one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from packtrain.broker import hops, jobs
from packtrain.broker.blobs import BlobStore
from packtrain.broker.chunks import Event
from packtrain.broker.errors import MediaGone, MediaUnsupported, RemoteFailed
from packtrain.broker.fields import Numerics
from packtrain.broker.jobs import JobStore
from packtrain.broker.media import MODALITY_OF
from packtrain.broker.outcome import Receipt
from packtrain.workers.adapters import AdapterSet
from packtrain.workers.chat.deltas import Delta
from packtrain.workers.leased_job import LeasedJob
from packtrain.workers.remote.engine import RemoteEngine
from packtrain.workers.remote.options import RemoteOptions
from packtrain.workers.remote.requests import request_of
from packtrain.workers.remote.running import RemoteJob
from packtrain.workers.remote.turns import Turns

logger = logging.getLogger(__name__)


class RemoteJobs:
    """A `runner.Starter`.

    Args:
        model: Id here.
        fleet: Id of this fleet, see hops.py; may ask the broker.
        clock: Monotonic seconds, the engine's.
    """

    can_share = False

    def __init__(
        self,
        store: JobStore,
        blobs: BlobStore,
        engine: RemoteEngine,
        options: RemoteOptions,
        turns: Turns,
        *,
        model: str,
        fleet: Callable[[], str],
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._engine = engine
        self._options = options
        self._turns = turns
        self._model = model
        self._fleet = fleet
        self._clock = clock
        self.n_slots = options.concurrency

    def wait_for_turn(self) -> bool:
        return self._turns.wait()

    def give_turn_back(self) -> None:
        self._turns.give_back()

    def close(self) -> None:
        self._turns.close()

    def start(self, job: LeasedJob, claim: jobs.Claim) -> None:
        try:
            self._send(job, claim)
        except BaseException:
            self._turns.give_back()  # nothing was sent
            raise

    def _send(self, job: LeasedJob, claim: jobs.Claim) -> None:
        spec = job.spec
        job.seed = spec.params.seed  # what the server draws with where it is None, nobody knows
        if claim.epoch > 1:
            self._check_unbegun(job)
        trail = hops.trail_from(self._fleet(), spec.via, model=self._model)
        takes = self._options.modalities
        for ref in spec.media:
            if MODALITY_OF[ref.kind] not in takes:  # it came here from another target of its name
                raise MediaUnsupported(model=self._model, kind=ref.kind, takes=takes, remote=self._options.shown)
        request = request_of(spec, self._options.model, self._bytes_of if len(takes) > 1 else None)
        left_ms = min((left for left in (claim.remaining_ms, claim.run_left_ms) if left is not None), default=None)
        self._engine.submit(
            RemoteJob(
                job_id=job.job_id,
                request=request,
                trail=trail,
                streams=spec.stream,
                on_tokens=job.on_tokens,
                on_end=job.on_end,
                deadline=None if left_ms is None else self._clock() + left_ms / 1000,
            )
        )

    def _bytes_of(self, sha256: str) -> bytes:
        if (data := self._blobs.get(sha256)) is None:
            raise MediaGone(sha256=sha256)
        return data

    def _check_unbegun(self, job: LeasedJob) -> None:
        """Of a job whose earlier instance was lost or gave it back: readers have nothing of its answer.

        Raises:
            RemoteFailed: They have.
        """
        events: list[Event] = []
        while more := self._store.events({job.job_id: events[-1].id if events else "0"}):
            events += more
        delta = Delta()
        for event in events:
            delta = delta + Delta(event.text, event.reasoning, event.calls)
        if not delta:
            return
        job.resume_parts(delta, [entry for event in events for entry in event.logprobs])
        host = self._options.host
        raise RemoteFailed(
            f"the instance that read the answer of {host} was lost, and no other can go on with it; what came of it is "
            "kept, submit the job again for a whole one",
            host=host, status=200, said="",
        )  # fmt: skip


class RemoteServer:
    """A `Prover` that has nothing to prove: its receipts name the server, and leave empty what nobody here can know."""

    def __init__(self, options: RemoteOptions, numerics: Numerics = "fast") -> None:
        self._options = options
        self._numerics = numerics

    def receipt(
        self,
        *,
        threads: int,  # noqa: ARG002
        seed: int,
        prompt: object,  # noqa: ARG002
        output: object,  # noqa: ARG002
        adapters: AdapterSet = (),  # noqa: ARG002
        media: Sequence[str] = (),
    ) -> Receipt:
        return Receipt(
            model_sha256="", numerics=self._numerics, recipe="fast", numerics_class="", library="", features="",
            flags="", threads=0, seed=seed, prompt_sha256="", output_sha256="", media=tuple(media),
            remote=self._options.shown,
        )  # fmt: skip
