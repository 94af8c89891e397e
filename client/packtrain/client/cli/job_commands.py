"""`packtrain run`, `packtrain embed` and `packtrain jobs`."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.status import Status

from packtrain.broker.errors import InvalidParameter, PacktrainError
from packtrain.broker.states import JobState
from packtrain.client import AnswerDelta, Job, Packtrain, Result
from packtrain.client.cli import views
from packtrain.client.cli.options import JSON

STATUS_S = 0.5


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command()(run)
    app.command()(count)
    app.command()(tokenize)
    app.command()(embed)
    app.command()(verify)
    app.command()(explain)
    jobs = typer.Typer(help="List the newest jobs; `show` or `cancel` one.", invoke_without_command=True)
    jobs.callback()(list_jobs)
    jobs.command("show")(show)
    jobs.command("cancel")(cancel)
    app.add_typer(jobs, name="jobs")


def run(
    model: Annotated[str, typer.Argument(help="Model id, see `packtrain models`.")],
    prompt: Annotated[str | None, typer.Argument(help="What to ask; left out or '-': read from stdin.")] = None,
    system: Annotated[str | None, typer.Option("--system", "-s", help="System message.")] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option("--image", "-i", help="PNG, JPEG, GIF or WebP to ask about; may be given several times."),
    ] = None,
    audio: Annotated[
        list[Path] | None, typer.Option("--audio", help="WAV or MP3 to ask about; may be given several times.")
    ] = None,
    raw: Annotated[bool, typer.Option(help="Continue the text as it stands, without the chat template.")] = False,
    echo: Annotated[bool, typer.Option("--echo", help="With --raw: print the prompt before the answer.")] = False,
    suffix: Annotated[str | None, typer.Option(help="Fill the gap between the prompt and this text.")] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(help="LoRA adapter, NAME or NAME=SCALE; may be given several times."),
    ] = None,
    reasoning: Annotated[str, typer.Option(help="auto, off, on, low, medium or high, if the model can.")] = "auto",
    show_reasoning: Annotated[bool, typer.Option(help="Show on stderr what the model thinks.")] = False,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", "-n", help="At most so many tokens; default: what fits.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", "-t", help="0: always the likeliest token; default 0.8.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Keep the k likeliest tokens; default 40.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Keep the smallest set of this probability; default 0.95.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same answer; default: from the job's id.")] = None,
    schema: Annotated[
        Path | None, typer.Option(help="Answer in JSON of the schema in this file.", dir_okay=False)
    ] = None,
    json_object: Annotated[bool, typer.Option("--json-object", help="Answer in a JSON object of any schema.")] = False,
    grammar: Annotated[Path | None, typer.Option(help="Answer in what this GBNF file allows.", dir_okay=False)] = None,
    prompt_logprobs: Annotated[
        int | None, typer.Option(help="With --json: logprob of each prompt token, and of so many likeliest beside it.")
    ] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End at this text; may be given several times.")] = None,
    timeout: Annotated[float | None, typer.Option(help="End the job as EXPIRED after this many seconds.")] = None,
    max_run: Annotated[
        float | None, typer.Option(help="End it as EXPIRED this many seconds after it first began to run.")
    ] = None,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Only where company and restarts change no bit of the answer.")
    ] = False,
    lane: Annotated[
        str | None, typer.Option(help="interactive (default), or bulk: after all interactive jobs.")
    ] = None,
    user: Annotated[str | None, typer.Option(help="Whose turn it takes; users of a model take turns.")] = None,
    tag: Annotated[str | None, typer.Option(help="What it is counted under, beside its user.")] = None,
    key: Annotated[str | None, typer.Option("--idempotency-key", help="The same key again is the same job.")] = None,
    as_json: JSON = False,
) -> None:
    """Ask a model and stream its answer. Ctrl-C cancels the job."""
    if prompt_logprobs is not None and not as_json:
        raise InvalidParameter("--prompt-logprobs shows in JSON only; add --json", field="prompt_logprobs")
    text = _prompt(prompt)
    options = {
        name: value
        for name, value in {
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "seed": seed,
            "schema": _schema(schema) if schema else None,
            "json": json_object or None,
            "grammar": _text_of(grammar) if grammar else None,
            "stop": tuple(stop) if stop else None,
            "suffix": suffix,
            "adapters": _adapters(adapter) if adapter else None,
            "echo": echo or None,
            "images": image or None,
            "audio": audio or None,
            "prompt_logprobs": prompt_logprobs,
            "reasoning": reasoning,
            "deterministic": deterministic or None,
            "lane": lane,
            "user": user,
            "tag": tag,
        }.items()
        if value is not None
    }
    messages: Any = text
    if system is not None:
        messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
    with Packtrain() as fleet:
        job = fleet.submit(
            model, messages, raw=raw, idempotency_key=key, expires_in=timeout, max_run=max_run, stream=not as_json,
            **options,
        )  # fmt: skip
        try:
            if as_json:
                with _waiting(job):
                    result = job.result()
                _write(json.dumps(_result_json(result)) + "\n")
            else:
                _stream(job, show_reasoning=show_reasoning)
        except (KeyboardInterrupt, BrokenPipeError):  # Ctrl-C, or a reader like `| head` that has seen enough
            job.cancel()
            raise


def count(
    model: Annotated[str, typer.Argument(help="Model id, see `packtrain models`.")],
    prompt: Annotated[str | None, typer.Argument(help="The text; left out or '-': read from stdin.")] = None,
    raw: Annotated[bool, typer.Option(help="Count the text alone, without the chat template around it.")] = False,
    as_json: JSON = False,
) -> None:
    """Count the tokens that a model makes of a prompt. Loads the model if no node has it loaded."""
    text = _prompt(prompt)
    with Packtrain() as fleet:
        tokens = fleet.count_tokens(model, text, raw=raw)
    _write(json.dumps({"model": model, "tokens": tokens}) + "\n" if as_json else f"{tokens}\n")


def tokenize(
    model: Annotated[str, typer.Argument(help="Model id, see `packtrain models`.")],
    text: Annotated[str | None, typer.Argument(help="The text; left out or '-': read from stdin.")] = None,
    add_special: Annotated[bool, typer.Option(help="Put around it what the model puts around every text.")] = True,
    parse_special: Annotated[
        bool, typer.Option("--parse-special", help="Take what is written like a special token for that token.")
    ] = False,
    as_json: JSON = False,
) -> None:
    """Show id and text of each token of a text. Loads the model if no node has it loaded."""
    prompt = _prompt(text)
    with Packtrain() as fleet:
        pieces = fleet.tokenize(model, prompt, add_special=add_special, parse_special=parse_special)
    if as_json:
        _write(json.dumps({"model": model, "tokens": [piece.model_dump() for piece in pieces]}) + "\n")
    else:
        texts = (piece.text if piece.raw is None else piece.data for piece in pieces)
        _write("".join(f"{piece.token:>8}  {text!r}\n" for piece, text in zip(pieces, texts, strict=True)))


def embed(
    model: Annotated[str, typer.Argument(help="Model id, see `packtrain models`.")],
    text: Annotated[str | None, typer.Argument(help="What to embed; left out or '-': read from stdin.")] = None,
    dimensions: Annotated[
        int | None, typer.Option("--dimensions", "-d", help="Keep the first so many; default: all.")
    ] = None,
    timeout: Annotated[float | None, typer.Option(help="End the job as EXPIRED after this many seconds.")] = None,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Only where company and restarts change no bit of the vector.")
    ] = False,
) -> None:
    """Print the vector of a text, of length 1, as JSON. Ctrl-C cancels the job."""
    with Packtrain() as fleet:
        job = fleet.submit_embedding(
            model, _prompt(text), dimensions=dimensions, expires_in=timeout, deterministic=deterministic
        )
        try:
            with _waiting(job):
                result = job.result()
        except KeyboardInterrupt:
            job.cancel()
            raise
    facts = _result_json(result)
    shown = ("job_id", "usage", "timings", "batch_peak", "node", "instance", "receipt")
    _write(json.dumps({"embedding": result.embedding, **{name: facts[name] for name in shown}}) + "\n")


def list_jobs(
    context: typer.Context,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="How many, newest first.")] = 20,
    as_json: JSON = False,
) -> None:
    """List the newest jobs."""
    if context.invoked_subcommand:
        return
    with Packtrain() as fleet:
        empty = "no jobs yet; submit one with `packtrain run MODEL PROMPT`"
        views.show(fleet.jobs(limit), views.jobs_table, empty=empty, as_json=as_json)


def show(job_id: Annotated[str, typer.Argument(help="Job id.")], as_json: JSON = False) -> None:
    """Show one job: its state, where it ran, its answer."""
    with Packtrain() as fleet:
        views.show_job(fleet.job(job_id).status(), as_json=as_json)


def explain(job_id: Annotated[str, typer.Argument(help="Job id.")], as_json: JSON = False) -> None:
    """Say why a job waits and for how long, or where it runs."""
    with Packtrain() as fleet:
        views.show_explanation(fleet.explain(job_id), as_json=as_json)


def cancel(job_id: Annotated[str, typer.Argument(help="Job id.")], as_json: JSON = False) -> None:
    """Cancel a job. One that waits ends at once, one that runs within a second."""
    with Packtrain() as fleet:
        state = fleet.job(job_id).cancel()
    said = "is being cancelled" if state is JobState.RUNNING else f"is {state}"
    _write(json.dumps({"id": job_id, "state": state}) + "\n" if as_json else f"job {job_id} {said}\n")


def verify(
    job_id: Annotated[str, typer.Argument(help="Job id.")],
    instance: Annotated[str | None, typer.Option(help="The instance that shall run it, see `packtrain ps`.")] = None,
    node: Annotated[str | None, typer.Option(help="The node that shall run it.")] = None,
    as_json: JSON = False,
) -> None:
    """Run a job again and compare the answers. Exit code 1 when they should be equal and are not."""
    if instance and node:
        raise InvalidParameter("give --instance or --node, not both")
    with Packtrain() as fleet:
        found = fleet.verify(job_id, on=instance or node)
    views.show_verification(found, as_json=as_json)
    if found.is_deterministic and found.is_same_class and not found.is_equal:
        raise typer.Exit(1)


def _adapters(given: list[str]) -> dict[str, float | None]:
    """Scales by name; None: the set one."""
    adapters: dict[str, float | None] = {}
    for text in given:
        name, has_scale, scale = text.partition("=")
        try:
            adapters[name] = float(scale) if has_scale else None
        except ValueError:
            raise InvalidParameter(f"--adapter {text}: {scale!r} is no number; write NAME=0.5") from None
    return adapters


def _schema(path: Path) -> Any:
    try:
        return json.loads(_text_of(path))
    except ValueError as error:
        raise InvalidParameter(f"{path} is no JSON ({error}); correct the file") from error


def _text_of(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidParameter(f"cannot read {path} ({error}); give a text file in UTF-8") from error


def _prompt(argument: str | None) -> str:
    if argument not in (None, "-"):
        return str(argument)
    if argument is None and sys.stdin.isatty():
        raise InvalidParameter("there is no prompt; give it as an argument or pipe it in")
    data = sys.stdin.buffer.read()
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InvalidParameter(
            f"stdin is not UTF-8 (byte {error.start} is {data[error.start]:#04x}); convert it first, as with iconv"
        ) from None


def _stream(job: Job, *, show_reasoning: bool) -> None:
    deltas = job.deltas()
    with _waiting(job):
        first = next(deltas, AnswerDelta())
    thinking = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    is_open = False  # reasoning has been shown, and its line not ended
    for delta in chain([first], deltas):
        if show_reasoning and delta.reasoning:
            thinking.print(delta.reasoning, style="dim", end="")
            is_open = True
        if delta.text:
            if is_open:
                thinking.print()
                is_open = False
            _write(delta.text)
    if is_open:
        thinking.print()
    _write("\n")


@contextmanager
def _waiting(job: Job) -> Iterator[None]:
    """A spinner on a terminal's stderr that says what the job waits for."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    done = threading.Event()
    with console.status("queued") as status:
        watcher = threading.Thread(target=_watch, args=(job, status, done), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()


def _watch(job: Job, status: Status, done: threading.Event) -> None:
    while not done.wait(STATUS_S):
        try:
            status.update(views.one_line(job.explain()))
        except PacktrainError as error:
            status.update(str(error))


def _result_json(result: Result) -> dict[str, Any]:
    fields = asdict(result)
    del fields["error"], fields["embedding"], fields["pieces"]
    return fields | {
        "usage": result.usage.model_dump(),
        "timings": result.timings.model_dump(),
        "tool_calls": [call.model_dump() for call in result.tool_calls],
        "logprobs": [entry.model_dump() for entry in result.logprobs],
        "prompt_logprobs": [entry.model_dump() for entry in result.prompt_logprobs],
        "receipt": result.receipt.model_dump() if result.receipt else None,
    }


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
