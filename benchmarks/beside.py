"""How long a chat waits for its first token beside a bulk run that fills every slot, and how long on an idle fleet.

A file of requests runs by `packtrain bulk run` in a process of its own, more rows than there is time for. Chats come
over HTTP, streamed, one after the other with a pause between them: first while nothing else runs, then from when the
bulk run has every slot at work. Every prompt begins differently, so that none finds another's tokens in a cache.

    python -m benchmarks.beside [--chats 20] [--words 20,200]
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import MODEL, arguments_parser, bench_fleet, cpu_name
from packtrain.client import Packtrain
from tests.support.bulk_runs import BulkCommand, write_rows
from tests.support.fleets import eventually
from tests.support.gateways import Gateway, gateway

SLOTS, CONTEXT = 16, 1024
ROW_TOKENS, CHAT_TOKENS, PAUSE_S = 96, 8, 0.5


def main() -> int:
    """Entry point; the exit code."""
    parser = arguments_parser(__doc__)
    parser.add_argument("--chats", type=int, default=20, help="of each kind")
    parser.add_argument("--words", default="20,200", help="of a chat's prompt; several: one kind each")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        bench_fleet(options.model, threads=options.threads, slots=SLOTS, context=CONTEXT) as (running, client),
        gateway(running.url, Path(folder)) as http,
    ):
        print(f"{options.chats} chats a kind, beside bulk rows of {ROW_TOKENS} tokens, {SLOTS} slots; {cpu_name()}")
        print("| words | first token, idle, ms: p50 / p95 | beside bulk | ratio of p95 |")
        print("|---|---|---|---|")
        client.generate(MODEL, "warm up", max_tokens=2)
        for words in (int(part) for part in options.words.split(",")):
            idle = [first_token_ms(http, f"idle {number}", words) for number in range(options.chats)]
            bulk = start_bulk(running.url, Path(folder), client)
            beside = [first_token_ms(http, f"beside {number}", words) for number in range(options.chats)]
            bulk.kill()
            for job in client.jobs(200):
                if not job.state.is_terminal:
                    client.job(job.id).cancel()
            eventually(lambda: not slots_used(client), "the slots to be free")
            (idle_50, idle_95), (beside_50, beside_95) = spread(idle), spread(beside)
            shown = f"{idle_50:.0f} / {idle_95:.0f} | {beside_50:.0f} / {beside_95:.0f} | {beside_95 / idle_95:.2f}"
            print(f"| {words} | {shown} |", flush=True)
    return 0


def first_token_ms(http: Gateway, head: str, words: int) -> float:
    """Milliseconds from asking to the first text of a streamed chat."""
    time.sleep(PAUSE_S)
    prompt = f"{head}: " + " ".join(f"{head} item {number}" for number in range(words // 4))
    body = {
        "model": MODEL,
        "max_tokens": CHAT_TOKENS,
        "stream": True,
        "messages": [{"role": "user", "content": prompt}],
    }
    begin, first = time.perf_counter(), 0.0
    with http.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if line.startswith("data: {") and not first:
                choices = json.loads(line[6:])["choices"]
                if choices and choices[0]["delta"].get("content"):
                    first = time.perf_counter()
    assert first, "a chat without text"
    return (first - begin) * 1000


def start_bulk(url: str, folder: Path, client: Packtrain) -> BulkCommand:
    """A bulk run that has every slot at work."""
    rows = [
        {"model": MODEL, "prompt": f"{number}: a long story", "max_tokens": ROW_TOKENS, "ignore_eos": True}
        for number in range(5000)
    ]
    command = BulkCommand(url, write_rows(folder / "rows.jsonl", rows), folder / "out.jsonl", ("--restart", "--json"))
    command.start()
    eventually(lambda: slots_used(client) >= SLOTS, "every slot to be at work", 120)
    return command


def slots_used(client: Packtrain) -> int:
    """Slots at work, of all instances."""
    return sum(instance.slots_used for instance in client.instances() if not instance.state.is_terminal)


def spread(values: list[float]) -> tuple[float, float]:
    """Median and 95th percentile."""
    ordered = sorted(values)
    return ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))]


if __name__ == "__main__":
    sys.exit(main())
