"""`Packtrain`: a fleet as a Python object.

    >>> fleet = Packtrain()                                       # doctest: +SKIP
    >>> job = fleet.submit("smollm2", "Hello!", max_tokens=32)    # doctest: +SKIP
    >>> for text in job.stream(): print(text, end="")             # doctest: +SKIP
    >>> job.result().usage.completion_tokens                      # doctest: +SKIP

Sampling options are keyword arguments with the names of `SamplingParams`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self, overload

from pydantic import ValidationError

from packtrain.broker.beats import InstanceBeat, NodeBeat
from packtrain.broker.errors import InvalidParameter
from packtrain.broker.explain import Explanation
from packtrain.broker.fields import invalid
from packtrain.broker.ids import JobId, ModelId, NodeId, Route, is_safe_id
from packtrain.broker.job_spec import JobSpec
from packtrain.broker.model_info import ModelInfo
from packtrain.broker.node_wishes import NodeChange, NodeWish
from packtrain.broker.outcome import JobStatus
from packtrain.broker.pieces import Piece, text_of
from packtrain.broker.pulls import PullStatus, new_pull
from packtrain.client.job import Job, TextStream
from packtrain.client.opening import open_transport
from packtrain.client.reading import EMBED_IN_FLIGHT, Several, Window
from packtrain.client.request import (
    Prompt,
    Tokens,
    build_embed_spec,
    build_listing_spec,
    build_spec,
    choice_seeds,
    job_id_of,
)
from packtrain.client.result import AnswerDelta, Result
from packtrain.client.transport import Transport
from packtrain.client.verify import Verification, start_again
from packtrain.client.waiting import read_events, run_in_order


class Packtrain:
    """A fleet. Safe to share between threads.

    Args:
        url: Of the fleet: redis:// or rediss:// of its broker, or http:// or https:// of a gateway before it; default:
            `PACKTRAIN_URL`, else the one that `packtrain up` runs here.
        api_key: For a gateway that asks for one; default: `PACKTRAIN_API_KEY`.
        transport: Instead of a URL.

    Raises:
        SetupError: No fleet is known, or the URL is none.
    """

    def __init__(
        self, url: str | None = None, *, api_key: str | None = None, transport: Transport | None = None
    ) -> None:
        self._transport = transport or open_transport(url, api_key)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Packtrain {self._transport.url}>"

    def close(self) -> None:
        """Free the connection. Jobs go on."""
        self._transport.close()

    def submit(
        self,
        /,
        model: str,
        prompt: Prompt,
        *,
        raw: bool = False,
        stream: bool = True,
        idempotency_key: str | None = None,
        expires_in: float | None = None,
        max_run: float | None = None,
        **options: Any,
    ) -> Job:
        """Hand in a job and return at once.

        Args:
            prompt: A text (one user turn), the turns of a chat, or `Tokens`, which are continued exactly as they are.
            raw: Continue the text as it stands, without the chat template.
            stream: False when only the result is wanted: tokens then come once a second, which spares the cores.
            idempotency_key: The same key again gives the same job, however often and from wherever it is sent.
            expires_in: Seconds after which the job ends as EXPIRED.
            max_run: Seconds from its first start, all attempts together, after which it ends as EXPIRED.
            options: Sampling parameters by name; `lane` ("interactive" or "bulk"), `user`, `tag` (what the job is
                counted under beside its user); for a text, `suffix`: what
                stands behind the gap that is to be filled; with `raw`, `echo`: the answer begins with the prompt; for a
                chat, `tools` and `tool_choice` in OpenAI's shape,
                `parallel_tool_calls`, `reasoning` ("auto", "off", "on", "low", "medium", "high", as far as the model
                can), `template_args` (further variables for its chat template); `adapters`: names of the model's LoRA
                adapters, or a mapping of names to scales; `images` (paths, bytes, data: URLs or Pillow's) and `audio`
                (paths or bytes of WAV or MP3 files), which stand before the text of the last turn; `deterministic`;
                and what form the answer has: `schema` (JSON of a JSON schema or of a pydantic model), `json=True` (some
                JSON object), `grammar` (GBNF), or OpenAI's `response_format`.

        Raises:
            InvalidParameter, PromptEmpty, UnknownModel, AdapterUnavailable, MediaUnsupported, MediaGone, BlobsFull,
                QueueFull, IdempotencyConflict,
                BrokerUnavailable
        """
        spec = build_spec(
            model, prompt, raw=raw, stream=stream, expires_in=expires_in, max_run=max_run, options=options
        )
        return self.hand_in(spec, idempotency_key=idempotency_key)

    def hand_in(self, spec: JobSpec, *, idempotency_key: str | None = None) -> Job:
        """Submit a request that is already one; errors as of `submit`, but for those of its arguments."""
        submitted = self._transport.submit(job_id_of(spec, idempotency_key), spec)
        return Job(self._transport, submitted.job_id, is_new=submitted.is_new)

    def generate(self, model: str, prompt: Prompt, *, timeout: float | None = None, **options: Any) -> Result:
        """Submit, and wait for the result. Arguments as of `submit`; errors as of `submit` and `Job.result`."""
        return self.submit(model, prompt, stream=False, **options).result(timeout)

    def choices(
        self,
        model: str,
        prompt: Prompt,
        n: int,
        *,
        seed: int | None = None,
        timeout: float | None = None,
        **options: Any,
    ) -> list[Result]:
        """Several answers to one prompt, drawn with seeds that follow from `seed`.

        Each is a job of its own, so they share a batch; the prompt is computed once per instance that takes part.
        """
        seeds = choice_seeds(n, seed)
        window = Window(n, raises=True, options=options)
        submits = (partial(self.submit, model, prompt, seed=each, stream=False, **options) for each in seeds)
        return list(run_in_order(self._transport, submits, window, timeout))

    def stream(self, model: str, prompt: Prompt, **options: Any) -> TextStream:
        """Submit, and give the text as it comes. Closing the stream cancels the job. Arguments as of `submit`."""
        return TextStream(self.submit(model, prompt, **options))

    def count_tokens(
        self, model: str, prompt: Prompt, *, raw: bool = False, timeout: float | None = None, **options: Any
    ) -> int:
        """How many tokens a prompt has for a model, as the model's template and tokenizer make them.

        Computed by an instance of the model, which is loaded if there is none. Arguments as of `submit`, errors as of
        `submit` and `Job.result`; a prompt too long for the model is counted all the same.
        """
        spec = build_spec(model, prompt, raw=raw, stream=False, expires_in=None, options=options, count={})
        return self.hand_in(spec).result(timeout).usage.prompt_tokens

    def tokenize(
        self,
        model: str,
        prompt: Prompt,
        *,
        add_special: bool = True,
        parse_special: bool = False,
        timeout: float | None = None,
        **options: Any,
    ) -> tuple[Piece, ...]:
        """The tokens of a prompt with the text of each; of a text as it stands, of a chat as its template makes it.

        Computed as by `count_tokens`. At most 131,072 tokens. Some vocabularies begin each text with a blank.

        Args:
            prompt: A text, the turns of a chat, or `Tokens`, of which it gives the texts.
            add_special: Put around a text what the vocabulary puts there, such as a token that begins each.
            parse_special: Take what is written like a special token, such as `<|im_end|>`, for that token.
            options: As of `submit`.

        Raises:
            InvalidParameter: There are too many tokens, or the vocabulary has no such token.
        """
        spec = build_listing_spec(model, prompt, add_special=add_special, parse_special=parse_special, options=options)
        return self.hand_in(spec).result(timeout).pieces

    def detokenize(self, model: str, tokens: Iterable[int], *, timeout: float | None = None, **options: Any) -> str:
        """The text of tokens, special ones as they are written. Arguments and errors as of `tokenize`."""
        return text_of(self.tokenize(model, Tokens(tokens), timeout=timeout, **options))

    def map(
        self,
        model: str,
        prompts: Iterable[Prompt],
        *,
        in_flight: int = 64,
        on_error: Literal["raise", "return"] = "raise",
        **options: Any,
    ) -> Iterator[Result]:
        """Results for many prompts, in their order, with at most `in_flight` jobs submitted and not yet given out.

        Args:
            on_error: "return" gives a result with its `error` set instead of raising it at its turn.

        Leaving the iteration early cancels what is in flight.
        """
        window = Window(in_flight, raises=on_error == "raise", options=options)
        submits = (partial(self.submit, model, prompt, stream=False, **options) for prompt in prompts)
        yield from run_in_order(self._transport, submits, window)

    def submit_embedding(
        self,
        /,
        model: str,
        text: str | Tokens,
        *,
        dimensions: int | None = None,
        idempotency_key: str | None = None,
        expires_in: float | None = None,
        max_run: float | None = None,
        **options: Any,
    ) -> Job:
        """Hand in one text to embed and return at once. The vector is `Job.result().embedding`.

        Args:
            text: Or its `Tokens`, which are taken exactly as they are, with nothing around them.
            dimensions: Keep only the first so many, stretched to length 1 again, for models trained for that.
            options: `lane`, `user`, `tag`, `deterministic`.

        Other arguments and errors as of `submit`.
        """
        spec = build_embed_spec(
            model, text, dimensions=dimensions, expires_in=expires_in, max_run=max_run, options=options
        )
        return self.hand_in(spec, idempotency_key=idempotency_key)

    @overload
    def embed(
        self,
        model: str,
        texts: str | Tokens,
        *,
        dimensions: int | None = None,
        timeout: float | None = None,
        **options: Any,
    ) -> list[float]: ...

    @overload
    def embed(
        self,
        model: str,
        texts: Iterable[str | Tokens],
        *,
        dimensions: int | None = None,
        timeout: float | None = None,
        **options: Any,
    ) -> list[list[float]]: ...

    def embed(
        self,
        model: str,
        texts: str | Tokens | Iterable[str | Tokens],
        *,
        dimensions: int | None = None,
        timeout: float | None = None,
        **options: Any,
    ) -> list[float] | list[list[float]]:
        """Vectors of texts, in their order, each of length 1; of a single text its vector alone.

        Each text is a job of its own; a model embeds those that wait in batches.

        Args:
            timeout: Seconds for all of them; what is in flight is cancelled then. None waits as long as it takes.

        Other arguments as of `submit_embedding`, errors as of it and of `Job.result`.
        """
        window = Window(EMBED_IN_FLIGHT, raises=True, options=options)
        each: Iterator[str | Tokens] = iter([texts] if isinstance(texts, str | Tokens) else texts)
        submits = (partial(self.submit_embedding, model, text, dimensions=dimensions, **options) for text in each)
        vectors = [list(r.embedding or ()) for r in run_in_order(self._transport, submits, window, timeout)]
        return vectors[0] if isinstance(texts, str | Tokens) else vectors

    def job(self, job_id: str) -> Job:
        """A job by its id, whoever submitted it."""
        return Job(self._transport, JobId(job_id))

    def answers(self, jobs: Sequence[Job]) -> Iterator[tuple[int, AnswerDelta | Result]]:
        """What comes of several jobs as it comes: the place of a job in `jobs`, with a bit of its answer or its result.

        Jobs are read together, over one connection. Leaving early cancels none. Errors as of `Job.deltas`.
        """
        several = Several([job.id for job in jobs])
        for event in read_events(self._transport, several.cursors, None):
            yield from several.take(event)
            if event.end:
                yield from several.ended(event.job_id, self.job(event.job_id).status())

    def explain(self, job_id: str) -> Explanation:
        """Why a job is where it is, see `Job.explain`."""
        return self.job(job_id).explain()

    def verify(self, job_id: str, *, on: str | None = None, timeout: float | None = None) -> Verification:
        """Run a job again from its record and compare the answers.

        Args:
            on: The instance or node that shall run it; None: any that may.
            timeout: Seconds to wait for the new answer.

        Raises:
            InvalidRequest: The job has no whole answer, or nobody is called `on`.
        """
        rerun = start_again(self._transport, JobId(job_id), on)
        again = self.job(rerun.new_job_id)
        again.result(timeout)
        return rerun.compare(again.status())

    def jobs(self, limit: int = 20) -> list[JobStatus]:
        """The newest jobs first."""
        return self._transport.recent(limit)

    def models(self) -> list[ModelInfo]:
        """Models and aliases that the fleet offers."""
        return self._transport.models()

    def nodes(self) -> list[NodeBeat]:
        """Live nodes."""
        return self._transport.nodes()

    def instances(self) -> list[InstanceBeat]:
        """Instances that live or ended lately."""
        return self._transport.instances()

    def waiting(self) -> dict[Route, int]:
        """Jobs that wait, by model."""
        return self._transport.waiting()

    def waits(self) -> dict[Route, str]:
        """Why models have to wait for a place, those that no job waits for among them."""
        return self._transport.waits()

    def load(self, model: str, *, replicas: int = 1) -> None:
        """Ask the fleet to load a model and keep it loaded.

        Args:
            replicas: How many instances, on as many nodes as can be.
        """
        if not 1 <= replicas <= 1000:
            raise InvalidParameter(
                f"replicas = {replicas} is not from 1 to 1000; to have none, unload it", field="replicas"
            )
        self._transport.set_desired(ModelId(model), replicas=replicas, unload=False)

    def unload(self, model: str) -> None:
        """Ask the fleet to unload a model once its running jobs have ended."""
        self._transport.set_desired(ModelId(model), replicas=0, unload=True)

    def pull(self, repo: str, file: str, *, node: str, revision: str = "main", mmproj: str = "") -> str:
        """Have a node pull a model file from Hugging Face; returns an id for `pull_status` at once.

        Args:
            repo: `owner/name`.
            file: Path in it, of a GGUF file; of a split one all parts come.
            mmproj: The projector that comes along, where there is one: its type such as `q8_0`, its path in the
                repository, or `none` to leave it out. Empty: of several types the first of f16, bf16, q8_0, f32.

        Raises:
            UnknownNode
            InvalidParameter: A name cannot be.
        """
        request = new_pull(repo, file, revision, mmproj)
        self._transport.pull(NodeId(node), request)
        return request.id

    def pull_status(self, pull_id: str) -> PullStatus | None:
        """How far a pull is. None: its node has not said yet, or has not said anything for 15 s."""
        return self._transport.pull_status(pull_id)

    def set_node(
        self,
        node: str,
        *,
        memory: int | None = None,
        cores: int | None = None,
        labels: Mapping[str, str | None] | None = None,
    ) -> NodeWish:
        """Set budgets and labels of a node, while it runs and for ever after. What is left out stays as it is.

        Args:
            memory: Bytes that its instances may use together; 0: what it was started with.
            cores: The same for cores.
            labels: Set these; None as a value takes one away.

        Raises:
            UnknownNode
            InvalidParameter
        """
        return self._change_node(node, memory=memory, cores=cores, labels=dict(labels or {}))

    def drain_node(self, node: str) -> NodeWish:
        """Have a node finish its jobs and take no more, until it is resumed."""
        return self._change_node(node, draining=True)

    def resume_node(self, node: str) -> NodeWish:
        """Have a node take part again: after a drain, and out of a quarantine."""
        return self._change_node(node, draining=False, resume=True)

    def _change_node(self, node: str, **fields: Any) -> NodeWish:
        if not is_safe_id(node):
            raise InvalidParameter(f"{node!r} is no node's id; `packtrain nodes` lists them", field="node")
        try:
            change = NodeChange(**fields)
        except ValidationError as error:
            raise invalid(error) from None
        return self._transport.change_node(NodeId(node), change)
