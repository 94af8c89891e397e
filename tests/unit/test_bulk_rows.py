"""Rows of bulk files: what is taken, what is refused and how, and what they become."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from packtrain.broker.errors import InvalidParameter, JobExpired, PromptTooLong
from packtrain.broker.outcome import Usage
from packtrain.client.bulk.rows import Defaults, RowFault, id_hash, parse_row
from packtrain.client.bulk.sources import fill, is_plain, open_lines
from packtrain.client.bulk.translate import Manner, answer_line, ask, error_line
from packtrain.client.result import Result
from tests.support.bulk_runs import row

pytestmark = pytest.mark.unit

DEFAULTS = Defaults({"model": "m"})


def text(**changes: Any) -> bytes:
    """A row with fields changed; `...` removes one."""
    fields = {**row(1, "m"), **changes}
    return json.dumps({name: value for name, value in fields.items() if value is not ...}).encode()


FAULTS: dict[str, tuple[bytes, str, str | None]] = {
    "no json": (b"{", "invalid_json_line", None),
    "no object": (b"[1]", "invalid_json_line", None),
    "no utf-8": (b'{"custom_id": "\xff"}', "invalid_json_line", None),
    "not a number": (text(body={"model": "m", "temperature": float("nan")}), "invalid_json_line", None),
    "too deep": (b'{"a":' * 100_000, "invalid_json_line", None),
    "no id": (text(custom_id=...), "missing_required_parameter", "custom_id"),
    "an id that is no text": (text(custom_id=5), "invalid_request", "custom_id"),
    "an endless id": (text(custom_id="x" * 513), "invalid_request", "custom_id"),
    "no method": (text(method=...), "missing_required_parameter", "method"),
    "a GET": (text(method="GET"), "invalid_method", "method"),
    "no url": (text(url=...), "missing_required_parameter", "url"),
    "another url": (text(url="/v1/images"), "invalid_url", "url"),
    "no body": (text(body=...), "missing_required_parameter", "body"),
    "a body that is none": (text(body="hi"), "invalid_request", "body"),
    "no model": (text(body={"messages": []}), "missing_required_parameter", "body.model"),
    "a stream": (text(body={"model": "m", "messages": [], "stream": True}), "streaming_unsupported", "body.stream"),
    "no prompt": (text(body={"model": "m", "messages": []}), "invalid_parameter", "body.messages"),
    "too hot": (
        text(body={"model": "m", "messages": [{"role": "user", "content": "x"}], "temperature": 99}),
        "invalid_parameter",
        "body.temperature",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_wrong_with_a_line_is_said_with_openais_code_line_and_parameter(name: str) -> None:
    line, code, param = FAULTS[name]

    with pytest.raises(RowFault) as refused:
        ask(line, 7, Manner())

    assert (refused.value.fault.code, refused.value.fault.param, refused.value.fault.line) == (code, param, 7)
    assert refused.value.fault.message


def test_rows_of_a_batch_have_its_endpoint_and_no_short_form() -> None:
    batch = Defaults(endpoint="/v1/embeddings", plain=False)

    for line, code in ((text(), "invalid_url"), (b'{"prompt": "x", "model": "m"}', "missing_required_parameter")):
        with pytest.raises(RowFault) as refused:
            parse_row(line, 1, batch)
        assert refused.value.fault.code == code


@pytest.mark.parametrize(
    ("line", "url", "body"),
    [
        ({"prompt": "Hi"}, "/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}),
        ({"messages": ["x"], "seed": 1}, "/v1/chat/completions", {"messages": ["x"], "seed": 1}),
        ({"input": "Hi"}, "/v1/embeddings", {"input": "Hi"}),
        ({"prompt": "Hi", "url": "/v1/completions"}, "/v1/completions", {"prompt": "Hi"}),
        ({"prompt": "Hi", "url": "embeddings"}, "/v1/embeddings", {"input": "Hi"}),
    ],
)
def test_a_plain_row_becomes_the_request_it_is_short_for(line: Any, url: str, body: Any) -> None:
    found = parse_row(json.dumps(line).encode(), 3, DEFAULTS)

    assert (found.custom_id, found.url, found.body) == ("row-3", url, {"model": "m", **body})


def test_a_row_says_more_than_the_defaults() -> None:
    found = parse_row(b'{"id": 5, "prompt": "x", "model": "other"}', 1, DEFAULTS)

    assert (found.custom_id, found.body["model"]) == ("5", "other")


def test_seeds_and_names_follow_from_the_row_and_differ_between_rows() -> None:
    lines = [b'{"prompt": "x", "n": 2}', b'{"prompt": "x", "n": 2}\r\n', b'{"prompt": "y"}']
    manner = Manner(DEFAULTS)
    asked = [ask(line, number, manner) for number, line in enumerate(lines)]
    seeds = [spec.params.seed for each in asked for spec in each.specs]

    assert len(set(seeds)) == len(seeds) == 5
    assert len({each.name for each in asked}) == 3
    assert ask(lines[0], 0, manner) == asked[0] or ask(lines[0], 0, manner).specs == asked[0].specs
    assert ask(lines[0], 1, manner).name == ask(lines[1], 1, manner).name  # its line end is not part of a row


def test_a_run_says_lane_user_and_time_of_all_its_jobs() -> None:
    (spec,) = ask(b'{"prompt": "x", "lane": "interactive", "user": "ann"}', 1, Manner(DEFAULTS, "bob", max_run=2)).specs

    assert (spec.lane, spec.user, spec.max_run_ms, spec.stream) == ("bulk", "bob", 2000, False)


def test_an_ordered_line_holds_nothing_that_happens_to_be_so() -> None:
    asked = ask(text(), 1, Manner())
    results = [
        Result(f"job-{number}", "answer", "stop", Usage(prompt_tokens=9, reused_tokens=number), node=f"n{number}")
        for number in range(2)
    ]

    steady = {answer_line(asked, [result], Manner(ordered=True)) for result in results}
    other = {answer_line(asked, [result], Manner()) for result in results}

    assert (len(steady), len(other)) == (1, 2)
    line = json.loads(steady.pop())
    assert line["id"] == f"batch_req_{asked.name}"
    assert (line["custom_id"], line["error"], line["response"]["status_code"]) == ("row-1", None, 200)
    assert line["response"]["body"]["usage"] == {"prompt_tokens": 9, "completion_tokens": 0, "total_tokens": 9}


def test_a_failed_row_has_the_status_and_error_of_a_request_or_that_its_time_was_over() -> None:
    too_long = json.loads(error_line(text(), "a", PromptTooLong(model="m", num_tokens=9, limit=5)))
    expired = json.loads(error_line(text(), "a", JobExpired("late")))

    assert (too_long["response"]["status_code"], too_long["error"]) == (400, None)
    assert too_long["response"]["body"]["error"]["code"] == "context_length_exceeded"
    assert (expired["response"], expired["error"]) == (None, {"code": "batch_expired", "message": "late"})


def test_half_a_surrogate_pair_in_an_id_comes_back_as_it_was() -> None:
    line = b'{"custom_id": "\\ud800", "prompt": "x"}'
    asked = ask(line, 1, Manner(DEFAULTS))

    assert json.loads(answer_line(asked, [Result("j", "y", "stop")], Manner()))["custom_id"] == "\ud800"
    assert id_hash("\ud800") != id_hash("\ud801")


def test_rows_with_the_same_beginning_stand_together_when_sorted_by_it() -> None:
    begins = {name: name * 600 for name in "abc"}
    rows = [(name, ask(json.dumps({"prompt": begins[name] + str(n)}).encode(), n, Manner(DEFAULTS)).prefix)
            for n in range(4) for name in begins]  # fmt: skip
    order = [name for name, _ in sorted(rows, key=lambda each: each[1])]

    assert len({prefix for _, prefix in rows}) == 3
    assert sum(a != b for a, b in pairwise(order)) == 2


TABLE = 'custom_id,text,lang\r\nx,"one\ntwo",de\r\ny,three,\r\n'


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.tsv"])
def test_a_table_becomes_rows_by_a_template(tmp_path: Path, name: str) -> None:
    content = TABLE.replace(",", "\t") if name.endswith("tsv") else TABLE
    (tmp_path / name).write_bytes(gzip.compress(content.encode()) if name.endswith("gz") else content.encode())

    with open_lines(str(tmp_path / name), "To {lang}: {text} {{}}") as lines:
        rows = [json.loads(line) for line in lines]

    assert rows == [
        {"custom_id": "x", "prompt": "To de: one\ntwo {}"},
        {"custom_id": "y", "prompt": "To : three {}"},
    ]


def test_parquet_is_read_as_a_table(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"prompt": ["a", "b"], "model": ["m", "m"]}), tmp_path / "t.parquet")

    with open_lines(str(tmp_path / "t.parquet"), None) as lines:
        assert [json.loads(line)["prompt"] for line in lines] == ["a", "b"]


@pytest.mark.parametrize("template", ["{nope}", "{text.__class__}", "{text!r}", "{text:>9}", "{", "{0}"])
def test_a_template_reaches_columns_and_nothing_else(template: str) -> None:
    with pytest.raises(InvalidParameter):
        fill(template, {"text": "x"})


def test_sources_that_are_none_say_so(tmp_path: Path) -> None:
    (tmp_path / "plain.jsonl").write_text("{}")
    (tmp_path / "bad.gz").write_bytes(b"no gzip")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b'{"prompt": "x"}\n' * 99)[:-9])
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")

    for name, template in (
        ("none.jsonl", None), ("bad.gz", None), ("cut.gz", None), ("t.csv", None), ("plain.jsonl", "{x}"),
    ):  # fmt: skip
        with pytest.raises(InvalidParameter), open_lines(str(tmp_path / name), template) as lines:
            Counter(lines)
    assert is_plain(str(tmp_path / "plain.jsonl"))
    assert not is_plain(str(tmp_path / "t.csv"))
