"""Composition root of an instance process: one loaded model, its engine, and a Celery worker that answers its doorbell.

    main thread   loads the model, then is the Celery consumer of queue model.<id>
    N threads     Celery's pool, one per slot: each claims a job and waits for its end
    extra jobs    looks for interactive jobs while all slots are taken; a thread for each that it takes
    engine        owns model and cache
    publisher     writes tokens and ends to the broker
    renewer       keeps the leases
    reporter      tells the agent how things are, each second and as the engine starts or stops working; takes orders

The queue is consumed only once the model is READY, so who consumes it is who can serve it. Whatever goes wrong in the
a thread of ours ends the process: the agent sees it, gives the jobs back, and the coordinator loads the model again.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue

from redis import Redis

from packtrain.broker import hops, keys, lifeline, logs
from packtrain.broker.blobs import RedisBlobs
from packtrain.broker.celery_app import RING, Doorbell, make_app
from packtrain.broker.connection import connect
from packtrain.broker.errors import NotDeterministic, PacktrainError
from packtrain.broker.ids import InstanceId, ModelId, Route
from packtrain.broker.jobs import routes_of
from packtrain.broker.processes import Presence
from packtrain.broker.redis_jobs import RedisJobs
from packtrain.broker.registry import RedisRegistry
from packtrain.broker.settings import Settings, load_settings
from packtrain.broker.states import InstanceState
from packtrain.broker.tracing import start_tracing
from packtrain.workers.celery_worker import HubBeat, run_worker
from packtrain.workers.instance_messages import InstanceConfig, InstanceOrder, InstanceReport, ReportPipe
from packtrain.workers.instance_parts import Parts, import_backend, load_backend, loaded_parts
from packtrain.workers.lease_traces import lease_tracer
from packtrain.workers.own_memory import OwnMemory, own_memory
from packtrain.workers.publisher import Publisher
from packtrain.workers.receipts import adapter_sha256, model_sha256
from packtrain.workers.renewer import Renewer
from packtrain.workers.runner import Runner
from packtrain.workers.supervision import DRAINING_MARGIN_S, EXIT_LOAD_FAILED, EXIT_THREAD_DIED

logger = logging.getLogger(__name__)

#: One that gives up waits so long for the broker to know of its jobs, seconds.
GIVE_UP_S = 5.0
#: Between two reports at least: tiny jobs start and stop the engine hundreds of times a second.
REPORT_PAUSE_S = 0.02


class Instance:
    """The parts of one instance process, wired."""

    def __init__(
        self,
        config: InstanceConfig,
        settings: Settings,
        redis: Redis,
        parts: Parts,
        memory: tuple[OwnMemory, OwnMemory],
        news: SimpleQueue[str],
    ) -> None:
        self._config = config
        self._before_load, self._loaded = memory
        self._news = news  # orders of the agent; an empty one means that there is something to report
        self._threads = config.n_threads
        self._settings = settings
        instance, node = InstanceId(config.instance), settings.node_id
        store = RedisJobs(redis)
        self._engine = parts.engine
        self._parts = parts
        self._tracing = start_tracing("packtrain-instance", node=node, instance=instance)
        self._app = make_app(settings.broker_url(), name=f"instance.{instance}", events=settings.events)
        ring = Doorbell(self._app).ring
        self._publisher = Publisher(
            store,
            instance,
            node,
            parts.prover,
            self._engine.cancel,
            threads=lambda: self._threads,
            ring=ring,
            on_over=lease_tracer(self._tracing, model=config.model, instance=instance, node=node),
        )
        self._renewer = Renewer(
            store, self._engine, lease_ms=settings.lease_ms, stall_s=settings.stall_s, clock=time.monotonic
        )
        self._runner = Runner(
            store, parts.starter, self._engine, self._publisher, self._renewer,
            model=ModelId(config.model), instance=instance, node=node, lease_ms=settings.lease_ms,
            numerics=config.options.numerics, numerics_class=parts.numerics_class,
            bulk_slots=config.n_slots - config.reserved_slots,
            extra_jobs=parts.extra_jobs, ring=ring, clock=time.monotonic,
        )  # fmt: skip
        self._pipe = ReportPipe(config.report_fd)
        self._hub = HubBeat(settings.stall_s)
        self._state = InstanceState.WARMING
        self._warm_tokens = 0  # that no job has asked for
        self._engine_thread = threading.Thread(target=self._engine.run, name="engine", daemon=True)

    def run(self) -> None:
        """Serve until told to stop, then drain."""
        self._publisher.start()
        self._renewer.start()
        threading.Thread(target=self._report_for_ever, name="reporter", daemon=True).start()
        app, runner = self._app, self._runner

        @app.task(name=RING)  # type: ignore[untyped-decorator]
        def ring(model: str) -> object:
            return runner.answer(Route(model))

        runner.start()
        run_worker(
            app,
            name=self._config.worker_name,
            queues=[keys.model_queue(r) for r in routes_of(ModelId(self._config.model), self._config.options.numerics)],
            threads=self._config.n_slots,
            events=self._settings.events,
            hub=self._hub,
            facts=self._facts,
            on_ready=lambda: self._set_state(InstanceState.READY),
            on_stopping=self._begin_drain,
        )
        self._engine.stop()
        self._engine_thread.join()
        self._publisher.stop()
        self._renewer.stop()
        if self._tracing:
            self._tracing.close()

    def warm_up(self) -> None:
        """Start the engine, and see whether it can do anything.

        Raises:
            ModelLoadFailed: It cannot.
        """
        self._engine_thread.start()
        self._set_state(InstanceState.WARMING)
        self._parts.warm_up()
        self._warm_tokens = self._engine.stats.tokens_out

    def _begin_drain(self) -> None:
        # In a signal handler: it may have interrupted a holder of any lock, so it must take none itself.
        threading.Thread(target=self._drain, name="drain", daemon=True).start()

    def _drain(self) -> None:
        """Let running jobs finish for a while, then give the rest back to the queue."""
        self._runner.drain()
        self._set_state(InstanceState.DRAINING)
        deadline = time.monotonic() + self._settings.drain_s
        while self._renewer.num_held and time.monotonic() < deadline:
            time.sleep(0.05)
        self._engine.stop()
        # The agent kills whoever outstays this; but agent and broker may both be gone, and then nobody would.
        time.sleep(DRAINING_MARGIN_S)
        logger.error("Could not give the jobs back in time; their leases will lapse", extra={"event": "drain.failed"})
        os._exit(EXIT_THREAD_DIED)

    def give_up(self, reason: str) -> None:
        """End as FAILED, for no job can be served any more; those that wait for their turn go back to the queue."""
        threading.Thread(target=self._give_up, args=(reason,), name="give up", daemon=True).start()

    def _give_up(self, reason: str) -> None:
        self._runner.drain()
        self._engine.stop()
        deadline = time.monotonic() + GIVE_UP_S
        while self._renewer.num_held and time.monotonic() < deadline:
            time.sleep(0.02)
        self._pipe.send(InstanceReport(state=InstanceState.FAILED, reason=reason))
        sys.stderr.write(f"packtrain instance {self._config.instance}: {reason}\n")
        sys.stderr.flush()
        os._exit(EXIT_LOAD_FAILED)

    def _report_for_ever(self) -> None:
        while True:
            self._report()
            time.sleep(REPORT_PAUSE_S)
            with suppress(Empty):
                self._obey(self._news.get(timeout=self._hub.every_s))
                while True:
                    self._obey(self._news.get_nowait())

    def _obey(self, order: str) -> None:
        if order:
            self._threads = InstanceOrder.model_validate_json(order).threads
            self._engine.set_threads(self._threads)

    def _set_state(self, state: InstanceState) -> None:
        self._state = state
        self._report()

    def _report(self) -> None:
        stats = self._engine.stats
        self._pipe.send(
            InstanceReport(
                state=self._state,
                slots_used=stats.slots_used,
                steps=stats.steps,
                batch_peak=stats.batch_peak,
                tokens_out=stats.tokens_out,
                tokens_reused=stats.tokens_reused,
                batches=stats.batches,
                batched=stats.batched,
                kv_tokens=stats.kv_tokens,
                parked=stats.parked,
                parkings=stats.parkings,
                images_seen=self._parts.num_images(),
                job_s=round(self._runner.job_times.seconds(time.monotonic()), 3),
                recipe=self._parts.recipe,
                numerics_class=self._parts.numerics_class,
                has_served=stats.tokens_out > self._warm_tokens or self._runner.job_times.num_ended > 0,
                is_busy=self._engine.is_busy,
                threads=self._threads,
                step_age_s=round(time.monotonic() - stats.beat, 1),
                hub_age_s=round(self._hub.age_s, 1),
                before_load=self._before_load,
                loaded=self._loaded,
            )
        )

    def _facts(self) -> dict[str, object]:
        stats = self._engine.stats
        return {
            "instance": self._config.instance,
            "model": self._config.model,
            "state": self._state.value,
            "numerics": f"{self._config.options.numerics} ({self._parts.recipe})",
            "slots": f"{stats.slots_used}/{self._config.n_slots} used",
            "parked": stats.parked,
            "context_per_slot": self._config.n_ctx,
            "steps": stats.steps,
            "tokens_out": stats.tokens_out,
            "largest_batch": stats.batch_peak,
            "threads": self._threads,
        }


def _be_first_to_go() -> None:
    """Where memory runs out the kernel shall end an instance, whose jobs resume, and not the broker or the agent."""
    with suppress(OSError):  # not Linux, or not allowed
        Path("/proc/self/oom_score_adj").write_text("800")  # of -1000 (never) to 1000 (first)


def _end_process(died: threading.ExceptHookArgs) -> None:
    """A dead engine, publisher or renewer would leave jobs waiting for ever behind a healthy face."""
    name = died.thread.name if died.thread else "a thread"
    logger.critical("Thread %s died; this instance ends", name, exc_info=died.exc_value, extra={"event": "thread.died"})
    sys.stderr.flush()
    os._exit(EXIT_THREAD_DIED)


def _loaded(config: InstanceConfig, settings: Settings, redis: Redis, news: SimpleQueue[str]) -> Instance:
    """With the model in memory."""
    import_backend(config)
    before_load = own_memory()
    with ThreadPoolExecutor(1) as beside:  # the first time it reads the whole file, as the load does
        cache = settings.home / "hashes.json"
        sha256 = beside.submit(model_sha256, Path(config.path), cache)
        adapters = beside.submit(adapter_sha256, config.adapters, cache)
        projector = beside.submit(model_sha256, Path(config.projector), cache) if config.projector else None
        backend = load_backend(config)
    memory = (before_load, own_memory())
    parts = loaded_parts(
        config, backend, sha256.result(), adapters.result(), projector.result() if projector else "",
        RedisJobs(redis), RedisBlobs(redis), lambda: news.put(""),
    )  # fmt: skip
    return Instance(config, settings, redis, parts, memory, news)


def _remote(config: InstanceConfig, settings: Settings, redis: Redis, news: SimpleQueue[str]) -> Instance:
    """With a client of another server."""
    from packtrain.workers.remote.parts import remote_parts

    before_load = own_memory()
    registry = RedisRegistry(redis)
    made: list[Instance] = []
    parts = remote_parts(
        config,
        lambda: hops.fleet_id(registry.secret()),
        RedisJobs(redis),
        RedisBlobs(redis),
        lambda: news.put(""),
        on_fault=lambda reason: made[0].give_up(reason),
    )
    made.append(Instance(config, settings, redis, parts, (before_load, own_memory()), news))
    return made[0]


def main(argv: list[str]) -> int:
    """Entry point; the exit code."""
    threading.excepthook = _end_process
    config = InstanceConfig.model_validate_json(argv[1])
    pipe = ReportPipe(config.report_fd)
    try:
        settings = load_settings()
        logs.configure(settings.log_level)
        news: SimpleQueue[str] = SimpleQueue()
        lifeline.watch(on_line=news.put)
        _be_first_to_go()
        pipe.send(InstanceReport(state=InstanceState.LOADING))
        # Not of its agent's version where Packtrain was upgraded under a running agent.
        presence = Presence(settings.broker_url(), "instance", settings.node, config.instance)
        presence.begin()
        # Pool threads claim while publisher and renewer write: one pooled client serves them all.
        redis = connect(settings.broker_url(), name=f"instance.{config.instance}")
        instance = _remote(config, settings, redis, news) if config.remote else _loaded(config, settings, redis, news)
        instance.warm_up()
    except PacktrainError as error:
        why = error.data["reason"] if isinstance(error, NotDeterministic) else ""
        pipe.send(InstanceReport(state=InstanceState.FAILED, reason=str(error), not_deterministic=why))
        sys.stderr.write(f"packtrain instance {config.instance}: {error}\n")
        return EXIT_LOAD_FAILED
    instance.run()
    presence.end()
    # Not backend.shutdown(): the process ends now, and freeing gigabytes page by page first only takes time.
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
