"""What agent and instance say to each other: a configuration at the start, then reports on a pipe and orders on stdin.

Pipes need no broker, so an agent knows and steers its instances even while Redis is away.
"""

from __future__ import annotations

import os
import threading
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from packtrain.broker.fields import Recipe
from packtrain.broker.states import InstanceState
from packtrain.workers.adapters import AdapterFile
from packtrain.workers.load_options import LoadOptions
from packtrain.workers.own_memory import OwnMemory
from packtrain.workers.remote.options import RemoteOptions
from packtrain.workers.shards.split import Split


class InstanceConfig(BaseModel):
    """Everything an instance process is told, as one argument."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    instance: str
    model: str
    path: str  # from the node's own catalog, never from a message
    backend: Literal["llama_cpp", "scripted"] = "llama_cpp"
    remote: RemoteOptions | None = None  # the server that answers; then nothing is loaded
    worker_name: str  # Celery's, stable across restarts: <model>.<k>@<node>
    n_slots: int
    reserved_slots: int = Field(0, ge=0)  # that bulk jobs leave to interactive ones
    n_ctx: int
    n_threads: int
    report_fd: int
    options: LoadOptions = LoadOptions()
    adapters: tuple[AdapterFile, ...] = ()
    projector: str = ""  # path of what turns images into input; empty: it takes text alone
    split: Split | None = None  # where its last layers are, if on shards


class InstanceOrder(BaseModel):
    """One line on the instance's stdin, its lifeline. Settings, not steps: the last one counts."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    threads: int = Field(ge=1)  # for each step from the next one on


class InstanceReport(BaseModel):
    """One line on the pipe, each second at least and at every change of state or of `is_busy`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    state: InstanceState
    reason: str = ""
    not_deterministic: str = ""  # why, where that is behind FAILED
    recipe: Recipe | None = None
    numerics_class: str = ""
    slots_used: int = 0
    steps: int = 0
    batch_peak: int = 0
    tokens_out: int = 0
    tokens_reused: int = 0
    batches: tuple[int, ...] = ()  # steps by their size, see engine/meter.py
    batched: int = 0
    kv_tokens: int = 0
    parked: int = 0
    parkings: int = 0
    images_seen: int = 0
    job_s: float = 0  # smoothed, that a job holds a slot
    has_served: bool = False  # since it is READY a job has had a token or its end
    is_busy: bool = False
    threads: int = 0  # that a step computes with
    step_age_s: float = 0  # since the engine's last sign of life
    hub_age_s: float = 0  # since the last turn of the Celery consumer loop
    before_load: OwnMemory | None = None  # all imported, nothing loaded
    loaded: OwnMemory | None = None  # model and context made, no step computed


class ReportPipe:
    """The instance's end. A pipe nobody reads any more is ignored: the lifeline tells of a gone agent."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()

    def send(self, report: InstanceReport) -> None:
        """Write one line."""
        line = report.model_dump_json(exclude_defaults=True).encode() + b"\n"
        with self._lock:
            try:
                os.write(self._fd, line)  # below PIPE_BUF, so it is written whole
            except OSError:
                self._fd = -1
