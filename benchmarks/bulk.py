"""What a bulk run costs: its memory, whatever the file's size; its rate; and kills on the way.

    python -m benchmarks.bulk memory [--rows 1000,1000000] [--twin]  resident memory, whatever the file's size
    python -m benchmarks.bulk rate [--jobs 64]                       shared prefix, real model, beside jobs at once
    python -m benchmarks.bulk kills [--rows 10000] [--seed 1]        two nodes, two models, five kills; needs iproute2

`memory` runs a file as a process of its own on a scripted fleet whose model answers one token at once, and looks at its
resident memory four times a second, for each phase: checking the rows, and running them. With `--twin` the fleet is a
stand-in inside that process that answers each job as it is submitted, so that a million rows take minutes: the same
reading, ledger, window and files, and no broker.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import cast

import psutil

from benchmarks.common import MODEL, arguments_parser, bench_fleet, cpu_name, run_at_once
from packtrain.broker.beats import InstanceBeat, NodeBeat
from packtrain.broker.chunks import Event
from packtrain.broker.ids import JobId, ModelId, Route
from packtrain.broker.job_spec import JobSpec
from packtrain.broker.jobs import Submitted
from packtrain.broker.model_info import ModelInfo
from packtrain.broker.outcome import JobStatus, Outcome, Usage
from packtrain.broker.states import JobState
from packtrain.client import Packtrain
from packtrain.client.bulk import BulkOptions, BulkRun
from packtrain.client.cli.bulk_view import BulkView
from packtrain.client.transport import Transport
from tests.support.bulk_runs import PROGRAM, BulkCommand, content, numbered, read_rows, run_with_kills, write_rows
from tests.support.fleets import scripted_fleet
from tests.support.gateways import Gateway, gateway
from tests.support.host_fleet import host_fleet

MIB = 2**20
#: Of the shared-prefix scenario, as benchmarks/versus_llama_server.py has it.
SLOTS, CONTEXT, PREFIX_TOKENS, NEW_TOKENS = 16, 1024, 416, 32


def main() -> int:
    """Entry point; the exit code is 1 when something was wrong."""
    parser = arguments_parser(__doc__)
    parser.add_argument("what", choices=("memory", "rate", "kills", "feed"))
    parser.add_argument("--twin", action="store_true")
    parser.add_argument("--file", type=Path, help="of `feed`, which `memory --twin` runs")
    parser.add_argument("--rows", default="")
    parser.add_argument("--jobs", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.what == "feed":
        return feed(options.file)
    with tempfile.TemporaryDirectory(prefix="packtrain-bench-") as folder:
        match options.what:
            case "memory":
                sizes = [int(part) for part in (options.rows or "1000,1000000").split(",")]
                return memory(Path(folder), sizes, with_twin=options.twin)
            case "kills":
                return kills(Path(folder), int(options.rows or 10_000), Random(options.seed))
            case _:
                return rate(Path(folder), options)


def memory(folder: Path, sizes: list[int], *, with_twin: bool) -> int:
    """Peak memory of the process for files of these sizes."""
    models = {"m": {"n_slots": 16, "n_ctx": 64}}
    print("| rows | checking, MiB | running, MiB | checked rows/s | rows/s | seconds |\n|---|---|---|---|---|---|")
    with ExitStack() as stack:
        url = ""
        if not with_twin:
            fleet = stack.enter_context(scripted_fleet(folder / "home", models))
            fleet.client.generate("m", "warm up", max_tokens=1)
            url = fleet.url
        for size in sizes:
            source = folder / f"{size}.jsonl"
            with open(source, "w") as file:
                file.writelines(json.dumps(row) + "\n" for row in numbered(size, ["m"], max_tokens=1))
            print(_measured(url, source, size), flush=True)
    return 0


class Twin:
    """A fleet that has answered each job when it is submitted, and forgets it once its answer was read."""

    url = "twin://"

    def __init__(self) -> None:
        self._outcomes: dict[JobId, Outcome] = {}

    def submit(self, job_id: JobId, spec: JobSpec) -> Submitted:
        text = spec.messages[-1].content[-1]
        usage = Usage(prompt_tokens=spec.num_chars, completion_tokens=1)
        self._outcomes[job_id] = Outcome(state=JobState.SUCCEEDED, text=text, finish_reason="length", usage=usage)
        return Submitted(job_id, ModelId("m"), Route("m"), True, 1)

    def events(self, after: Mapping[JobId, str], *, block_s: float) -> list[Event]:  # noqa: ARG002  (of a Transport)
        return [Event(job_id, "1", end=JobState.SUCCEEDED) for job_id in after]

    def statuses(self, job_ids: Collection[JobId]) -> dict[JobId, JobStatus]:
        state = JobState.SUCCEEDED
        return {i: JobStatus(id=i, state=state, model="m", outcome=self._outcomes.pop(i)) for i in job_ids}

    def models(self) -> list[ModelInfo]:
        return [ModelInfo(id="m", n_slots=16)]

    def nodes(self) -> list[NodeBeat]:
        return [NodeBeat(node="n1", models=("m",))]

    def instances(self) -> list[InstanceBeat]:
        return []


def feed(source: Path) -> int:
    """Run a file on a `Twin`, with the events of the command."""
    view = BulkView(as_json=True, quiet=True)
    options = BulkOptions(source=str(source), out=source.with_suffix(".out"))
    with BulkRun(cast(Transport, Twin()), options) as bulk:
        view.forecast(bulk.prepare(view.reading), total=bulk.total)
        view.event("end", asdict(bulk.run(view.progress)))
    return 0


def _measured(url: str, source: Path, size: int) -> str:
    out = source.with_suffix(".out")
    if url:
        command = [sys.executable, "-c", PROGRAM, "bulk", "run", str(source), "-o", str(out), "--json"]
    else:
        command = [sys.executable, "-m", "benchmarks.bulk", "feed", "--file", str(source)]
    peaks, begun = {"checking": 0, "running": 0}, {"checking": time.perf_counter()}
    with open(out.with_suffix(".events"), "w+") as events:
        process = subprocess.Popen(command, env={**os.environ, "PACKTRAIN_URL": url}, stdout=events)
        watched, phase = psutil.Process(process.pid), "checking"
        while process.poll() is None:
            if phase == "checking" and '"event": "forecast"' in Path(events.name).read_text():
                phase = "running"
                begun[phase] = time.perf_counter()
            peaks[phase] = max(peaks[phase], watched.memory_info().rss)
            time.sleep(0.25)
        end = json.loads(Path(events.name).read_text().splitlines()[-1])
    assert (process.returncode, end["completed"]) == (0, size), end
    checked_s = begun.get("running", time.perf_counter()) - begun["checking"]
    run_s = time.perf_counter() - begun.get("running", begun["checking"])
    mib = {name: f"{peak / MIB:.0f}" for name, peak in peaks.items()}
    return (
        f"| {size:,} | {mib['checking']} | {mib['running']} | {size / checked_s:,.0f} | {size / run_s:,.0f} "
        f"| {checked_s + run_s:,.0f} |"
    )


def kills(folder: Path, rows: int, random: Random) -> int:
    """The same file calmly and with five kills: each id once, the same bytes."""
    script = {"n_slots": 8, "n_ctx": 512, "step_ms": 2}
    with host_fleet(folder / "fleet", {"one": script, "two": script}, "n1", "n2") as fleet:
        source = write_rows(folder / "in.jsonl", list(numbered(rows, ["one", "two"], deterministic=True)))
        calm = BulkCommand(fleet.outer_url, source, folder / "calm.jsonl", ("--ordered",))
        begin = time.perf_counter()
        calm.start()
        assert calm.wait(3600) == 0, calm.log
        calm_s = time.perf_counter() - begin
        hit = BulkCommand(fleet.outer_url, source, folder / "hit.jsonl", ("--ordered",))
        begin = time.perf_counter()
        said = run_with_kills(fleet, hit, rows, random, timeout_s=3600)
        hit_s = time.perf_counter() - begin
        lines = read_rows(hit.out)
        right = sum(content(line) == f"row {n}"[::-1] for n, line in enumerate(lines))
        once = sorted(line["custom_id"] for line in lines) == sorted(f"row-{n}" for n in range(rows))
        same = hit.out.read_bytes() == calm.out.read_bytes()
    print(f"{rows:,} rows, two nodes, two models: {calm_s:.0f} s calmly, {hit_s:.0f} s with kills ({'; '.join(said)})")
    print(f"each id once: {once}; right answers: {right:,}; the same bytes: {same}")
    return 0 if once and same and right == rows else 1


def rate(folder: Path, options: argparse.Namespace) -> int:
    """Rows with a shared beginning per second: as jobs of threads, as a file, and as a batch over HTTP."""
    prefix = " ".join(f"Rule {n}: keep the train together." for n in range(PREFIX_TOKENS // 9))
    prompts = [f"{prefix}\nQuestion {n}: what does rule {n} say?" for n in range(options.jobs)]
    with (
        bench_fleet(options.model, threads=options.threads, slots=SLOTS, context=CONTEXT) as (running, client),
        gateway(running.url, folder) as http,
    ):
        client.generate(MODEL, "warm up", max_tokens=2)
        print(f"{options.jobs} prompts that begin alike, {NEW_TOKENS} new tokens each; {cpu_name()}")
        print("| round | jobs at once, jobs/s | bulk file, rows/s | batch, rows/s | file / jobs | batch / jobs |")
        print("|---|---|---|---|---|---|")
        for number in range(options.rounds):
            sets = [[f"({number}, {way}) {prompt}" for prompt in prompts] for way in ("jobs", "file", "batch")]
            jobs_s = _jobs_per_s(client, sets[0])
            file_s = _rows_per_s(running.url, folder, sets[1])
            batch_s = _batch_per_s(http, sets[2])
            shares = f"{file_s / jobs_s:.2f} | {batch_s / jobs_s:.2f}"
            print(f"| {number + 1} | {jobs_s:.2f} | {file_s:.2f} | {batch_s:.2f} | {shares} |", flush=True)
    return 0


def _jobs_per_s(client: Packtrain, prompts: list[str]) -> float:
    def ask(prompt: str) -> int:
        result = client.generate(MODEL, prompt, max_tokens=NEW_TOKENS, ignore_eos=True, temperature=0, lane="bulk")
        return result.usage.completion_tokens

    tokens, seconds = run_at_once(ask, prompts, len(prompts))
    assert tokens == [NEW_TOKENS] * len(prompts)
    return len(prompts) / seconds


def _rows_per_s(url: str, folder: Path, prompts: list[str]) -> float:
    source = write_rows(folder / "rate.jsonl", [
        {"model": MODEL, "prompt": prompt, "max_tokens": NEW_TOKENS, "ignore_eos": True, "temperature": 0}
        for prompt in prompts
    ])  # fmt: skip
    command = BulkCommand(url, source, folder / "rate.out", ("--restart", "--json"))
    begin = time.perf_counter()
    command.start()
    assert command.wait(600) == 0, command.log
    seconds = time.perf_counter() - begin
    events = [json.loads(line) for line in command.log.splitlines() if line.startswith('{"event": "end"')]
    assert events[-1]["completed"] == len(prompts)
    return len(prompts) / seconds


def _batch_per_s(http: Gateway, prompts: list[str]) -> float:
    body = {"model": MODEL, "max_tokens": NEW_TOKENS, "ignore_eos": True, "temperature": 0}
    rows = [
        {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions",
         "body": {**body, "messages": [{"role": "user", "content": prompt}]}}
        for number, prompt in enumerate(prompts)
    ]  # fmt: skip
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    file = http.http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("rows.jsonl", content)}).json()
    order = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    begin = time.perf_counter()
    batch = http.answer("/v1/batches", order)
    while batch["status"] != "completed":
        assert batch["status"] in ("validating", "in_progress", "finalizing"), batch
        time.sleep(0.1)
        batch = http.http.get(f"/v1/batches/{batch['id']}").json()
    assert batch["request_counts"]["completed"] == len(prompts), batch
    return len(prompts) / (time.perf_counter() - begin)


if __name__ == "__main__":
    sys.exit(main())
