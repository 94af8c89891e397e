"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from packtrain.broker import units
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
SPLIT = Annotated[
    bool, typer.Option("--split", help="Take part in holding models that no node can hold alone; see docs/split.md.")
]
LABEL = Annotated[
    list[str] | None,
    typer.Option("--label", metavar="KEY=VALUE", help="A label of this node; may be given several times."),
]


def parse_size(text: str) -> int:
    """Bytes of a size such as `12GB` (10^9) or `8GiB` (2^30).

    Raises:
        InvalidParameter: It is none.
    """
    try:
        return units.parse_size(text)
    except ValueError as error:
        raise InvalidParameter(str(error), field="memory") from None
