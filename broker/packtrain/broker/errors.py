"""Every error a user of Packtrain can meet, in one tree whose branches say what the caller may do about it.

    PacktrainError
    ├── InvalidRequest            change the request
    │   ├── InvalidParameter      a field is missing, unknown or out of range
    │   ├── PromptEmpty           nothing to answer
    │   ├── PromptTooLong         more tokens than the context of the model holds
    │   ├── UnknownModel          no node offers this model
    │   ├── AdapterUnavailable    the model has no such LoRA adapter, or cannot use it
    │   ├── MediaUnsupported      the model cannot see, or hear
    │   ├── MediaUnreadable       an image or sound cannot be decoded, or is too much for the model
    │   ├── MediaGone             an image or sound that the job names is not kept any more
    │   ├── UnknownJob            no such job, or its record has expired
    │   ├── FleetLoop             fleets that are each other's remote would send it round for ever
    │   └── IdempotencyConflict   the key was used before with another request
    ├── TryLater                  send the same request again later
    │   ├── QueueFull             too many jobs wait for this model, or of this user for it
    │   ├── BlobsFull             the broker keeps as many bytes of images and sounds as it may
    │   ├── BrokerUnavailable     Redis cannot be reached, or the gateway before it
    │   ├── ResultTimeout         the job goes on; only this wait has ended
    │   └── AnswerBegunAnew       its answer comes anew; what was read of it is void
    ├── JobError                  the job has ended without a result
    │   ├── JobFailed             the engine could not finish it
    │   │   └── RemoteFailed      the remote server that was to answer could not
    │   ├── JobCancelled          somebody cancelled it
    │   ├── JobExpired            its deadline passed
    │   └── JobDead               its instance died under it too often
    ├── ModelError                the operator must change the model or the node
    │   ├── ModelFileInvalid      the GGUF file is broken or hostile
    │   ├── ModelGone             no live node has offered it for a while
    │   ├── ModelTooLarge         no node could hold it even when empty
    │   ├── ModelFetchFailed      its file could not be brought to a node
    │   └── ModelLoadFailed       the load was tried and failed
    └── SetupError                this machine needs a change first

The class is what travels in code; `code` is what travels on the wire and never changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar


class PacktrainError(Exception):
    """Base of the tree. The message says what happened, with values, and ends with the remedy.

    Args:
        message: Whole sentence for a person; made from `data` by the subclasses that know their fields.
        data: JSON-able values behind the message, for programs.
    """

    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, **data: Any) -> None:
        super().__init__(message)
        self.message = message
        self.data: dict[str, Any] = data

    def to_wire(self) -> dict[str, Any]:
        """The error as it stands in job records: `{code, message, data}`."""
        return {"code": self.code, "message": self.message, "data": self.data}

    @staticmethod
    def from_wire(wire: dict[str, Any]) -> PacktrainError:
        """The typed error again. A code from a newer fleet becomes a plain `JobFailed`, so nothing is hidden."""
        cls = _BY_CODE.get(str(wire.get("code")), JobFailed)
        error = cls.__new__(cls)
        Exception.__init__(error, str(wire.get("message", "no message")))
        error.message, error.data = str(error), dict(wire.get("data") or {})
        return error


class InvalidRequest(PacktrainError):
    """The request cannot be served as it is. Change it."""

    code = "invalid_request"


class InvalidParameter(InvalidRequest):
    """A field is missing, unknown or out of range."""

    code = "invalid_parameter"


class PromptEmpty(InvalidRequest):
    """There is nothing to answer."""

    code = "prompt_empty"

    def __init__(self) -> None:
        super().__init__("the prompt is empty; send at least one character")


class PromptTooLong(InvalidRequest):
    """The prompt leaves no room in the context of one slot."""

    code = "prompt_too_long"

    def __init__(
        self, *, model: str, num_tokens: int, limit: int, embeds: bool = False, is_rough: bool = False
    ) -> None:
        holds = (
            f"{model!r} embeds {limit} at once" if embeds else f"one slot of {model!r} holds {limit} with its answer"
        )
        shorten = "split it" if embeds else "shorten it"
        super().__init__(
            f"the prompt has {'about ' if is_rough else ''}{num_tokens} tokens, {holds}; "
            f"{shorten}, or raise `context` for this model in packtrain.toml",
            model=model,
            num_tokens=num_tokens,
            limit=limit,
        )


class UnknownModel(InvalidRequest):
    """No node of the fleet offers this model."""

    code = "unknown_model"

    def __init__(self, *, model: str, known: list[str]) -> None:
        offered = ", ".join(sorted(known)[:12]) or "none yet"
        super().__init__(
            f"no node offers the model {model!r}; offered: {offered}. "
            "Put its GGUF file into a model folder of a node, or use one of these names",
            model=model,
            known=sorted(known),
        )


class AdapterUnavailable(InvalidRequest):
    """The model has no such LoRA adapter, or cannot use it."""

    code = "adapter_unavailable"

    def __init__(self, *, adapter: str, model: str, usable: list[str], fault: str = "") -> None:
        others = ", ".join(sorted(usable)[:12]) or "none"
        what = f"cannot use its adapter {adapter!r}: {fault}" if fault else f"has no adapter {adapter!r}"
        super().__init__(
            f"{model!r} {what}; it can use: {others}. [models.{model}.adapters] in packtrain.toml names them",
            adapter=adapter,
            model=model,
            usable=sorted(usable),
            fault=fault,
        )


class MediaUnsupported(InvalidRequest):
    """The model cannot see, or cannot hear."""

    code = "media_unsupported"

    def __init__(
        self,
        *,
        model: str,
        kind: str = "image",
        takes: Iterable[str] = ("text",),
        able: list[str] | None = None,
        remote: str = "",
    ) -> None:
        what, verb = ("sounds", "hears") if kind == "audio" else ("images", "sees")
        others = ", ".join(sorted(able or [])[:12])
        ask = f"ask one that {verb}: {others}" if others else f"leave the {what} out"
        remedy = (
            f"say so in `modalities` of [models.{model}.remote], if {remote} {verb}"
            if remote
            else "put its projector (an mmproj GGUF file) beside it"
        )
        super().__init__(
            f"{model!r} takes {' and '.join(takes)} alone, and the chat has {what}; {ask}, or {remedy}",
            model=model,
            kind=kind,
            able=sorted(able or []),
        )


class MediaGone(InvalidRequest):
    """An image or sound that a job names is not in the broker any more."""

    code = "media_gone"

    def __init__(self, *, sha256: str) -> None:
        super().__init__(
            f"the image or sound {sha256[:12]}... is not kept any more: they stay for a day after they were last sent; "
            "send the job again, with all of them",
            sha256=sha256,
        )


class MediaUnreadable(InvalidRequest):
    """An image or sound of a job cannot be decoded, or takes more tokens than the model computes at once."""

    code = "media_unreadable"


class UnknownJob(InvalidRequest):
    """No such job, or its record has expired."""

    code = "unknown_job"

    def __init__(self, *, job_id: str) -> None:
        super().__init__(
            f"there is no job {job_id!r}; records are kept for a day after the end, check the id with `packtrain jobs`",
            job_id=job_id,
        )


class UnknownNode(InvalidRequest):
    """No node of this name is up."""

    code = "unknown_node"

    def __init__(self, *, node: str, known: list[str]) -> None:
        names = ", ".join(sorted(known)[:20]) or "none"
        super().__init__(f"no node {node!r} is up; those that are: {names}", node=node, known=sorted(known))


class FleetLoop(InvalidRequest):
    """Fleets that are each other's remote would send the job round for ever."""

    code = "fleet_loop"


