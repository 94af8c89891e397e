"""Options that several commands share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from packtrain.broker.errors import InvalidParameter

JSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]
HOME = Annotated[
    Path | None,
    typer.Option(
        "--home", envvar="PACKTRAIN_HOME", metavar="FOLDER", help="For data, logs and models; two homes are two fleets."
    ),
]
MODELS = Annotated[
    list[Path] | None,
    typer.Option("--models", metavar="FOLDER", help="GGUF files besides <home>/models; may be given several times."),
]
NODE = Annotated[
    str | None, typer.Option("--node", envvar="PACKTRAIN_NODE", help="Id of this node; default: the host's name.")
]
MEMORY = Annotated[
    str | None,
    typer.Option("--memory", metavar="SIZE", help="Memory that models may use, such as 12GB; default: 80 %."),
]
FILES_ADDRESS = Annotated[
    str | None,
    typer.Option(
        "--files-address",
        metavar="ADDRESS:PORT",
        help="Where other nodes may fetch this one's model files; default: where other machines take part, else here.",
    ),
]
CORES = Annotated[int | None, typer.Option("--cores", min=1, help="Cores that models may use; default: all.")]
LABEL = Annotated[
    list[str] | None,
    typer.Option("--label", metavar="KEY=VALUE", help="A label of this node; may be given several times."),
]

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes of a size such as `12GB` (10^9), `8GiB` (2^30), `500M` or `1048576`.

    >>> parse_size("1.5GB"), parse_size("2GiB")
    (1500000000, 2147483648)
    """
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise InvalidParameter(f"{text!r} is not a size; write it like 12GB, 8GiB or 500MB", field="memory")
    number, unit, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** " KMGT".index(unit.upper() or " "))
