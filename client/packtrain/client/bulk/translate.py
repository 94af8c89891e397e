"""From a row to jobs, and from their results to its line in the output.

What a line says must depend on its row and on nothing else, so that the same file gives the same bytes again:

* Ids are made from the row: `batch_req_<hash>`, `chatcmpl-<hash>`, `call_<hash>_<n>`.
* A row without a seed gets one, made from its text. Two rows that are equal but for their custom_id differ in it.
* `created` is the same in all lines: when the run was begun, and 0 in an ordered file.
* An ordered file holds nothing that happens to be so: no node, no timings, no number of cached tokens. Others have
  them under `packtrain`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from packtrain.broker.errors import JobExpired, PacktrainError
from packtrain.broker.fairness import cost_of
from packtrain.broker.ids import ModelId, Route, route_of
from packtrain.broker.job_spec import JobSpec, Lane
from packtrain.broker.prefixes import prefix_hashes
from packtrain.client.bulk.output import line_of
from packtrain.client.bulk.rows import Defaults, Fault, Row, RowFault, parse_row
from packtrain.client.openai import Form, Stamp, fault_of, parse_call
from packtrain.client.result import Result

#: Of the hashes of a prompt's beginning, so many order the rows: 32 Ki characters.
_PREFIXES = 8
_SEED_BITS = 31


@dataclass(frozen=True, slots=True)
class Manner:
    """How all rows of a run are run and written.

    Attributes:
        user: Whose jobs they are; empty: who each row names.
        lane: Of all jobs.
        max_run: Seconds that a job may run; None: as the row says.
        created: What stands in the answers as their time, seconds.
        ordered: Lines hold nothing but what follows from their rows.
    """

    defaults: Defaults = field(default_factory=Defaults)
    user: str = ""
    lane: Lane = "bulk"
    max_run: float | None = None
    created: int = 0
    ordered: bool = False


@dataclass(frozen=True, slots=True)
class Asked:
    """A row, understood."""

    row: Row
    specs: tuple[JobSpec, ...]
    form: Form
    name: str  # hash of its text

    def route(self, aliases: Mapping[str, str]) -> Route:
        """Where its jobs wait."""
        spec = self.specs[0]
        return route_of(ModelId(aliases.get(spec.model, spec.model)), deterministic=spec.deterministic)

    @property
    def prefix(self) -> bytes:
        """How its prompt begins; rows with an equal beginning of this share one of the prompt."""
        return bytes.fromhex("".join(prefix_hashes(self.specs[0])[:_PREFIXES]))

    @property
    def cost(self) -> int:
        """Tokens that its jobs are taken to need together."""
        return sum(map(cost_of, self.specs))


def ask(text: bytes, line: int, manner: Manner) -> Asked:
    """The jobs of a line.

    Raises:
        RowFault: It is no row, or its body asks for something that cannot be.
    """
    row = parse_row(text, line, manner.defaults)
    name = _name(row.custom_id, text)
    body = dict(row.body)
    if not isinstance(seed := body.get("seed"), int | str) or seed == -1:  # -1 asks for chance, at llama-server
        body["seed"] = int(name, 16) % 2**_SEED_BITS
    body.pop("idempotency_key", None)  # a row is one job in its run, whatever other runs there are
    try:
        call = parse_call(row.url, body, user=manner.user or None, lane=manner.lane)
    except PacktrainError as error:
        said = fault_of(error)
        param = f"body.{said.param}" if said.param else "body"
        raise RowFault(Fault(said.code, said.message, line, param), row.custom_id, is_request=True) from error
    changes: dict[str, Any] = {"lane": manner.lane, "stream": False}
    if manner.max_run is not None:
        changes["max_run_ms"] = int(manner.max_run * 1000)
    specs = tuple(spec.model_copy(update=changes) for spec in call.specs)
    return Asked(row, specs, call.form, name)


def answer_line(asked: Asked, results: Sequence[Result], manner: Manner) -> bytes:
    """The line of a row that has its answer."""
    stamp = Stamp(asked.name, manner.created, str(asked.row.body["model"]))
    body = asked.form.body(stamp, results, extras=not manner.ordered)
    if manner.ordered:
        _steady(body, asked.name)
    response = {"status_code": 200, "request_id": f"req_{asked.name}", "body": body}
    return _line(asked.name, asked.row.custom_id, response, None)


def error_line(text: bytes, custom_id: str | None, error: PacktrainError | RowFault) -> bytes:
    """The line of a row that has none, and why."""
    name = _name(custom_id or "", text)
    if isinstance(error, RowFault):
        fault = error.fault
        about = {"type": "invalid_request_error", **fault.to_json()}
        return _line(name, custom_id, {"status_code": 400, "request_id": f"req_{name}", "body": {"error": about}}, None)
    said = fault_of(error)
    if isinstance(error, JobExpired):
        return _line(name, custom_id, None, {"code": "batch_expired", "message": said.message})
    return _line(name, custom_id, {"status_code": said.status, "request_id": f"req_{name}", "body": said.body()}, None)


def _name(custom_id: str, text: bytes) -> str:
    """A hash of a row. The custom_id counts beside the text, which has none where it follows from the line."""
    what = custom_id.encode("utf-8", "surrogatepass") + b"\0" + text.rstrip(b"\r\n")
    return hashlib.blake2b(what, digest_size=16).hexdigest()


def _line(
    name: str, custom_id: str | None, response: Mapping[str, Any] | None, error: Mapping[str, Any] | None
) -> bytes:
    return line_of({"id": f"batch_req_{name}", "custom_id": custom_id, "response": response, "error": error})


def _steady(body: dict[str, Any], name: str) -> None:
    """Take out of an answer what happens to be so, and name its tool calls by the row."""
    body.get("usage", {}).pop("prompt_tokens_details", None)
    number = 0
    for choice in body.get("choices", ()):
        for call in choice.get("message", {}).get("tool_calls") or ():
            call["id"] = f"call_{name}_{number}"
            number += 1
