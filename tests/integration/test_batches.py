"""`/v1/files` and `/v1/batches` of a real gateway before a fleet with scripted models, whatever is killed."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from packtrain.client.cli.main import app
from packtrain.client.gateway.batches_keeper import Keeper
from packtrain.client.gateway.batches_run import BatchRun
from packtrain.client.gateway.batches_store import Batch, BatchStatus, BatchStore, batch_object
from packtrain.client.gateway.files_store import FileStore
from packtrain.client.opening import open_transport
from tests.support.bulk_runs import content, numbered, read_rows, row, write_rows
from tests.support.fleets import Fleet, eventually, scripted_fleet
from tests.support.gateways import Gateway, gateway

pytestmark = pytest.mark.integration

MODELS: dict[str, dict[str, Any]] = {"m": {"n_slots": 8, "n_ctx": 512}, "slow": {"n_slots": 4, "step_ms": 20}}
CHAT = "/v1/chat/completions"
RUN = (sys.executable, "-m", "packtrain.client.gateway.batches_main")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with scripted_fleet(tmp_path_factory.mktemp("home"), MODELS) as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@contextmanager
def door(fleet: Fleet, folder: Path) -> Iterator[Gateway]:
    with gateway(fleet.url, folder) as running:
        yield running


@pytest.fixture(scope="module")
def http(fleet: Fleet, folder: Path) -> Iterator[Gateway]:
    with door(fleet, folder) as running:
        yield running


def start(http: Gateway, rows: Sequence[Any], endpoint: str = CHAT) -> str:
    """Upload rows and have them run; the batch's id."""
    lines = "".join(f"{each if isinstance(each, str) else json.dumps(each)}\n" for each in rows)
    sent = http.http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", lines.encode())})
    assert sent.status_code == 200, sent.text
    body = {"input_file_id": sent.json()["id"], "endpoint": endpoint, "completion_window": "24h"}
    return str(http.answer("/v1/batches", body)["id"])


def look(http: Gateway, batch_id: str) -> dict[str, Any]:
    return dict(http.http.get(f"/v1/batches/{batch_id}").json())


def ended(http: Gateway, batch_id: str) -> dict[str, Any]:
    """The batch, once nothing changes any more."""

    def end() -> dict[str, Any] | None:
        batch = look(http, batch_id)
        return batch if BatchStatus(batch["status"]).is_over else None

    return eventually(end, f"the end of {batch_id}", 60)


def lines_of(http: Gateway, file_id: str | None) -> list[dict[str, Any]]:
    return [json.loads(line) for line in http.http.get(f"/v1/files/{file_id}/content").text.splitlines()]


def test_a_batch_answers_each_row_and_keeps_what_failed_apart(http: Gateway) -> None:
    rows = [row(1, "m"), row(2, "m", text="x" * 600), row(3, "m", temperature=9), row(4, "slow", text="ab")]

    batch = ended(http, start(http, rows))

    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": 4, "completed": 2, "failed": 2}
    assert batch["created_at"] <= batch["in_progress_at"] <= batch["finalizing_at"] <= batch["completed_at"]
    answers, errors = (lines_of(http, batch[name]) for name in ("output_file_id", "error_file_id"))
    assert {line["custom_id"]: content(line) for line in answers} == {"row-1": "1 wor", "row-4": "ba"}
    assert {line["custom_id"]: line["response"]["status_code"] for line in errors} == {"row-2": 400, "row-3": 400}
    assert all(line["response"]["body"]["created"] == batch["created_at"] for line in answers)
    output = http.http.get(f"/v1/files/{batch['output_file_id']}").json()
    assert (output["purpose"], output["filename"]) == ("batch_output", f"{batch['id']}_output.jsonl")


def test_a_file_that_is_no_batch_fails_with_every_line_that_is_wrong(http: Gateway) -> None:
    rows = [row(1, "m"), "no json", {**row(2, "m"), "url": "/v1/embeddings"}, row(1, "m"), row(3, "m", stream=True),
            {"prompt": "plain", "model": "m"}, row(4, "nosuch")]  # fmt: skip

    batch = ended(http, start(http, rows))

    assert (batch["status"], batch["output_file_id"], batch["error_file_id"]) == ("failed", None, None)
    assert batch["failed_at"]
    assert [(fault["line"], fault["code"]) for fault in batch["errors"]["data"]] == [
        (2, "invalid_json_line"), (3, "invalid_url"), (4, "duplicate_custom_id"), (5, "streaming_unsupported"),
        (6, "missing_required_parameter"), (7, "model_not_found"),
    ]  # fmt: skip


