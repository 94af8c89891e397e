"""Verify: run a job again from its record and compare, token by token; vectors number by number.

The new run takes the old one's request, seed and numerics, on any instance or on one that is named. For a deterministic
job both must be equal in every token when both numerics classes are equal; in different classes they may differ, and
the receipts say in what. A fast job promises nothing: only its text is compared, and a difference is no fault.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from packtrain.broker import vectors
from packtrain.broker.beats import InstanceBeat
from packtrain.broker.errors import InvalidRequest, UnknownJob
from packtrain.broker.ids import JobId, ModelId, Route, is_deterministic, model_of, new_job_id, route_of
from packtrain.broker.job_spec import JobSpec
from packtrain.broker.outcome import JobStatus, Outcome, Receipt
from packtrain.broker.states import JobState
from packtrain.client.transport import Transport

#: Likeliest tokens that the new run notes, to say what it thinks of the old token where it took another.
NUM_TOP = 20

Unit = Literal["token", "character", "dimension", "prompt token"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A token at the place where two runs part."""

    token: int | None  # None: the answer ended here
    text: str = ""
    logprob: float | None = None  # by the new run; None: not among its likeliest


@dataclass(frozen=True, slots=True)
class Difference:
    """Where two answers part: `index` counts what `Verification.unit` says."""

    index: int
    old: Candidate
    new: Candidate


@dataclass(frozen=True, slots=True)
class Verification:
    """What came of running a job again."""

    job_id: str
    new_job_id: str
    is_deterministic: bool
    old: Receipt | None
    new: Receipt | None
    node: str  # where it ran again
    instance: str
    difference: Difference | None
    unit: Unit = "token"  # that the difference counts

    @property
    def is_equal(self) -> bool:
        """True when both answers are the same."""
        return self.difference is None

    @property
    def is_same_class(self) -> bool:
        """True when the numerics classes are equal, so that a deterministic job must be."""
        return bool(self.old and self.new and self.old.numerics_class == self.new.numerics_class)


@dataclass(frozen=True, slots=True)
class Rerun:
    """A job that has been submitted again, to be compared once it has ended."""

    old: JobStatus
    spec: JobSpec  # of the new run
    new_job_id: JobId

    def compare(self, new: JobStatus) -> Verification:
        """What came of it."""
        before, after = self.old.outcome, new.outcome
        assert before is not None
        assert after is not None
        difference = first_difference(before, after, is_deterministic=self.spec.deterministic)
        return Verification(
            self.old.id, self.new_job_id, self.spec.deterministic, before.receipt, after.receipt, after.node,
            after.instance, difference, unit_of(self.spec),
        )  # fmt: skip


def start_again(transport: Transport, job_id: JobId, on: str | None) -> Rerun:
    """Submit a job again from its record.

    Args:
        on: The instance or node that shall run it; None: any that may.

    Raises:
        InvalidRequest: The job has no whole answer, or nobody is called `on`.
        UnknownJob
    """
    old = transport.status(job_id)
    if old is None:
        raise UnknownJob(job_id=job_id)
    spec = request_again(job_id, transport.spec(job_id), old.outcome, model=old.model, on=on)
    if on is not None:
        _check_is_there(transport.instances(), on, route_of(ModelId(old.model), deterministic=spec.deterministic))
    return Rerun(old, spec, transport.submit(new_job_id(), spec).job_id)


def request_again(job_id: str, spec: JobSpec | None, outcome: Outcome | None, *, model: str, on: str | None) -> JobSpec:
    """The request of the new run.

    Args:
        model: That the job ran on; its request may name an alias, which may mean another model by now.

    Raises:
        InvalidRequest: The job has no answer that could be compared.
    """
    if spec is None or outcome is None:
        raise InvalidRequest(f"job {job_id} has not ended or its record is gone; only an answer can be verified")
    if outcome.state is not JobState.SUCCEEDED:
        raise InvalidRequest(f"job {job_id} ended as {outcome.state}; only a whole answer can be verified")
    if outcome.receipt and outcome.receipt.remote:
        raise InvalidRequest(
            f"job {job_id} was answered by {outcome.receipt.remote}, and nothing about its answers can be proven; "
            "verify one that was computed here"
        )
    ranks = spec.deterministic and spec.kind != "embed"
    update: dict[str, object] = {"seed": outcome.seed, "logprobs": NUM_TOP if ranks else None}
    if outcome.finish_reason == "length":  # it may have filled its slot, and the next one may be larger
        update["max_tokens"] = outcome.usage.completion_tokens
    params = spec.params.model_copy(update=update)
    again = {
        "model": model,
        "params": params,
        "meant_for": on,
        "expires_in_ms": None,
        "max_run_ms": None,
        "stream": False,
    }
    if spec.adapters and outcome.receipt:  # with the scales that were used, for the operator may have set others since
        again["adapters"] = {adapter.name: adapter.scale for adapter in outcome.receipt.adapters}
    return spec.model_copy(update=again)


