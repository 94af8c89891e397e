"""A bare Celery worker with our configuration and a task that does nothing. The baseline of queue.py."""

from __future__ import annotations

import os
import time

from packtrain.broker.celery_app import make_app
from packtrain.broker.connection import connect
from packtrain.workers.celery_worker import HubBeat, run_worker

app = make_app(os.environ["BARE_URL"], name="bare")
redis = connect(os.environ["BARE_URL"], name="bare")
num_run = 0


@app.task(name="bare.noop")  # type: ignore[untyped-decorator]
def noop(sent: float) -> None:
    """Do nothing. Delays of a minute ago and less are kept; those of the rate runs lie longer and cost nothing here."""
    delay = time.time() - sent
    if delay < 0.2:
        redis.rpush("bench:starts", delay)


if __name__ == "__main__":
    run_worker(
        app, name="bare@bench", queues=["bare"], threads=16, events=False, hub=HubBeat(60), facts=dict,
        on_ready=lambda: None, on_stopping=lambda: None,
    )  # fmt: skip