class IdempotencyConflict(InvalidRequest):
    """The key was used before with another request."""

    code = "idempotency_conflict"

    def __init__(self, *, job_id: str) -> None:
        super().__init__(
            f"this idempotency key already belongs to job {job_id} with a different request; use a new key",
            job_id=job_id,
        )


class TryLater(PacktrainError):
    """Nothing is wrong with the request. Send it again later."""

    code = "try_later"


class QueueFull(TryLater):
    """Too many jobs wait for this model, or of this user for it."""

    code = "queue_full"

    def __init__(self, *, model: str, waiting: int, limit: int, retry_after_s: float, user: str = "") -> None:
        whose = f"jobs of {user!r}" if user else "jobs"
        super().__init__(
            f"{waiting} {whose} already wait for {model!r} (limit {limit}); try again in {retry_after_s:.0f} s",
            model=model,
            waiting=waiting,
            limit=limit,
            retry_after_s=retry_after_s,
            user=user,
        )


class BlobsFull(TryLater):
    """The broker keeps as many bytes of images and sounds as it may."""

    code = "blobs_full"

    def __init__(self, *, size: int, limit: int) -> None:
        super().__init__(
            f"the fleet keeps at most {limit // 2**20} MiB of images and sounds, no room for {size} bytes more; each "
            "goes a day after it was last sent: try again later, or send smaller ones",
            size=size,
            limit=limit,
        )


