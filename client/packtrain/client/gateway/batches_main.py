"""The process that runs one batch, until that has ended or cannot go on now: batches_keeper.py starts it."""

from __future__ import annotations

import signal
import sys
import traceback
from contextlib import closing
from types import FrameType

from packtrain.broker import lifeline, logs
from packtrain.broker.api_keys import ApiKeys
from packtrain.broker.connection import connect
from packtrain.broker.settings import load_settings
from packtrain.client.gateway.batches_budget import Budget
from packtrain.client.gateway.batches_faults import Meaning, meaning_of, said_of
from packtrain.client.gateway.batches_run import BatchRun
from packtrain.client.gateway.batches_store import AGAIN, Batch, BatchStore
from packtrain.client.gateway.files_store import FileStore
from packtrain.client.opening import open_transport


def main() -> int:
    """Run the batch that the only argument names; 0: it has ended, or somebody else runs it; 75: not yet."""
    (batch_id,) = sys.argv[1:]
    settings = load_settings()
    logs.configure(settings.log_level)
    batches, files = BatchStore(settings.files_folder), FileStore(settings.files_folder)
    batch = batches.about(batch_id, Batch)
    if batch is None:
        return 0
    with batches.locked(batch_id) as is_mine:
        if not is_mine:
            return 0
        try:
            url = settings.broker_url()
            with closing(open_transport(url)) as transport, closing(connect(url, name="batch")) as redis:
                budget = Budget(ApiKeys(redis), batch.owner, url) if batch.owner else None
                running = BatchRun(batch, batches, files, transport, gate=budget)

                def stop(_number: int, _frame: FrameType | None) -> None:
                    running.stop()

                for number in (signal.SIGTERM, signal.SIGINT):
                    signal.signal(number, stop)
                lifeline.watch()
                return 0 if running.run() else AGAIN
        except Exception as error:
            # To who started this process, which knows whether that is news (batches_keeper.py).
            sys.stdout.write(said_of(error) + "\n")
            if meaning_of(error) is not Meaning.WAITS:
                traceback.print_exc(file=sys.stdout)
            return AGAIN


if __name__ == "__main__":
    sys.exit(main())
