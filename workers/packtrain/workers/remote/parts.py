"""What runs the jobs of a remote model, wired."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from packtrain.broker.blobs import BlobStore
from packtrain.broker.errors import ModelLoadFailed
from packtrain.broker.jobs import JobStore
from packtrain.workers.instance_messages import InstanceConfig
from packtrain.workers.instance_parts import Parts
from packtrain.workers.remote.api import RemoteApi
from packtrain.workers.remote.engine import RemoteEngine
from packtrain.workers.remote.jobs import RemoteJobs, RemoteServer
from packtrain.workers.remote.options import RemoteOptions
from packtrain.workers.remote.turns import Turns


def key_of(options: RemoteOptions) -> str:
    """The key, from the environment.

    Raises:
        ModelLoadFailed: The variable that should hold it is not set, or holds what no header can.
    """
    if not options.key_env:
        return ""
    key = os.environ.get(options.key_env, "").strip()
    if not key:
        raise ModelLoadFailed(options.why_no_key)
    if not (key.isascii() and key.isprintable()):
        raise ModelLoadFailed(
            f"what {options.key_env} holds is no key, it has characters that no header can have; correct it and "
            "restart the node"
        )
    return key


def remote_parts(
    config: InstanceConfig,
    fleet: Callable[[], str],
    store: JobStore,
    blobs: BlobStore,
    on_activity: Callable[[], None],
    on_fault: Callable[[str], None],
) -> Parts:
    """Of a remote model.

    Args:
        fleet: Id of this fleet, see hops.py.
        on_fault: Told why the server takes our key no more.

    Raises:
        ModelLoadFailed: There is no key.
    """
    options = config.remote
    assert options is not None
    turns = Turns(options.requests_per_minute, time.monotonic)
    engine = RemoteEngine(
        options, model=config.model, api=RemoteApi(options, key_of(options)), turns=turns, clock=time.monotonic,
        on_activity=on_activity, on_fault=on_fault,
    )  # fmt: skip
    return Parts(
        engine=engine,
        starter=RemoteJobs(store, blobs, engine, options, turns, model=config.model, fleet=fleet, clock=time.monotonic),
        prover=RemoteServer(options),
        recipe="fast",
        numerics_class="",
        warm_up=engine.check,
    )
