"""A process that loads a model as an instance does, fills every slot to its end, and says what it took.

    python -m tests.support.memory_measure CONFIG.json       prints {"before": .., "loaded": .., "full": ..}

Only a full cache shows all of the scratch space: the attention mask grows with the cells in use. The last step has as
many rows and as many logits as one step may have.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from packtrain.broker.model_info import ModelMemory
from packtrain.broker.sampling import SamplingParams
from packtrain.workers import instance_main  # noqa: F401, an instance has all of it in memory
from packtrain.workers.backends.base import StepRows
from packtrain.workers.instance_messages import InstanceConfig
from packtrain.workers.instance_parts import import_backend, load_backend
from packtrain.workers.load_options import max_outputs, rows_per_step
from packtrain.workers.memory_book import Readings, measured_bytes
from packtrain.workers.own_memory import OwnMemory, own_memory


class Measured(BaseModel):
    """Memory of one process at three moments."""

    before: OwnMemory  # all imported
    loaded: OwnMemory  # model and context made
    full: OwnMemory | None = None  # the largest step computed


def measure(path: Path, *, n_ctx: int, n_slots: int, fill: bool = True) -> Measured:
    """What a new process takes for this load.

    Args:
        fill: Compute as well, slots x context rows; else load only.
    """
    config = InstanceConfig(
        instance="i", model="m", path=str(path), worker_name="w", n_slots=n_slots, n_ctx=n_ctx, n_threads=2,
        report_fd=-1,
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.memory_measure", config.model_dump_json(), str(fill)],
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return Measured.model_validate_json(done.stdout)


def taken(measured: Measured, estimate: ModelMemory) -> int:
    """Bytes that a process with every slot full took. The estimate only says what it reads where the file is mapped."""
    assert measured.full is not None
    buffers = tuple(buffer.model_copy(update={"compute": 0}) for buffer in estimate.buffers)
    bare = estimate.model_copy(update={"buffers": buffers, "logits_bytes": 0, "work_bytes": 0})
    return measured_bytes(Readings(measured.before, measured.loaded, measured.full.private), bare)


def main(config: InstanceConfig, *, fill: bool) -> None:
    """Entry point."""
    import_backend(config)
    before = own_memory()
    backend = load_backend(config)
    loaded = own_memory()
    full = None
    if fill:
        for slot in range(config.n_slots):
            backend.open(slot, SamplingParams(temperature=0), 0, (), 0)
        for rows in _steps(config):
            backend.step(rows, lambda: False)
        full = own_memory()
    sys.stdout.write(Measured(before=before, loaded=loaded, full=full).model_dump_json())


def _steps(config: InstanceConfig) -> Iterator[list[StepRows]]:
    """Steps that fill every slot. A token id for each row; the last rows of all have logits, one by one."""
    n_rows, left = rows_per_step(config.n_slots), max_outputs(config.n_slots)
    steps = [
        StepRows(slot, start, [3] * min(n_rows, config.n_ctx - start), False)
        for slot in range(config.n_slots)
        for start in range(0, config.n_ctx, n_rows)
    ]
    last = steps.pop()
    yield from ([step] for step in steps)
    begin = last.start + len(last.tokens) - left
    yield [StepRows(last.seq_id, last.start, [3] * (begin - last.start), False)] + [
        StepRows(last.seq_id, begin + row, [3], True) for row in range(left)
    ]


if __name__ == "__main__":
    main(InstanceConfig.model_validate_json(sys.argv[1]), fill=sys.argv[2] == "True")