def test_the_command_line_runs_a_file_through_a_gateway_too(http: Gateway, tmp_path: Path) -> None:
    source, out = write_rows(tmp_path / "in.jsonl", list(numbered(40, ["m", "slow"]))), tmp_path / "out.jsonl"

    done = CliRunner().invoke(app, ["bulk", "run", str(source), "-o", str(out)], env={"PACKTRAIN_URL": http.url})

    assert done.exit_code == 0, (done.output, done.exception)
    assert {line["custom_id"]: content(line) for line in read_rows(out)} == {
        f"row-{n}": f"row {n}"[::-1] for n in range(40)
    }


def test_a_cancelled_batch_keeps_what_was_done(http: Gateway, fleet: Fleet) -> None:
    batch_id = start(http, [row(n, "slow", text=f"{n:03} " + "z" * 20) for n in range(60)])
    eventually(lambda: look(http, batch_id)["request_counts"]["completed"] >= 3, "some rows", 30)

    cancelling = http.answer(f"/v1/batches/{batch_id}/cancel", {})
    batch = ended(http, batch_id)

    assert (cancelling["status"], batch["status"]) == ("cancelling", "cancelled")
    counts = batch["request_counts"]
    assert 3 <= counts["completed"] < 60
    assert counts["failed"] == 0
    assert len(lines_of(http, batch["output_file_id"])) == counts["completed"]
    eventually(lambda: not fleet.client.waiting(), "no job left behind")
    again = http.post(f"/v1/batches/{batch_id}/cancel", {})
    assert (again.status_code, again.headers["x-should-retry"]) == (409, "false")


def test_a_batch_outlives_the_processes_that_run_it_and_the_gateway(fleet: Fleet, tmp_path: Path) -> None:
    rows = [row(n, "slow", text=f"{n:03} " + "k" * 16) for n in range(36)]
    with door(fleet, tmp_path) as first:
        batch_id = start(first, rows)
        eventually(lambda: look(first, batch_id)["request_counts"]["completed"] >= 3, "some rows", 30)
        (runner,) = psutil.Process(first.process.pid).children()
        runner.kill()
        eventually(lambda: look(first, batch_id)["request_counts"]["completed"] >= 12, "more rows", 40)
        runners = psutil.Process(first.process.pid).children()
        os.kill(first.process.pid, signal.SIGKILL)
        psutil.wait_procs(runners, 20)  # their lifeline is cut
        assert not any(process.is_running() for process in runners)

    with door(fleet, tmp_path) as second:
        batch = ended(second, batch_id)
        answers = lines_of(second, batch["output_file_id"])

    assert batch["request_counts"] == {"total": 36, "completed": 36, "failed": 0}
    assert sorted(line["custom_id"] for line in answers) == sorted(f"row-{n}" for n in range(36))
    left = {path.name for path in (tmp_path / "files" / "batches" / batch_id).iterdir()}
    assert left == {"about.json", "progress.json", "lock"}


def order(folder: Path, rows: Sequence[Any]) -> tuple[BatchStore, Batch]:
    """A batch in a folder that no gateway keeps."""
    batches, files = BatchStore(folder), FileStore(folder)
    write_rows(folder / "in.jsonl", rows)
    now = int(time.time())
    batch = Batch(
        id=batches.new_id(), created_at=now, expires_at=now + 3600, endpoint=CHAT, input_file_id="",
        output_file_id=files.new_id(), error_file_id=files.new_id(),
    )  # fmt: skip
    batches.create(batch, folder / "in.jsonl")
    return batches, batch


@contextmanager
def keeping(fleet: Fleet, folder: Path, command: Sequence[str] = RUN) -> Iterator[Keeper]:
    """A keeper of a folder, to be looked with."""
    env = {"PACKTRAIN_URL": fleet.url, "PACKTRAIN_FILES": str(folder)}
    keeper = Keeper(BatchStore(folder), command, env)
    try:
        yield keeper
    finally:
        keeper.stop()


