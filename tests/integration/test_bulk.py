"""`packtrain bulk run` on a fleet with scripted models: what it writes, says and leaves, and how it is gone on with."""

from __future__ import annotations

import gzip
import json
import signal
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from packtrain.broker.errors import PacktrainError
from packtrain.client.cli.main import app, exit_code
from tests.support.bulk_runs import BulkCommand, content, numbered, read_rows, row, write_rows
from tests.support.fleets import Fleet, eventually, scripted_fleet

pytestmark = pytest.mark.integration

MODELS: dict[str, dict[str, Any]] = {
    "m": {"n_slots": 8, "n_ctx": 512},
    "slow": {"n_slots": 4, "step_ms": 30},
    "huge": {"required_mib": 2**30},
}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with scripted_fleet(tmp_path_factory.mktemp("home"), MODELS) as running:
        yield running


@dataclass
class Done:
    """What the command came to."""

    returncode: int
    stdout: bytes
    stderr: bytes


def bulk(fleet: Fleet, *arguments: str | Path, stdin: bytes | None = None) -> Done:
    """The command in this process, which starts in no time."""
    words = ["bulk", "run", *map(str, arguments)]
    done = CliRunner().invoke(app, words, input=stdin, env={"PACKTRAIN_URL": fleet.url})
    if isinstance(done.exception, PacktrainError):
        return Done(exit_code(done.exception), done.stdout_bytes, done.stderr_bytes + str(done.exception).encode())
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    return Done(done.exit_code, done.stdout_bytes, done.stderr_bytes)


def test_rows_of_all_kinds_are_answered_in_openais_form(fleet: Fleet, tmp_path: Path) -> None:
    source = write_rows(
        tmp_path / "in.jsonl",
        [
            row(1, "m"),
            {"custom_id": "e", "method": "POST", "url": "/v1/embeddings", "body": {"model": "m", "input": ["a", "b"]}},
            {"custom_id": "c", "method": "POST", "url": "/v1/completions", "body": {"model": "m", "prompt": "abc"}},
            "",
            {"prompt": "plain", "n": 2},
        ],
    )
    out = tmp_path / "out.jsonl"

    done = bulk(fleet, source, "-o", out, "--model", "m", "--json")
    events = [json.loads(line) for line in done.stdout.splitlines()]

    assert (done.returncode, done.stderr) == (0, b"")
    assert [events[0]["event"], events[-1]["event"]] == ["forecast", "end"]
    assert (events[0]["rows"], events[-1]["completed"], events[-1]["failed"]) == (4, 4, 0)
    found = {line["custom_id"]: line["response"]["body"] for line in read_rows(out)}
    assert content({"response": {"body": found["row-1"]}}) == "1 wor"
    assert [each["index"] for each in found["e"]["data"]] == [0, 1]
    assert found["c"]["choices"][0]["text"] == "cba"
    assert [each["message"]["content"] for each in found["row-5"]["choices"]] == ["nialp", "nialp"]
    assert not (tmp_path / "out.jsonl.errors.jsonl").exists()


def test_a_file_with_faults_runs_not_at_all_and_all_are_named(fleet: Fleet, tmp_path: Path) -> None:
    rows = [row(1, "m"), "{", row(1, "m"), row(2, "nosuch"), row(3, "m", stream=True)]
    source, out = write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"

    done = bulk(fleet, source, "-o", out)
    said = done.stderr.decode()

    assert done.returncode == 2
    for text in ("line 2: invalid_json_line", "line 3: duplicate_custom_id [custom_id]: the custom_id stands on line 1",
                 "line 4: model_not_found [body.model]", "line 5: streaming_unsupported [body.stream]"):  # fmt: skip
        assert text in said
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_failed_rows_stand_in_a_file_of_their_own_and_are_run_again_when_asked(fleet: Fleet, tmp_path: Path) -> None:
    rows = [row(1, "m"), row(2, "m", text="x" * 600), row(3, "m", temperature=9)]
    source, out = write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    errors = tmp_path / "bad.jsonl"

    first = bulk(fleet, source, "-o", out, "--errors", errors, "--skip-invalid")
    again = bulk(fleet, source, "-o", out, "--errors", errors, "--skip-invalid", "--retry-failed")
    idle = bulk(fleet, source, "-o", out, "--errors", errors, "--skip-invalid")

    assert (first.returncode, again.returncode, idle.returncode) == (3, 3, 3)
    assert b"2 rows failed" in first.stderr
    assert [line["custom_id"] for line in read_rows(out)] == ["row-1"]
    failed = {line["custom_id"]: line["response"] for line in read_rows(errors)}
    assert {name: (said["status_code"], said["body"]["error"]["code"]) for name, said in failed.items()} == {
        "row-2": (400, "context_length_exceeded"), "row-3": (400, "invalid_parameter"),
    }  # fmt: skip