def unit_of(spec: JobSpec) -> Unit:
    """What the index of a difference counts."""
    if spec.kind == "embed":
        return "dimension"
    if spec.params.max_tokens == 0:
        return "prompt token"
    return "token" if spec.deterministic else "character"


def first_difference(old: Outcome, new: Outcome, *, is_deterministic: bool) -> Difference | None:
    """Where the answers part; None when they are equal."""
    if old.embedding or new.embedding:
        before, after = vectors.from_wire(old.embedding), vectors.from_wire(new.embedding)
        index = _parting(before, after)
        return None if index is None else Difference(index, _number_at(before, index), _number_at(after, index))
    if old.finish_reason == "length" and not old.usage.completion_tokens:  # max_tokens=0: the prompt was only scored
        index = _parting(old.prompt_logprobs, new.prompt_logprobs)
        return None if index is None else Difference(index, _score_at(old, index), _score_at(new, index))
    if not is_deterministic:
        said, now = _said(old), _said(new)
        index = _parting(said, now)
        if index is None:
            return None
        return Difference(index, _text_at(said, index), _text_at(now, index))
    index = _parting(old.tokens, new.tokens)
    if index is None:
        return None
    seen = {}
    if index < len(new.logprobs):
        entry = new.logprobs[index]
        seen = {top.token: Candidate(top.token, top.text, top.logprob) for top in entry.top}
        seen[entry.token] = Candidate(entry.token, entry.text, entry.logprob)
    return Difference(index, _candidate(_at(old.tokens, index), seen), _candidate(_at(new.tokens, index), seen))


def _check_is_there(instances: Iterable[InstanceBeat], name: str, route: Route) -> None:
    """A job meant for nobody would wait in vain."""
    alive = [i for i in instances if not i.state.is_terminal]
    serving = [i for i in alive if i.serves(route)]
    known = sorted({i.instance for i in serving} | {i.node for i in serving})
    if name not in known:
        how = " in deterministic numerics" if is_deterministic(route) else ""
        loaded = ", ".join(known) or "none; load it first"
        raise InvalidRequest(f"no instance or node {name!r} holds {model_of(route)!r}{how} now; there are: {loaded}")


def _said(outcome: Outcome) -> str:
    calls = (f"{call.function.name}{call.function.arguments}" for call in outcome.tool_calls)
    return "".join((outcome.reasoning, outcome.text, *calls))


def _parting(old: Sequence[object], new: Sequence[object]) -> int | None:
    for index, (a, b) in enumerate(zip(old, new, strict=False)):
        if a != b:
            return index
    return None if len(old) == len(new) else min(len(old), len(new))


def _candidate(token: int | None, seen: Mapping[int, Candidate]) -> Candidate:
    return Candidate(None) if token is None else seen.get(token, Candidate(token))


def _at(tokens: Sequence[int], index: int) -> int | None:
    return tokens[index] if index < len(tokens) else None


def _text_at(text: str, index: int) -> Candidate:
    return Candidate(None, text[index : index + 24])


def _score_at(outcome: Outcome, index: int) -> Candidate:
    if index >= len(outcome.prompt_logprobs):
        return Candidate(None)
    entry = outcome.prompt_logprobs[index]
    return Candidate(entry.token, entry.text, entry.logprob)


def _number_at(vector: Sequence[float], index: int) -> Candidate:
    return Candidate(None, repr(vector[index]) if index < len(vector) else "")
