"""Where rows come from: a JSONL file, a compressed one, stdin, or a table with a template.

Rows are read twice: once to check them all, and again, in another order, when they are run. So what is no plain JSONL
file on disk is copied into one first, by the way of the first reading (`copied`).
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import string
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from packtrain.broker.errors import InvalidParameter, SetupError
from packtrain.client.bulk.rows import MAX_LINE_BYTES

STDIN = "-"
#: Records of one table that are in memory at once.
_BATCH = 1024


def is_plain(source: str) -> bool:
    """True when rows can be read from the file itself, again and at any place."""
    return source != STDIN and not _is_table(source) and not source.endswith(".gz") and Path(source).is_file()


@contextmanager
def open_lines(source: str, template: str | None) -> Iterator[Iterator[bytes]]:
    """The lines of a source, each with its newline; the last may have none.

    Args:
        source: A path, or `-`.
        template: For tables: a prompt with `{column}` in it.

    Raises:
        InvalidParameter: There is no such file, or it is a table and the template does not fit it.
        SetupError: It is a Parquet file, and pyarrow is missing.
    """
    if template is not None and not _is_table(source):
        raise InvalidParameter(
            f"--template goes with a table (.csv, .tsv, .parquet, also .gz), and {source} is none", field="template"
        )
    try:
        if source == STDIN:
            yield _lines(sys.stdin.buffer)
        elif _is_table(source):
            with _table(source) as records:
                yield _filled(records, template)
        else:
            with _opened(source) as file:
                yield _lines(file)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise InvalidParameter(f"cannot read {source}: {error.strerror}; name a file, or - for stdin") from error
    except (EOFError, gzip.BadGzipFile) as error:
        raise InvalidParameter(f"{source} is no whole gzip file ({error}); compress it again") from error


def _is_table(source: str) -> bool:
    return source.removesuffix(".gz").endswith((".csv", ".tsv", ".parquet"))


def _opened(source: str) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(source)) if source.endswith(".gz") else open(source, "rb")


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """Lines, and of one that is too long so much that it is seen to be."""
    while line := file.readline(MAX_LINE_BYTES + 1):
        yield line


@contextmanager
def _table(source: str) -> Iterator[Iterator[Mapping[str, Any]]]:
    if source.removesuffix(".gz").endswith(".parquet"):
        yield _parquet(source)
        return
    with _opened(source) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as text:
        delimiter = "\t" if source.removesuffix(".gz").endswith(".tsv") else ","
        yield csv.DictReader(text, delimiter=delimiter)


def _parquet(source: str) -> Iterator[Mapping[str, Any]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise SetupError(
            "Parquet needs pyarrow, which is not installed; install packtrain with its [bulk] extra"
        ) from error
    with parquet.ParquetFile(source) as file:
        for batch in file.iter_batches(batch_size=_BATCH):
            yield from batch.to_pylist()


def _filled(records: Iterator[Mapping[str, Any]], template: str | None) -> Iterator[bytes]:
    for number, record in enumerate(records):
        row = dict(record)
        if template is not None:
            row = {name: row[name] for name in ("custom_id", "id", "model") if row.get(name)}
            row["prompt"] = fill(template, record)
        elif number == 0 and "prompt" not in row:
            raise InvalidParameter(
                f"the table has the columns {', '.join(map(str, row))} and none is called prompt; say by "
                "--template how a prompt is made of them, such as --template 'Translate: {text}'",
                field="template",
            )
        yield json.dumps(row, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass") + b"\n"


def fill(template: str, record: Mapping[str, Any]) -> str:
    """A template with the values of a record in its braces; `{{` and `}}` are braces.

    >>> fill("Translate: {text}", {"text": "Guten Tag"})
    'Translate: Guten Tag'

    Raises:
        InvalidParameter: It names a column that is not there, or is no template.
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise InvalidParameter(f"the template {template!r} cannot be read: {error}", field="template") from None
    text = ""
    for literal, name, spec, conversion in parts:
        text += literal
        if name is None:
            continue
        # Only names of columns: a template reaches no attribute or item of a value.
        if name not in record or spec or conversion:
            columns = ", ".join(str(column) for column in record if column is not None)
            raise InvalidParameter(
                f"the template names {{{name}}}, and the columns are {columns}; write one of them, or {{{{ for a brace",
                field="template",
            )
        text += "" if record[name] is None else str(record[name])
    return text