def test_an_ordered_file_is_the_same_each_time_and_from_each_kind_of_source(fleet: Fleet, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", list(numbered(60, ["m", "slow"], max_tokens=3)))
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress(source.read_bytes()))
    outs = [tmp_path / f"{number}.jsonl" for number in range(3)]

    for given, out in zip((str(source), f"{source}.gz", "-"), outs, strict=True):
        done = bulk(fleet, given, "-o", out, "--ordered", "-q", stdin=source.read_bytes())
        assert (done.returncode, done.stderr, done.stdout) == (0, b"", b"")

    assert outs[0].read_bytes() == outs[1].read_bytes() == outs[2].read_bytes()
    assert [line["custom_id"] for line in read_rows(outs[0])] == [f"row-{number}" for number in range(60)]


def test_a_command_that_was_killed_is_gone_on_with_by_the_same_command(fleet: Fleet, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", [row(n, "slow", text=f"{n:03} " + "x" * 9) for n in range(36)])
    command = BulkCommand(fleet.url, source, tmp_path / "out.jsonl", ("--user", "killed"))
    for rows in (5, 20):
        command.start()
        command.until_ended(rows)
        command.kill()
    with open(command.out, "ab") as file:
        file.write(b'{"id":"torn')

    command.start()
    assert command.wait(60) == 0, command.log

    lines = read_rows(command.out)
    assert sorted(line["custom_id"] for line in lines) == sorted(f"row-{n}" for n in range(36))
    jobs = [job for job in fleet.client.jobs(10_000) if job.user == "killed"]
    assert (len(jobs), {job.epoch for job in jobs}) == (36, {1})  # each row one job, claimed once


def test_ctrl_c_says_how_to_go_on_and_leaves_its_jobs_to_the_next_run(fleet: Fleet, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", [row(n, "slow", text=f"{n:03} " + "y" * 9) for n in range(24)])
    command = BulkCommand(fleet.url, source, tmp_path / "out.jsonl", ("--user", "stopped"))
    command.start()
    command.until_ended(5)
    other = bulk(fleet, source, "-o", command.out, "--user", "stopped")
    command.kill(signal.SIGINT)

    assert command.wait(1) == 130
    assert "jobs go on in the fleet" in command.log
    assert f"Go on with: packtrain bulk run {source} -o {command.out} --user stopped" in command.log
    assert (other.returncode, b"another process" in other.stderr) == (1, True)
    changed = bulk(fleet, source, "-o", command.out, "--user", "else")
    assert (changed.returncode, b"begun with user = 'stopped'" in changed.stderr) == (2, True)

    command.start()
    assert command.wait(60) == 0, command.log
    assert len(read_rows(command.out)) == 24
    assert sum(job.user == "stopped" for job in fleet.client.jobs(10_000)) == 24


def test_another_input_or_a_foreign_output_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    source, out = write_rows(tmp_path / "in.jsonl", [row(1, "m")]), tmp_path / "out.jsonl"
    foreign = write_rows(tmp_path / "foreign.jsonl", ["mine"])
    assert bulk(fleet, source, "-o", out).returncode == 0
    write_rows(source, [row(2, "m")])

    refused = [bulk(fleet, source, "-o", each) for each in (out, foreign, source, tmp_path)]

    assert [done.returncode for done in refused] == [2, 2, 2, 2]
    assert b"has other rows than when" in refused[0].stderr
    assert foreign.read_text() == "mine\n"
    assert bulk(fleet, source, "-o", out, "--restart").returncode == 0
    assert [line["custom_id"] for line in read_rows(out)] == ["row-2"]


def test_a_check_runs_nothing(fleet: Fleet, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", list(numbered(10, ["m"], max_tokens=5)))

    done = bulk(fleet, source, "-o", tmp_path / "out.jsonl", "--check", "--json", "--user", "checked")

    (forecast,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert (forecast["rows"], forecast["rows_by_model"], forecast["tokens"]) == (10, {"m": 10}, 60)
    assert all(job.user != "checked" for job in fleet.client.jobs(10_000))


def test_a_model_that_cannot_load_ends_the_run_with_its_reason_and_keeps_its_rows(fleet: Fleet, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", list(numbered(20, ["m", "huge"])))

    done = bulk(fleet, source, "-o", tmp_path / "out.jsonl", "--json")

    end = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode, end["completed"], end["failed"], end["left"]) == (1, 10, 0, 10)
    assert end["blocked"][0]["code"] == "model_too_large"
    assert b"'huge' needs" in done.stderr


def test_a_table_is_run_by_a_template(fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("id,text\na,one\nb,two\n")

    done = bulk(fleet, tmp_path / "in.csv", "-o", tmp_path / "out.jsonl", "-m", "m", "--template", "say {text}")

    assert done.returncode == 0, done.stderr
    assert {line["custom_id"]: content(line) for line in read_rows(tmp_path / "out.jsonl")} == {
        "a": "eno yas", "b": "owt yas",
    }  # fmt: skip


def test_the_ledger_of_a_whole_run_has_nothing_left_to_do(fleet: Fleet, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", list(numbered(30, ["m"])))
    assert bulk(fleet, source, "-o", tmp_path / "out.jsonl").returncode == 0

    with sqlite3.connect(tmp_path / "out.jsonl.packtrain" / "ledger.sqlite") as ledger:
        assert ledger.execute("SELECT state, COUNT(*) FROM rows GROUP BY state").fetchall() == [(1, 30)]
    ledger.close()
    eventually(lambda: not fleet.client.waiting(), "an empty fleet")
