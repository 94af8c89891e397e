"""The engine: one thread owns model and cache, and turns requests into tokens, all slots in one batch.

Other threads only leave notes in an inbox; the engine thread reads it between steps, and within a long prefill by way
of `should_stop`. One step:

    1. read the inbox: new requests, cancels
    2. fill free slots, lowest id first; begin each new sequence with the longest prefix that some slot holds; where no
       slot is free, park a bulk sequence for each interactive one (parking.py)
    3. end what is past its deadline
    4. plan rows, of one adapter set (turns.py), now and then without bulk sequences (standing_back.py), compute them,
       give each new token to its sequence
    5. embed what waits for that, at most one batch (embedding.py)

A step that fails is repeated sequence by sequence: the one that fails alone is ended with the error, all others go on.
When the backend can name the sequence that cannot go on, only that one is ended, and the step is planned anew.
A cache that cannot be copied or moved costs no job: what was to begin with it is computed from its start.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import islice

from packtrain.broker.errors import JobFailed, PacktrainError, PromptEmpty
from packtrain.broker.ids import JobId
from packtrain.broker.structured import FreeText
from packtrain.workers.backends.base import Backend, DecodeFailed, Interrupted, Sampled, SequenceFailed, StepRows
from packtrain.workers.engine.embedding import EmbedQueue, EmbedRequest
from packtrain.workers.engine.inbox import MAX_GATHER_S, Inbox
from packtrain.workers.engine.logprobs import Describer
from packtrain.workers.engine.lookup import Guesser
from packtrain.workers.engine.media import MediaTurns
from packtrain.workers.engine.meter import StepMeter
from packtrain.workers.engine.places import Places
from packtrain.workers.engine.scheduler import Rows, add_guesses, plan_image_step, plan_serial_step, plan_step
from packtrain.workers.engine.sequence import End, Ended, Sequence, SequenceRequest, Tokens
from packtrain.workers.engine.standing_back import StandingBack
from packtrain.workers.engine.turns import Turns
from packtrain.workers.load_options import Speculation

logger = logging.getLogger(__name__)

#: Prefill rows in a step that also decodes, see scheduler.py.
PREFILL_BUDGET = 128
#: Sequences in a row that failed alone, with no step succeeding between: then the model is broken, not a request.
MAX_FAILURES_IN_A_ROW = 8


class EngineBroken(Exception):
    """Nothing can be computed any more. The process must end; its jobs go back to the queue."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counters since the start. Read from any thread; each is right by itself."""

    steps: int
    tokens_out: int
    tokens_reused: int  # prompt tokens copied from another slot instead of computed
    batch_peak: int
    slots_used: int
    waiting: int
    beat: float  # last sign of life of the engine thread, on its clock
    guessed: int = 0  # tokens that were guessed and computed
    guessed_right: int = 0
    parked: int = 0  # sequences that are parked now
    parkings: int = 0
    parkable: int = 0  # more interactive sequences than slots are taken up by so many, at once
    batches: tuple[int, ...] = ()  # steps by the sequences in them, see meter.py
    batched: int = 0  # sequences of all steps
    kv_tokens: int = 0  # tokens in the cache of sequences in slots


