"""The runner: answers one doorbell. It claims a job, has it started, and waits for its end.

What starts it is a `Starter`: `engine_jobs.py` makes tokens of the prompt for the engine of a loaded model,
`remote/jobs.py` a request to another server.

A Celery message alone costs the instance about 2 ms (`benchmarks/queue.py`: bare Celery runs some 500 no-op tasks per
second). So one bell may serve several jobs: for a second, the slot claims the next one as soon as it has ended one. A
job of a language model takes longer than that, so it has a bell to itself; a thousand tiny ones share some. A bell of a
bulk job waits in its thread while the instance has its share of them, see `bulk_share.py`.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from pydantic import ValidationError
from redis.exceptions import RedisError

from packtrain.broker import jobs
from packtrain.broker.errors import InvalidParameter, JobFailed, PacktrainError
from packtrain.broker.fields import Numerics, invalid
from packtrain.broker.ids import InstanceId, JobId, ModelId, NodeId, Route
from packtrain.broker.job_spec import JobSpec
from packtrain.broker.jobs import JobStore
from packtrain.broker.prefixes import prefix_hashes
from packtrain.broker.versions import installed_version
from packtrain.workers.bulk_share import BulkShare
from packtrain.workers.engine.seam import JobEngine
from packtrain.workers.engine.sequence import End, Ended
from packtrain.workers.extra_jobs import ExtraJobs, Seats
from packtrain.workers.job_times import JobTimes
from packtrain.workers.leased_job import LeasedJob
from packtrain.workers.publisher import Publisher
from packtrain.workers.renewer import Renewer

logger = logging.getLogger(__name__)

#: How long one doorbell serves jobs, seconds.
BELL_S = 1.0


class Starter(Protocol):
    """Has leased jobs run. Thread-safe."""

    n_slots: int  # jobs at once
    can_share: bool  # jobs that begin alike are better off together

    def wait_for_turn(self) -> bool:
        """Block until one more job may be claimed; False: none any more, since it was closed."""
        ...

    def give_turn_back(self) -> None:
        """After a turn for which there was no job."""
        ...

    def start(self, job: LeasedJob, claim: jobs.Claim) -> None:
        """Submit the job to the engine.

        Raises:
            PacktrainError: It cannot even start.
            RedisError: What it has of an earlier lease cannot be read.
        """
        ...

    def close(self) -> None:
        """Let nobody wait any more."""
        ...


class Runner:
    """One per instance; `answer` is called from as many Celery threads as there are slots.

    Args:
        bulk_slots: Bulk jobs at once.
        extra_jobs: Interactive jobs beyond the slots, while bulk ones can be parked for them.
    """

    def __init__(
        self,
        store: JobStore,
        starter: Starter,
        engine: JobEngine,
        publisher: Publisher,
        renewer: Renewer,
        *,
        model: ModelId,
        instance: InstanceId,
        node: NodeId,
        lease_ms: int,
        numerics: Numerics,
        numerics_class: str,
        bulk_slots: int,
        extra_jobs: int,
        ring: Callable[[Route], None],
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._starter = starter
        self._engine = engine
        self._publisher = publisher
        self._renewer = renewer
        self._model = model
        self._routes = jobs.routes_of(model, numerics)
        # Of the jobs that the slots hold now or held last; none where a held beginning is of no use.
        self._prefixes: deque[tuple[str, ...]] = deque(maxlen=starter.n_slots if starter.can_share else 0)
        self._instance = instance
        self._node = node
        self._lease_ms = lease_ms
        self._numerics_class = numerics_class
        self._ring = ring
        self._clock = clock
        self._bulk = BulkShare(bulk_slots)
        self.job_times = JobTimes()
        self._seats = Seats(starter.n_slots, extra_jobs)
        self._extra = ExtraJobs(self._seats, self.take_extra) if extra_jobs else None

    def start(self) -> None:
        """Look for interactive jobs, too, for which bulk ones can be parked."""
        if self._extra:
            self._extra.start()

    def drain(self) -> None:
        """Claim nothing any more."""
        self._starter.close()
        self._bulk.close()
        self._seats.close()

    def take_extra(self) -> bool:
        """Run an interactive job beyond the slots, if one waits for which a bulk job can be parked."""
        if not (self._engine.stats.parkable and self._ready()[0] and self._seats.take_extra()):
            return False
        claim = self._claim(bulk=False)
        if claim is None:
            self._seats.give_back()
            return False
        threading.Thread(target=self._run_extra, args=(claim,), name="extra job", daemon=True).start()
        try:
            self._store.unring(claim.route)
        except RedisError as error:
            logger.warning("A spare bell stays: %s", error, extra={"event": "bell.spare"})
        return True

    def _run_extra(self, claim: jobs.Claim) -> None:
        try:
            self._run(claim)
        finally:
            self._seats.give_back()

    def answer(self, heard: Route) -> dict[str, Any] | None:
        """Run jobs to their ends. What Flower shows of it: (last) job, tokens, seconds; None: the bell was spare.

        Args:
            heard: The route whose bell it is.
        """
        begin = self._clock()
        num_jobs = num_tokens = 0
        job: LeasedJob | None = None
        while claim := self._next():
            if job is None and claim.route != heard and heard in claim.unrung:
                self._ring(heard)  # its bell was spent on a job of the other route, and others hear only this one
            try:
                job = self._run(claim)
            finally:
                self._seats.give_back()
                if claim.lane == "bulk":
                    self._bulk.give_back()
            num_jobs, num_tokens = num_jobs + 1, num_tokens + job.num_output
            if job.ended and job.ended.end in (End.RELEASED, End.LOST):
                break  # or this slot would claim a job that it cannot run again and again
            if self._clock() - begin > BELL_S:
                for route in claim.unrung:
                    self._ring(route)
                break
        if job is None:
            return None
        end = job.ended.end if job.ended else None
        shown = {"job": job.job_id, "end": end, "tokens": num_tokens, "seconds": round(self._clock() - begin, 3)}
        return shown if num_jobs == 1 else {"jobs": num_jobs, **shown}

    def _next(self) -> jobs.Claim | None:
        """The next job; waits with the bell while only bulk jobs are left and the instance has its share of them."""
        while self._seats.take():
            if not self._starter.wait_for_turn():
                self._seats.give_back()
                return None
            may_bulk = self._bulk.take()
            claim = None
            try:
                claim = self._claim(bulk=may_bulk)
            finally:
                if claim is None:
                    self._seats.give_back()
                    self._starter.give_turn_back()
                if may_bulk and (claim is None or claim.lane != "bulk"):
                    self._bulk.give_back()
            if claim or may_bulk or not self._ready()[1]:
                return claim
            self._bulk.wait(self._is_worth_a_claim)
        return None

    def _is_worth_a_claim(self) -> bool:
        num_interactive, num_bulk = self._ready()
        return num_interactive > 0 or not num_bulk

    def _ready(self) -> tuple[int, int]:
        try:
            return self._store.ready(self._routes)
        except RedisError:  # the next claim says so
            return 0, 0

    def _claim(self, *, bulk: bool) -> jobs.Claim | None:
        try:
            prefixes = {prefix for held in tuple(self._prefixes) for prefix in held}
            return self._store.claim(
                self._routes,
                self._instance,
                self._node,
                lease_ms=self._lease_ms,
                numerics_class=self._numerics_class,
                prefixes=sorted(prefixes),
                bulk=bulk,
            )
        except RedisError as error:
            logger.warning("Could not claim: %s", error, extra={"event": "claim.failed"})
            return None

    def _run(self, claim: jobs.Claim) -> LeasedJob:
        job, problem = self._accept(claim)
        if older := self._renewer.hold(job):
            # We were silent so long that the job was taken from us, and now we got it again.
            self._engine.cancel(job.job_id, End.LOST)
            older.published.wait()
        number = self.job_times.begin(self._clock())
        try:
            problem = problem or self._start(job, claim)
            if problem:
                job.on_end(Ended(End.FAILED, error=problem))
            # No timeout: an engine that dies takes the process with it, one that stalls is killed by the agent.
            job.published.wait()
        finally:
            self._renewer.let_go(job)
            counts = job.ended is not None and job.ended.end not in (End.RELEASED, End.LOST)
            self.job_times.end(number, self._clock(), counts=counts)
        return job

    def _start(self, job: LeasedJob, claim: jobs.Claim) -> PacktrainError | None:
        """Have the job run; the error when it cannot even start."""
        try:
            self._starter.start(job, claim)
        except PacktrainError as error:
            return error
        except RedisError as error:  # the job is as good as ever
            logger.warning("Could not read what %s has: %s", job.job_id, error, extra={"event": "resume.failed"})
            job.on_end(Ended(End.RELEASED))
        except Exception as error:  # a defect of ours must cost this job, not its slot
            logger.exception("Job %s could not be prepared", job.job_id, extra={"event": "job.unprepared"})
            return JobFailed(f"the job could not be prepared ({error!r}); please report this", cause=repr(error))
        return None

    def _accept(self, claim: jobs.Claim) -> tuple[LeasedJob, PacktrainError | None]:
        error: PacktrainError | None = None
        try:
            spec = JobSpec.model_validate_json(claim.spec_json)
        except ValidationError as problem:  # written past our own client, or by a newer one
            spec, error = JobSpec(model=self._model), unreadable(problem, self._node)
        if prefixes := prefix_hashes(spec):
            self._prefixes.append(prefixes)
        seed = spec.params.seed if spec.params.seed is not None else seed_of(claim.job_id)
        return LeasedJob(claim, spec, seed, clock=self._clock, on_news=self._publisher.news), error


def unreadable(problem: ValidationError, node: NodeId) -> InvalidParameter:
    """Why a job that somebody has let in cannot be read here: mostly for an option that came with a newer version."""
    unknown = [".".join(map(str, each["loc"])) for each in problem.errors() if each["type"] == "extra_forbidden"]
    if not unknown:
        return invalid(problem)
    return InvalidParameter(
        f"Packtrain {installed_version()} on node {node} does not know `{unknown[0]}`, which a newer client or gateway "
        "has asked for; upgrade that node (`packtrain upgrade-check` shows all), or leave it out",
        field=unknown[0],
    )


def seed_of(job_id: JobId) -> int:
    """The seed of a job that names none: 32 bits of the hash of its id, so that a retry draws the same."""
    return int.from_bytes(hashlib.sha256(job_id.encode()).digest()[:4], "big")
