"""The process of one pull: `python -m packtrain.workers.files.pull_main REQUEST`, which says how far it is on stdout.

Each line is a `PullStatus` as JSON, the last one with how it ended. A process of its own keeps the hub's library out of
the agent, and may be killed at any time.
"""

from __future__ import annotations

import sys
import time

from packtrain.broker.errors import ModelFetchFailed, PacktrainError
from packtrain.broker.pulls import PullRequest, PullStatus
from packtrain.broker.settings import Settings, load_settings
from packtrain.workers import machine
from packtrain.workers.files.hub import Hub
from packtrain.workers.files.pull import models_in, pull
from packtrain.workers.node_terms import memory_budget

#: Between two lines, seconds.
SAY_S = 0.25


def run(request: PullRequest, settings: Settings, say: _Say) -> PullStatus:
    """Do what is asked for; the last status."""
    hub = Hub()
    if not request.file:
        budget = memory_budget(settings, machine.memory().total)
        return PullStatus(state="done", found=tuple(models_in(hub.look(request.repo, request.revision), budget)))
    return pull(request, hub, settings.home / "models", settings.home / "hashes.json", say)


class _Say:
    """Prints a status, not more often than somebody would read it."""

    def __init__(self) -> None:
        self._said_at = float("-inf")

    def __call__(self, status: PullStatus) -> None:
        now = time.monotonic()
        if status.state != "running" or now - self._said_at >= SAY_S:
            self._said_at = now
            sys.stdout.write(status.model_dump_json(exclude_defaults=True) + "\n")
            sys.stdout.flush()


def main(argv: list[str]) -> int:
    """Entry point; the exit code."""
    say = _Say()
    try:
        request = PullRequest.model_validate_json(argv[1])
        settings = load_settings()
        try:
            say(run(request, settings, say))
        except OSError as error:
            where = error.filename or settings.home / "models"
            raise ModelFetchFailed(f"cannot write {where} ({error.strerror or error}); mend that") from error
    except PacktrainError as error:
        say(PullStatus(state="failed", error=error.to_wire()))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