class Engine:
    """Runs sequences on a backend. `submit`, `cancel`, `stop`, `set_threads` and `stats` may be called from any thread.

    Args:
        backend: Loaded model; only this engine's thread steps it.
        clock: Monotonic seconds.
        on_activity: Called from the engine thread when `is_busy` has changed; must not block.
        speculation: Whether to guess tokens, where the model and the recipe allow it.
        parks: Whether bulk sequences may be parked for interactive ones.
        n_threads: That the backend was made with; 0: not known, and none can be lent.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        clock: Callable[[], float],
        prefill_budget: int = PREFILL_BUDGET,
        on_activity: Callable[[], None] = lambda: None,
        speculation: Speculation = "off",
        parks: bool = True,
        n_threads: int = 0,
    ) -> None:
        self._backend = backend
        self._clock = clock
        self._prefill_budget = prefill_budget
        self._on_activity = on_activity
        self._threads = self._threads_wanted = n_threads
        self._lent = 0  # threads that look at an image now
        self._is_serial = backend.shape.recipe == "serial"
        # A wrong guess must be forgotten; and in the serial recipe a token alone in its step has other bits.
        self._guesses = speculation == "prompt-lookup" and backend.shape.can_share and not self._is_serial
        self._guessed = self._guessed_right = 0
        self._places = Places(backend, parks=parks)
        self._describer = Describer(backend.piece)
        self._turns = Turns()
        self._media = MediaTurns()
        self._standing_back = StandingBack(can_break_off=backend.shape.can_share)
        self._embeds = EmbedQueue(backend, clock=clock, max_failures=MAX_FAILURES_IN_A_ROW)
        self._steps = self._tokens_out = self._tokens_reused = self._batch_peak = self._failures_in_a_row = 0
        self._meter = StepMeter()
        self._num_ended = 0  # in the last step
        self._stepped_at = self._beat = clock()
        self._inbox = Inbox(clock)  # all that other threads touch

    def submit(self, request: SequenceRequest | EmbedRequest) -> None:
        """Run a request. Its `on_end` is called exactly once: later, or now if there is nothing to compute."""
        if not (request.prompt if isinstance(request, SequenceRequest) else request.tokens):
            request.on_end(Ended(End.FAILED, error=PromptEmpty()))  # nothing would ever be pending
        elif not self._inbox.put(request):
            request.on_end(Ended(End.RELEASED))

    def cancel(self, job_id: JobId, end: End) -> None:
        """End a sequence soon, with this reason. Unknown jobs are ignored: it may just have ended."""
        self._inbox.cancel(job_id, end)

    def stop(self) -> None:
        """Release every sequence and let `run` return."""
        self._inbox.stop()

    def set_threads(self, count: int) -> None:
        """Compute with this many threads from the next step on. Costs nothing, changes no answer."""
        self._threads_wanted = count

    def lend(self, count: int) -> None:
        """Compute with so many threads less from the next step on; 0: with all again."""
        self._lent = count

    @property
    def stats(self) -> EngineStats:
        """Counters."""
        return EngineStats(
            self._steps + self._embeds.num_batches,
            self._tokens_out,
            self._tokens_reused,
            max(self._batch_peak, self._embeds.batch_peak),
            len(self._places.live),
            len(self._places.waiting) + len(self._embeds),
            self._beat,
            self._guessed,
            self._guessed_right,
            len(self._places.parked),
            self._places.num_parkings,
            max(0, self._places.num_parkable - self._inbox.num_interactive),
            self._meter.sizes,
            self._meter.batched,
            self._meter.kv_tokens,
        )

    @property
    def is_busy(self) -> bool:
        """True while any request is in a slot or waits for one."""
        return bool(self._places or self._embeds or self._inbox.has_requests)

    def run(self) -> None:
        """The engine thread: step while there is work, sleep while there is none, until `stop`.

        Raises:
            EngineBroken: The backend no longer computes anything.
        """
        while not self._inbox.is_stopping:
            if self.is_busy:
                self._gather()
                self.step()
                self._stepped_at = self._clock()
                continue
            self._on_activity()
            self._inbox.wait()
            self._beat = self._clock()
            self._read_inbox()
            self._on_activity()
        new, _ = self._inbox.read()
        unstarted = [*self._places.waiting, *self._embeds, *new]
        self._places.waiting.clear()
        self._embeds.clear()
        for request in unstarted:
            request.on_end(Ended(End.RELEASED))
        for sequence in self._places.begun:
            self._end(sequence, End.RELEASED)

    def _gather(self) -> None:
        """Wait for all that follow sequences which ended together. Only while there is nothing else to compute."""
        has_work = self._places.live or self._places.parked or self._embeds
        if self._num_ended > 1 and not has_work and self._clock() - self._stepped_at < MAX_GATHER_S:
            self._inbox.gather(self._num_ended - len(self._places.waiting))

    def step(self) -> None:
        """Read the inbox, fill slots, compute one step."""
        self._beat = self._clock()
        self._num_ended = 0
        if self._threads != (threads := max(1, self._threads_wanted - self._lent) if self._threads_wanted else 0):
            self._threads = threads
            self._backend.set_threads(threads)
        self._read_inbox()
        self._fill_slots()
        self._end_late()
        if not self._places.waiting:
            self._places.caches.close_ranks(list(self._places.live.values()))
        self._tokens_reused += self._places.caches.begin(list(self._places.live.values()))
        if rows := self._plan():
            self._compute(rows)
        self._meter.look_at(self._places.live.values())
        if self._embeds:
            self._embeds.step(self._prefill_budget if self._places.live else None, self._stop_for)
            if self._embeds.is_broken:
                raise EngineBroken(f"more than {MAX_FAILURES_IN_A_ROW} texts in a row could not be embedded")

    def _plan(self) -> list[Rows]:
        live = self._standing_back.next([s for s in self._places.live.values() if s.has_begun])
        if self._is_serial:
            return plan_serial_step(sorted(live, key=lambda s: (s.computed_at, s.order)))
        live, is_of_media = self._media.next(live)
        if is_of_media:
            shape = self._backend.shape
            return plan_image_step(
                live,
                n_batch=shape.n_batch,
                prefill_budget=self._prefill_budget,
                others_decode=any(s.num_pending == 1 for s in self._places.live.values()),
            )
        turn, shape = self._turns.next(live), self._backend.shape
        rows = plan_step(
            turn,
            n_batch=shape.n_batch,
            prefill_budget=self._prefill_budget,
            n_outputs=shape.n_outputs,
            others_decode=len(turn) < len(live) and any(s.num_pending == 1 for s in live),
        )
        return add_guesses(rows, most_rows=shape.n_outputs) if self._guesses else rows

    def _read_inbox(self) -> None:
        new, leaving = self._inbox.read()
        self._places.waiting.extend(r for r in new if isinstance(r, SequenceRequest))
        self._embeds.extend(r for r in new if isinstance(r, EmbedRequest))
        self._embeds.leave(leaving)
        for job_id, end in leaving.items():
            if sequence := self._places.find(job_id):
                self._end(sequence, end)
        for request in [r for r in self._places.waiting if r.job_id in leaving]:
            self._places.waiting.remove(request)
            request.on_end(Ended(leaving[request.job_id]))

    def _fill_slots(self) -> None:
        while new := self._places.fill():
            for sequence in new:
                if self._guesses and isinstance(sequence.request.params.response_format, FreeText):
                    sequence.guesser = Guesser()
                # The instance that produced the last token may have died before it could say that it was the last.
                if end := self._reached_end(sequence):
                    sequence.is_complete = sequence.is_scoring
                    if not sequence.is_scoring:
                        self._end(sequence, end)

    def _end_late(self) -> None:
        now = self._clock()
        for sequence in self._places.begun:
            if sequence.request.deadline is not None and sequence.request.deadline <= now:
                self._end(sequence, End.EXPIRED)

    def _compute(self, rows: Seq[Rows]) -> None:
        try:
            self._attempt(rows)
        except Interrupted:
            self._repair(rows)
        except SequenceFailed as failed:
            self._fail(failed, rows)
        except DecodeFailed as error:
            logger.warning("A step of %d sequences failed: %s", len(rows), error, extra={"event": "step.failed"})
            ends = [row.sequence.num_cached + row.count for row in rows]
            self._repair(rows)
            self._compute_one_by_one(rows, ends)

    def _compute_one_by_one(self, rows: Seq[Rows], ends: Seq[int]) -> None:
        failures: list[tuple[Rows, DecodeFailed]] = []
        for row, end in zip(rows, ends, strict=True):
            try:
                # After a repair a sequence may have more to compute than was planned, even all of it. It must get to
                # where the step failed: else one that always fails there would send all others back again and again.
                while row.sequence.num_cached < end:
                    self._attempt([self._up_to(row.sequence, end)])
            except Interrupted:
                self._repair([row, *(failed for failed, _ in failures)])
                return
            except SequenceFailed as failed:
                self._fail(failed, [row])
            except DecodeFailed as error:
                failures.append((row, error))
        if len(failures) == len(rows):  # one that succeeds shows that the model is well and the others are to blame
            self._failures_in_a_row += len(failures)
            if self._failures_in_a_row > MAX_FAILURES_IN_A_ROW:
                last = failures[-1][1]
                raise EngineBroken(f"{self._failures_in_a_row} sequences in a row failed, last: {last}") from last
        for row, cause in failures:
            failure = JobFailed(
                f"the model could not compute this job ({cause}); try another prompt, and report it if it repeats",
                cause=str(cause),
            )
            self._end(row.sequence, End.FAILED, failure)

    def _fail(self, failed: SequenceFailed, rows: Seq[Rows]) -> None:
        """End the sequence that cannot go on; the others are as before this step."""
        self._repair(rows)
        (sequence,) = (row.sequence for row in rows if row.sequence.seq_id == failed.seq_id)
        self._end(sequence, End.FAILED, failed.error)

    def _up_to(self, sequence: Sequence, end: int) -> Rows:
        """Rows of a step for this sequence alone, to `end` or on the way there."""
        if self._is_serial:
            (rows,) = plan_serial_step([sequence])
            return rows
        shape = self._backend.shape
        most = shape.n_outputs if sequence.is_scoring else shape.n_batch
        return Rows(sequence, min(end - sequence.num_cached, most, sequence.num_ahead))

    def _attempt(self, rows: Seq[Rows]) -> None:
        requests = [
            StepRows(
                r.sequence.seq_id, r.sequence.num_cached, [*r.sequence.pending(r.count), *r.guess], r.wants_token,
                r.scored, len(r.guess), r.media,
            )
            for r in rows
        ]  # fmt: skip
        sequences = [row.sequence for row in rows]
        try:
            results = iter(self._backend.step(requests, self._should_stop(rows)))
        except Interrupted:
            self._standing_back.computed(sequences, whole=False)
            raise
        self._standing_back.computed(sequences, whole=True)
        self._failures_in_a_row = 0
        self._steps += 1
        self._meter.step(len(rows))
        self._batch_peak = max(self._batch_peak, len(rows))
        for row, request in zip(rows, requests, strict=True):
            sequence = row.sequence
            sequence.num_cached += row.count
            sequence.computed_at = self._steps
            sequence.batch_peak = max(sequence.batch_peak, len(rows))
            if request.scored:
                self._score(sequence, list(islice(results, len(request.scored))))
            if request.wants_token:
                self._accept_all(row, _sampled(row, results))

    def _score(self, sequence: Sequence, scored: Seq[Sampled]) -> None:
        sequence.scores += map(self._describer.scored, scored)
        if sequence.is_scoring:
            return
        if sequence.is_complete:
            end = self._reached_end(sequence)
            assert end is not None
            self._end(sequence, end)
        elif self._is_serial:  # for its answer it is computed in the chunks of a prompt without scores
            sequence.num_cached = self._backend.truncate(sequence.seq_id, 0)

    def _accept_all(self, row: Rows, sampled: Seq[Sampled]) -> None:
        sequence, num_right = row.sequence, len(sampled) - 1
        sequence.num_cached += num_right
        if num_right < len(row.guess):
            sequence.num_cached = self._backend.truncate(sequence.seq_id, sequence.num_cached)
        for entry in sampled:
            self._accept(sequence, entry)
            if sequence.request.job_id not in self._places.live:  # what was sampled behind its end nobody asked for
                return
        if row.guess and sequence.guesser:
            sequence.guesser.learn(len(row.guess), num_right, len(sequence.tokens))
            self._guessed += len(row.guess)
            self._guessed_right += num_right

    def _accept(self, sequence: Sequence, sampled: Sampled) -> None:
        token = sampled.token
        if self._backend.is_end(token) and not sequence.request.params.ignore_eos:
            self._end(sequence, End.STOP)
            return
        index = sequence.num_output
        sequence.tokens.append(token)
        self._tokens_out += 1
        text = sequence.text.push(self._backend.piece(token))
        sequence.request.on_tokens(Tokens(index, text, (token,), self._describer.sampled(sampled)))
        if end := self._reached_end(sequence):
            self._end(sequence, end)

    def _reached_end(self, sequence: Sequence) -> End | None:
        if sequence.text.is_stopped:
            return End.STOP
        return End.LENGTH if sequence.num_output >= sequence.request.max_new else None

    def _end(self, sequence: Sequence, end: End, error: PacktrainError | None = None) -> None:
        self._num_ended += 1
        self._places.leave(sequence, has_failed=end is End.FAILED)
        # A job that goes on elsewhere keeps its held-back text: the resume rebuilds it from the tokens.
        tail = "" if end in (End.RELEASED, End.LOST) else sequence.text.flush()
        is_scored = sequence.request.params.prompt_logprobs is not None and not sequence.is_scoring
        scores = self._describer.prompt(sequence.tokens[0], sequence.scores) if is_scored else ()
        sequence.request.on_end(
            Ended(
                end,
                tail,
                sequence.num_output,
                sequence.batch_peak,
                sequence.num_reused,
                error,
                prompt_logprobs=scores,
                stopped_by=sequence.text.stopped_by,
            )
        )

    def _repair(self, rows: Seq[Rows]) -> None:
        """Bring cache and sequences to the same length after a step that broke off."""
        for row in rows:
            sequence = row.sequence
            sequence.lose_cache(self._backend.truncate(sequence.seq_id, sequence.num_cached))

    def _should_stop(self, rows: Seq[Rows]) -> Callable[[], bool] | None:
        """Whether to break off a step; None: it is not long enough to be worth asking."""
        gives_way = self._standing_back.gives_way([row.sequence for row in rows])
        long = [row.sequence.request for row in rows if row.count > 1]
        return self._stop_for(long, gives_way=gives_way) if long or gives_way else None

    def _stop_for(
        self, requests: Seq[SequenceRequest | EmbedRequest], *, gives_way: bool = False
    ) -> Callable[[], bool]:
        deadlines = [request.deadline for request in requests if request.deadline is not None]
        first_deadline = min(deadlines, default=None)
        ids = {request.job_id for request in requests}

        def should_stop() -> bool:
            self._beat = self._clock()
            if first_deadline is not None and first_deadline <= self._beat:
                return True
            return self._inbox.calls_off(ids) or (gives_way and self._inbox.num_interactive > 0)

        return should_stop


def _sampled(row: Rows, results: Iterator[Sampled]) -> list[Sampled]:
    """The sampled tokens of these rows: one, and one more behind each guess that was right."""
    sampled = [next(results)]
    for guess in row.guess:
        if sampled[-1].token != guess:
            break
        sampled.append(next(results))
    return sampled
