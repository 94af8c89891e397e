"""What a bulk run is asked to do, and what it came to."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from packtrain.broker.errors import ModelError
from packtrain.client.bulk.rows import Defaults

#: Of the folder beside the output that holds all that a run knows.
FOLDER_SUFFIX = ".packtrain"


@dataclass(frozen=True, slots=True)
class BulkOptions:
    """What to run. Attributes that change jobs or lines have to stay the same while a run goes on.

    Attributes:
        source: Path of the input, or `-`.
        out: Where answers go.
        errors: Where rows that failed go; None: `<out>.errors.jsonl` beside `out`.
        template: Of a table.
        defaults: Of rows.
        user, lane, max_run: See `translate.Manner`.
        ordered: Lines in the order of the input, and nothing in them that happens to be so.
        created: Seconds, for the answers; None: when the run was begun, or 0 if it is ordered.
        skip_invalid: Run the other rows of a file that has faults; those go to `errors`.
        skip_refused: The same of rows whose bodies ask for something that cannot be, as OpenAI's batches do.
        models: Of the fleet's, those that rows may name; None: all.
        retry_failed: Run rows again that failed in an earlier run.
        restart: Forget what is there and begin anew.
        limit: Rows that the input may have.
    """

    source: str
    out: Path
    errors: Path | None = None
    template: str | None = None
    defaults: Defaults = field(default_factory=Defaults)
    user: str = ""
    max_run: float | None = None
    ordered: bool = False
    created: int | None = None
    skip_invalid: bool = False
    skip_refused: bool = False
    models: frozenset[str] | None = None
    retry_failed: bool = False
    restart: bool = False
    limit: int | None = None

    @property
    def folder(self) -> Path:
        """Where the run keeps what it knows."""
        return self.out.with_name(self.out.name + FOLDER_SUFFIX)

    @property
    def errors_file(self) -> Path:
        """Where rows that failed go."""
        return self.errors or self.out.with_name(self.out.name + ".errors.jsonl")

    def fixed(self) -> dict[str, Any]:
        """What has to stay the same, as the ledger keeps it."""
        said = asdict(self)
        return {name: said[name] for name in ("template", "defaults", "user", "max_run", "ordered")}


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run came to."""

    total: int
    completed: int
    failed: int
    left: int  # rows still to do
    in_flight: int  # jobs of these that go on in the fleet
    blocked: tuple[ModelError, ...]  # why rows of some models cannot run
