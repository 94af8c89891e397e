"""The exchange: what an agent does with model files, serving its own and fetching those that a load command wants.

A load that waits for its file is an instance in state FETCHING, which is shown and can be unloaded like any other. One
fetch serves all loads of its model. The agent polls; only threads wait for disks and networks.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from packtrain.broker.beats import InstanceBeat, NodeLink
from packtrain.broker.ids import InstanceId, ModelId, NodeId
from packtrain.broker.model_info import ModelInfo
from packtrain.broker.orders import NodeCommand
from packtrain.broker.registry import Registry
from packtrain.broker.settings import Settings, split_address
from packtrain.broker.states import InstanceState
from packtrain.workers.files.addresses import files_url, is_everywhere, loopback_id
from packtrain.workers.files.fetch import Fetch, disk_free
from packtrain.workers.files.links import LinkMeter
from packtrain.workers.files.part_file import remove_abandoned
from packtrain.workers.files.progress import Progress, mib
from packtrain.workers.files.secret import FleetSecret
from packtrain.workers.files.server import FileServer
from packtrain.workers.files.source import NodeSource
from packtrain.workers.model_files import parts_of

logger = logging.getLogger(__name__)

#: How long the end of the agent waits for threads of fetches, seconds.
JOIN_S = 2.0
#: A server that listens everywhere sees this often at which address it is reached, seconds.
ADDRESS_S = 30.0


@dataclass(slots=True)
class _Waiting:
    command: NodeCommand
    beat: InstanceBeat


@dataclass(slots=True)
class _Coming:
    fetch: Fetch
    progress: Progress
    waiting: dict[InstanceId, _Waiting] = field(default_factory=dict)
    trouble: str = ""  # why it does not go on, as it was told last


@dataclass(frozen=True, slots=True)
class News:
    """What has happened since the last look."""

    arrived: Sequence[NodeCommand] = ()  # loads whose files are there now
    failed: Sequence[InstanceBeat] = ()
    is_news: bool = False  # somebody should hear of it before the next beat


class Offers(Protocol):
    """The part of `NodeCatalog` that the exchange uses."""

    suffix: str
    models: Mapping[ModelId, tuple[ModelInfo, Path]]

    def projector(self, model: ModelId) -> Path | None: ...


class Exchange:
    """Belongs to the agent's thread.

    Args:
        catalog: What this node has; read by threads.
        clock_ms: The broker's clock as far as it is known; called from threads.

    Raises:
        SetupError: The address for other nodes cannot be used.
    """

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        catalog: Offers,
        clock_ms: Callable[[], int],
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._suffix = catalog.suffix
        self._clock_s = lambda: clock_ms() / 1000
        self._secret = FleetSecret(registry.secret)
        self._folder = settings.home / "models"
        self._hashes = settings.home / "hashes.json"
        self._coming: dict[ModelId, _Coming] = {}
        self._left: list[Fetch] = []  # cancelled, but not over yet
        self.loopback = loopback_id()
        self._server: FileServer | None = None
        self.url = ""
        self._host = ""
        if settings.files_address:
            host, port = split_address(settings.files_address)
            self._server = FileServer(
                host, port, node=settings.node, parts=lambda model: _parts(catalog, model),
                projector=lambda model: catalog.projector(model) if model in catalog.models else None,
                secret=self._secret, clock_s=self._clock_s, hashes=self._hashes, rate=settings.files_rate,
            )  # fmt: skip
            if settings.files_reached_at:
                self.url = f"http://{settings.files_reached_at}"
            else:
                self._host = host
                self.url = files_url(host, self._server.port, settings.broker_url())
        self._meter: LinkMeter | None = None
        if settings.split:
            self._meter = LinkMeter(
                settings.node, registry.nodes, secret=self._secret, loopback=self.loopback, clock_ms=clock_ms
            )
        self._is_serving = False
        self._closing = threading.Event()
        remove_abandoned(self._folder)

    def serve(self) -> None:
        """Begin to serve, once the catalog knows its models. Does nothing when said again."""
        if self._server and not self._is_serving:
            self._server.start()
            logger.info("Serving model files at %s", self.url, extra={"event": "files.serving"})
            if is_everywhere(self._host):
                threading.Thread(target=self._follow_address, args=(self._server.port,), daemon=True).start()
        if self._meter and not self._is_serving:
            self._meter.start()
        self._is_serving = True

    @property
    def host(self) -> str:
        """By which other nodes reach this one; empty: they do not."""
        return urlsplit(self.url).hostname or ""

    @property
    def links(self) -> dict[str, NodeLink]:
        """Measured links to other nodes."""
        return self._meter.links if self._meter else {}

    @property
    def disk_free(self) -> int:
        """Bytes for further model files: those that fetches will still take are no longer free."""
        promised = sum(coming.fetch.remaining for coming in self._coming.values())
        return max(0, disk_free(self._folder) - promised)

    @property
    def beats(self) -> list[InstanceBeat]:
        """Instances that wait for their files."""
        return [waiting.beat for coming in self._coming.values() for waiting in coming.waiting.values()]

    def has(self, instance: InstanceId) -> bool:
        """Whether it waits for its file."""
        return any(instance in coming.waiting for coming in self._coming.values())

    def begin(self, command: NodeCommand, beat: InstanceBeat, now: float) -> None:
        """Bring the file for a load command; `poll` tells when it is there.

        Args:
            beat: Of the instance; its state and reason are set here.
        """
        model = ModelId(command.model)
        coming = self._coming.get(model)
        if coming is None:
            logger.info("Fetching %s from %s", model, command.fetch_from, extra={"event": "fetch.start"})
            coming = self._coming[model] = _Coming(self._fetch(model, NodeId(command.fetch_from)), Progress(now))
        waiting = _Waiting(command, beat.model_copy(update={"state": InstanceState.FETCHING}))
        coming.waiting[InstanceId(command.instance)] = waiting
        self._tell(coming)

    def cancel(self, instance: InstanceId) -> InstanceBeat | None:
        """Let an instance wait no more: its last beat, None when it does not wait here."""
        for model, coming in self._coming.items():
            if waiting := coming.waiting.pop(instance, None):
                if not coming.waiting:
                    coming.fetch.cancel()
                    self._left.append(coming.fetch)
                    del self._coming[model]
                return waiting.beat
        return None

    def forgive(self, slept_s: float) -> None:
        """This machine slept for so long: no source was silent in that time."""
        for coming in self._coming.values():
            coming.progress.forgive(slept_s)

    def poll(self, now: float) -> News:
        """Look at every fetch. Never blocks."""
        self._left = [fetch for fetch in self._left if not fetch.is_over]
        arrived, failed, is_news = list[NodeCommand](), list[InstanceBeat](), False
        for model, coming in list(self._coming.items()):
            fetch = coming.fetch
            is_over = fetch.is_over  # before its result is read: it may end in between
            trouble, is_first = fetch.trouble, fetch.total > 0 and not coming.progress.total
            is_news |= is_over or is_first or trouble != coming.trouble
            coming.trouble = trouble
            coming.progress.note(fetch.done, fetch.total, fetch.signs, now)
            failure = fetch.failure
            if not is_over and coming.progress.silent_s(now) > self._settings.fetch_stall_s:
                why = f" ({trouble})" if trouble else ""
                failure = f"no byte came for {self._settings.fetch_stall_s:g} s{why}; see to it, what came is kept"
                fetch.cancel()
                self._left.append(fetch)
            if failure:
                reason = f"its file could not be fetched from {fetch.source.name}: {failure}"
                logger.error("Could not fetch %s: %s", model, reason, extra={"event": "fetch.failed"})
                update = {"state": InstanceState.FAILED, "reason": reason}
                failed += [waiting.beat.model_copy(update=update) for waiting in coming.waiting.values()]
                del self._coming[model]
            elif is_over:
                logger.info(
                    "Fetched %s, %s, from %s in %.1f s", model, mib(fetch.total), fetch.source.name,
                    now - coming.progress.at, extra={"event": "fetch.done"},
                )  # fmt: skip
                arrived += [waiting.command for waiting in coming.waiting.values()]
                del self._coming[model]
            else:
                self._tell(coming)
        return News(arrived, failed, is_news or bool(failed))

    def close(self) -> None:
        """End serving and fetching; part files stay for the next agent."""
        self._closing.set()
        if self._meter:
            self._meter.close()
        fetches = [*self._left, *(coming.fetch for coming in self._coming.values())]
        for fetch in fetches:
            fetch.cancel()
        if self._server:
            self._server.close()
        deadline = time.monotonic() + JOIN_S
        for fetch in fetches:
            fetch.join(max(0.0, deadline - time.monotonic()))

    def _fetch(self, model: ModelId, name: NodeId) -> Fetch:
        source = NodeSource(
            name, lambda: self._registry.node(name), secret=self._secret, loopback=self.loopback, clock_s=self._clock_s
        )
        return Fetch(
            model, source, self._folder, suffix=self._suffix, hashes=self._hashes, space=self._space,
        )  # fmt: skip

    def _follow_address(self, port: int) -> None:
        """A laptop gets other addresses. Not in the agent's thread: names may take long to resolve."""
        while not self._closing.wait(ADDRESS_S):
            url = self.url
            with suppress(OSError):  # no interface can be asked right now
                url = files_url(self._host, port, self._settings.broker_url())
            if url != self.url:
                logger.info("Serving model files at %s now", url, extra={"event": "files.moved"})
                self.url = url

    def _space(self, folder: Path, fetch: Fetch) -> int:
        others = [coming.fetch for coming in tuple(self._coming.values()) if coming.fetch is not fetch]
        return disk_free(folder) - sum(other.remaining for other in others)

    def _tell(self, coming: _Coming) -> None:
        said = coming.progress.said(coming.fetch.source.name, coming.trouble)
        for waiting in coming.waiting.values():
            waiting.beat = waiting.beat.model_copy(update={"reason": said})


def _parts(catalog: Offers, model: ModelId) -> list[Path] | None:
    entry = catalog.models.get(model)
    return parts_of(entry[1]) if entry else None