def test_a_batch_whose_ledger_is_damaged_fails_and_keeps_the_answers_that_it_has(fleet: Fleet, tmp_path: Path) -> None:
    batches, batch = order(tmp_path, [row(n, "slow", text=f"{n:03} " + "k" * 16) for n in range(60)])
    with keeping(fleet, tmp_path) as keeper:
        keeper.look(0)
        eventually(lambda: batches.progress(batch.id).completed >= 3, "some rows", 30)
    ledger = batches.path(batch.id, "output.jsonl.packtrain") / "ledger.sqlite"
    for path in ledger.parent.glob("ledger.sqlite*"):
        path.unlink()
    ledger.write_bytes(b"no ledger any more. " * 1000)

    with keeping(fleet, tmp_path) as keeper:
        keeper.look(0)
        eventually(lambda: batches.progress(batch.id).status.is_over, "its end", 30)

    shown = batch_object(batch, batches.progress(batch.id), None)
    assert (shown["status"], shown["errors"]["data"][0]["code"]) == ("failed", "batch_failed")
    assert "not a database" in shown["errors"]["data"][0]["message"]
    answers = FileStore(tmp_path).content(shown["output_file_id"]).read_text().splitlines()
    assert 3 <= len(answers) == shown["request_counts"]["completed"] < 60


def test_a_batch_waits_while_the_disk_is_full_says_so_once_and_goes_on(
    fleet: Fleet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING")
    batches, batch = order(tmp_path, list(numbered(30, ["m"])))
    full = ("sh", "-c", f'ulimit -f 16; exec {" ".join(RUN)} "$0"')  # no file may have more than 8 or 16 KiB

    with keeping(fleet, tmp_path, full) as keeper:
        for now_s in (0.0, 1000.0, 2000.0):  # three tries, far from each other

            def has_ended(now_s: float = now_s) -> bool:
                keeper.look(now_s)
                tried = keeper.troubles.get(batch.id)
                return not keeper.running and tried is not None and tried.not_before_s > now_s

            eventually(has_ended, f"the try at {now_s}", 30)
    waiting = batch_object(batch, batches.progress(batch.id), None)
    with keeping(fleet, tmp_path) as keeper:
        keeper.look(0)
        eventually(lambda: batches.progress(batch.id).status.is_over, "its end", 30)
    done = batch_object(batch, batches.progress(batch.id), None)

    assert (waiting["status"], waiting["errors"]) == ("validating", None)
    assert "make room" in waiting["packtrain"]["waits_for"]
    assert len([record for record in caplog.records if getattr(record, "event", "") == "batch.waits"]) == 1
    assert (done["status"], done["request_counts"]["completed"]) == ("completed", 30)
    assert "packtrain" not in done


def test_what_is_left_after_a_day_fails_as_expired(fleet: Fleet, tmp_path: Path) -> None:
    batches, files = BatchStore(tmp_path), FileStore(tmp_path)
    rows = [row(n, "slow", text=f"{n:03} " + "e" * 20) for n in range(60)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    batch = Batch(
        id=batches.new_id(), created_at=1, expires_at=100, endpoint=CHAT, input_file_id="",
        output_file_id=files.new_id(), error_file_id=files.new_id(),
    )  # fmt: skip
    batches.create(batch, tmp_path / "in.jsonl")
    begun = time.monotonic()

    def now() -> float:  # two seconds before the end
        return 98 + time.monotonic() - begun

    with batches.locked(batch.id) as is_mine:
        assert is_mine
        transport = open_transport(fleet.url)
        assert BatchRun(batch, batches, files, transport, now).run()
        transport.close()

    progress = batches.progress(batch.id)
    assert progress.status is BatchStatus.EXPIRED
    assert progress.completed + progress.failed == progress.total == 60
    errors = [json.loads(line) for line in files.content(batch.error_file_id).read_text().splitlines()]
    assert {line["error"]["code"] for line in errors} == {"batch_expired"}
    assert len(errors) == progress.failed > 0
