"""A host without a fleet: takes the oldest job, loads its model if it has not got it, answers. The baseline of swaps.

`python -m tests.support.fifo_host URL FOLDER HOLDS`. It is what one would write first: a list in Redis, a worker on
each machine, and a cache of models from which the least recently used leaves. One thread, as instances of the fleet
have there: llama.cpp's threads wait for each other by spinning, and more of them than cores wait nearly for ever.
"""

from __future__ import annotations

import json
import sys
import time
from collections import OrderedDict
from pathlib import Path
from typing import cast

from llama_cpp import Llama
from redis import Redis


def run(url: str, folder: Path, holds: int) -> None:
    """Serve until killed."""
    redis = Redis.from_url(url, decode_responses=True)
    loaded: OrderedDict[str, Llama] = OrderedDict()
    while True:
        # A list of two: the name of the list, and the job.
        popped = cast(list[str] | None, redis.blpop(["fifo:jobs"], timeout=2))
        if not popped:
            continue
        number, model, prompt, submitted = json.loads(popped[1])
        waited_s, is_load = time.time() - submitted, model not in loaded
        if is_load:
            if len(loaded) >= holds:
                loaded.popitem(last=False)[1].close()
            path = str(folder / f"{model}.gguf")
            loaded[model] = Llama(path, n_ctx=512, n_threads=1, n_threads_batch=1, verbose=False)
        loaded.move_to_end(model)
        answer = loaded[model].create_completion(prompt, max_tokens=4, temperature=0)
        assert isinstance(answer, dict)
        redis.rpush("fifo:done", json.dumps((number, answer["choices"][0]["text"], is_load, waited_s)))


if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