class BrokerUnavailable(TryLater):
    """Redis cannot be reached, or the gateway before it."""

    code = "broker_unavailable"

    def __init__(self, *, url: str, reason: str) -> None:
        who = "gateway" if url.startswith("http") else "broker"
        super().__init__(
            f"no {who} answers at {url} ({reason}); start a fleet with `packtrain up`, or set PACKTRAIN_URL",
            url=url,
            reason=reason,
        )


class ResultTimeout(TryLater, TimeoutError):
    """This wait has ended; the job goes on."""

    code = "result_timeout"

    def __init__(self, *, job_id: str, timeout_s: float, state: str) -> None:
        super().__init__(
            f"job {job_id} is still {state} after {timeout_s:g} s; wait longer, or cancel it",
            job_id=job_id,
            timeout_s=timeout_s,
            state=state,
        )


class AnswerBegunAnew(TryLater):
    """A deterministic job lost its instance, and no other of its numerics class is left to go on with its tokens."""

    code = "answer_begun_anew"

    def __init__(self, *, job_id: str) -> None:
        super().__init__(
            f"the answer of job {job_id} begins anew in another numerics class, and what was read of it is void; read "
            "the job again from the beginning, or wait for its result (`Packtrain.stream` has cancelled it: ask again)",
            job_id=job_id,
        )


class JobError(PacktrainError):
    """The job has ended without a result."""

    code = "job_error"


class JobFailed(JobError):
    """The engine could not finish the job."""

    code = "job_failed"


class RemoteFailed(JobFailed):
    """The remote server that was to answer could not.

    `data` has `host`, `status` (of HTTP; null: none came) and `said` (by the server).
    """

    code = "remote_failed"


class JobCancelled(JobError):
    """Somebody cancelled the job."""

    code = "job_cancelled"


class JobExpired(JobError):
    """The deadline of the job passed before it ended."""

    code = "job_expired"


class JobDead(JobError):
    """Instances died under this job too often; it is not tried again."""

    code = "job_dead"

    def __init__(
        self,
        *,
        attempts: int,
        instance: str,
        cause: str,
        exit_code: int | None = None,
        signal: str = "",
        tail: Sequence[str] = (),
    ) -> None:
        super().__init__(
            f"{attempts} instances were lost while they ran this job, the last time {instance} {cause}; "
            "it is not tried again, change the prompt or the model, and report it if it repeats",
            attempts=attempts,
            instance=instance,
            cause=cause,
            exit_code=exit_code,
            signal=signal,
            tail=list(tail),
        )


class ModelError(PacktrainError):
    """The operator must change the model or the node."""

    code = "model_error"


class ModelFileInvalid(ModelError):
    """The GGUF file is broken or hostile."""

    code = "model_file_invalid"

    def __init__(self, *, path: str, reason: str) -> None:
        super().__init__(
            f"{path} is not a usable GGUF file: {reason}; download it again or remove it", path=path, reason=reason
        )


class ModelGone(ModelError):
    """No live node has offered the model for so long that its jobs wait no more."""

    code = "model_gone"

    def __init__(self, *, model: str, waited_s: float, known: list[str], held: str = "") -> None:
        offered = ", ".join(sorted(known)[:12]) or "none"
        remedy = "Start the node that has its GGUF file, or put the file into a model folder of a node"
        if held:  # by a node that takes no work, and why
            remedy = f"{held}: `packtrain nodes resume` lets it take work again. Do that"
        super().__init__(
            f"no live node has offered the model {model!r} for {waited_s:.0f} s; offered now: {offered}. {remedy}, "
            "and submit again",
            model=model,
            waited_s=waited_s,
            known=sorted(known),
        )


class ModelTooLarge(ModelError):
    """No node could hold the model even when empty."""

    code = "model_too_large"


class ModelLoadFailed(ModelError):
    """The load was tried and failed."""

    code = "model_load_failed"


class ModelFetchFailed(ModelError):
    """Its file could not be brought to a node."""

    code = "model_fetch_failed"


class NotDeterministic(ModelError):
    """No deterministic way to compute this model was found here."""

    code = "not_deterministic"

    def __init__(self, *, model: str, reason: str) -> None:
        super().__init__(
            f"{model!r} cannot be computed deterministically here: {reason}; send the job without `deterministic`, "
            "or use another quantisation or build",
            model=model,
            reason=reason,
        )


class SetupError(PacktrainError):
    """This machine needs a change before Packtrain can run; the message names it."""

    code = "setup_error"


def _tree(cls: type[PacktrainError]) -> list[type[PacktrainError]]:
    return [cls, *(leaf for sub in cls.__subclasses__() for leaf in _tree(sub))]


_BY_CODE: dict[str, type[PacktrainError]] = {cls.code: cls for cls in _tree(PacktrainError)}
