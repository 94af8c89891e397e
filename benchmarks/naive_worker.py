"""What one would write first: a Celery task that calls `llama_cpp.Llama` once. The baseline of throughput.py."""

from __future__ import annotations

import os
from functools import cache

from celery import Celery
from llama_cpp import Llama

app = Celery("naive", broker=os.environ["NAIVE_URL"], backend=os.environ["NAIVE_URL"], set_as_current=False)
app.conf.update(task_default_queue="naive", broker_connection_retry_on_startup=True, result_expires=600)


@cache
def llama() -> Llama:
    """The model, loaded with the first task."""
    return Llama(os.environ["NAIVE_MODEL"], n_ctx=512, n_threads=int(os.environ["NAIVE_THREADS"]), verbose=False)


@app.task  # type: ignore[untyped-decorator]
def generate(prompt: str, max_tokens: int, seed: int) -> int:
    """Answer a prompt with a fixed number of tokens; how many there were."""
    model = llama()
    answer = model.create_chat_completion(
        messages=[{"role": "user", "content": prompt}],
        max_tokens=max_tokens,
        temperature=0.8,
        seed=seed,
        logit_bias={model.token_eos(): -100.0},
    )
    assert isinstance(answer, dict)
    return int(answer["usage"]["completion_tokens"])
