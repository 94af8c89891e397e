"""The memory book: what llama.cpp said models would take on this node, and what they took. Kept on disk.

A line is kept for each way to load a model: file, context, slots, options, build of llama.cpp. It belongs to one node,
so the device needs no name in it. What to reserve comes from the best that is known, in this order:

    1. what an instance of this very line took at its largest
    2. the estimate, times the largest ratio of measured to estimated among other lines of the same file, options, build
    3. the estimate

A measurement far below its estimate is not believed: then the kernel had dropped mapped weights, and they come back.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from packtrain.broker.model_info import ModelMemory
from packtrain.workers.load_options import LoadOptions
from packtrain.workers.own_memory import OwnMemory

logger = logging.getLogger(__name__)

#: Lines kept; those written longest ago go first. A line is some 400 bytes.
MAX_LINES = 1000
#: A measurement below this share of its estimate is not believed.
LEAST_RATIO = 0.9
#: A larger measurement is worth a write when it is larger by this share.
WORTH_NOTING = 0.005


class LoadKey(BaseModel):
    """One way to load a model. Equal keys take equal memory on one node."""

    model_config = ConfigDict(frozen=True)

    file: str  # hash of name, size and time of every part
    n_ctx: int
    n_slots: int
    options: LoadOptions = LoadOptions()
    build: str = ""  # of llama.cpp

    def is_like(self, other: LoadKey) -> bool:
        """Same model, loaded with another context or other slots."""
        return (self.file, self.options, self.build) == (other.file, other.options, other.build)


class _Line(BaseModel):
    key: LoadKey
    estimate: ModelMemory | None = None  # llama.cpp's; None: it was not asked, or had no answer
    measured_bytes: int = 0
    estimated_bytes: int = 0  # what the estimate was that the measurement stands against


class _Page(BaseModel):
    v: int = 1
    lines: list[_Line] = Field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Readings:
    """What was seen of one instance."""

    before: OwnMemory  # all imported, nothing loaded
    loaded: OwnMemory  # model and context made, no step computed
    most_private: int  # bytes, the largest so far


class MemoryBook:
    """The book of one node. Belongs to the agent's thread.

    Args:
        path: File; made with its folder when there is something to write. None: nothing is kept.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lines: dict[LoadKey, _Line] = {line.key: line for line in _read(path)}

    def estimate(self, key: LoadKey) -> ModelMemory | None:
        """llama.cpp's word for this line."""
        line = self._lines.get(key)
        return line.estimate if line else None

    def note_estimate(self, key: LoadKey, estimate: ModelMemory) -> None:
        """Keep what llama.cpp said."""
        line = self._lines.get(key) or _Line(key=key)
        self._keep(line.model_copy(update={"estimate": estimate}))

    def note_readings(self, key: LoadKey, readings: Readings, estimate: ModelMemory) -> bool:
        """Keep what an instance took. True when that changed what is known.

        Args:
            estimate: What was expected, uncorrected.
        """
        measured = measured_bytes(readings, estimate)
        line = self._lines.get(key) or _Line(key=key)
        if measured <= line.measured_bytes * (1 + WORTH_NOTING):
            return False
        self._keep(line.model_copy(update={"measured_bytes": measured, "estimated_bytes": estimate.estimated_bytes}))
        return True

    def corrected(self, key: LoadKey, estimate: ModelMemory) -> ModelMemory:
        """`estimate` with what measurements say of it."""
        line = self._lines.get(key)
        measured = line.measured_bytes if line and _is_credible(line.measured_bytes, estimate.estimated_bytes) else 0
        return estimate.model_copy(update={"measured_bytes": measured, "factor": self._factor(key)})

    def _factor(self, key: LoadKey) -> float:
        ratios = (
            line.measured_bytes / line.estimated_bytes
            for other, line in self._lines.items()
            if other != key and key.is_like(other) and _is_credible(line.measured_bytes, line.estimated_bytes)
        )
        return max(ratios, default=1.0)

    def _keep(self, line: _Line) -> None:
        self._lines.pop(line.key, None)
        self._lines[line.key] = line  # at the end: the newest
        for key in list(self._lines)[:-MAX_LINES]:
            del self._lines[key]
        if self._path is None:
            return
        draft = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(_Page(lines=list(self._lines.values())).model_dump_json(exclude_defaults=True))
            draft.replace(self._path)
        except OSError as error:  # what is in memory still counts until the agent ends
            logger.warning("Cannot write %s: %s", self._path, error, extra={"event": "memory_book.unwritten"})


def measured_bytes(readings: Readings, estimate: ModelMemory) -> int:
    """What an instance takes, from what was seen of it.

    private   the most that was seen; or, as long as no large step was computed, what it had when loaded and all of
              the scratch space: llama.cpp has reserved it, but pages are only taken when they are written
    mapped    the libraries, and of the model's file what the layout reads from there
    """
    private = max(readings.most_private, readings.loaded.private + estimate.scratch_bytes)
    return private + needed_mapped_bytes(readings, estimate)


def needed_mapped_bytes(readings: Readings, estimate: ModelMemory) -> int:
    """Bytes of mapped files that an instance reads from: libraries, and the weights that were not copied elsewhere."""
    weights = sum(buffer.weights for buffer in estimate.buffers if buffer.buffer == "CPU")
    return readings.before.mapped + max(0, min(readings.loaded.mapped - readings.before.mapped, weights))


def _is_credible(measured: int, estimated: int) -> bool:
    return estimated > 0 and measured >= LEAST_RATIO * estimated


def _read(path: Path | None) -> Iterable[_Line]:
    if path is None:
        return []
    try:
        return _Page.model_validate_json(path.read_bytes()).lines
    except FileNotFoundError:
        return []
    except (OSError, ValidationError) as error:
        logger.warning("Cannot read %s, begin anew: %s", path, error, extra={"event": "memory_book.unread"})
        return []
