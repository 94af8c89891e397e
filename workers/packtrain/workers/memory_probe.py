"""A short-lived process that asks llama.cpp what a model will take, so that the agent never loads llama.cpp.

Takes one question as its argument, prints one JSON object: the answer, or the error. What an instance imports it
imports as well, so its own resident memory is that of an instance before the load.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from packtrain.workers.load_options import LoadOptions

#: The process ends itself after this long, whatever becomes of the agent, seconds. Laying out takes 0.2 s.
TIMEOUT_S = 60


class MemoryQuestion(BaseModel):
    """What the agent wants to know."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    n_ctx: int
    n_slots: int
    options: LoadOptions = LoadOptions()


def main(argv: list[str]) -> int:
    """Entry point; 0 when there is an answer."""
    signal.alarm(TIMEOUT_S)
    os.nice(10)
    question = MemoryQuestion.model_validate_json(argv[1])
    try:
        from packtrain.workers import instance_main  # noqa: F401  see the module's docstring
        from packtrain.workers.backends import llama_cpp_backend  # noqa: F401
        from packtrain.workers.backends.llama_cpp_memory import estimate_by_no_alloc
        from packtrain.workers.own_memory import own_memory

        memory = estimate_by_no_alloc(
            Path(question.path),
            question.options,
            n_ctx=question.n_ctx,
            n_slots=question.n_slots,
            resident_bytes=lambda: own_memory().resident,
        )
    except Exception as error:  # whatever it is, it is the finding
        sys.stdout.write(json.dumps({"error": str(error) or type(error).__name__}) + "\n")
        return 1
    sys.stdout.write(memory.model_dump_json() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
