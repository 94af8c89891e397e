"""Files and batches over HTTP, without a fleet: forms, limits, pages, ids, and who may see what."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import Callable, Coroutine
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.requests import Request

from packtrain.broker.errors import BrokerUnavailable, InvalidParameter, SetupError
from packtrain.broker.model_info import ModelInfo
from packtrain.client import AsyncPacktrain
from packtrain.client.gateway.access import Caller, OpenAccess
from packtrain.client.gateway.app import make_app
from packtrain.client.gateway.batches_faults import MOST_DEFECTS, Meaning, meaning_of, said_of
from packtrain.client.gateway.batches_keeper import CALM_S, MOST_AT_ONCE, Trouble, due, trouble
from packtrain.client.gateway.batches_run import MOST_LATE, BatchRun
from packtrain.client.gateway.batches_store import AGAIN, WINDOW_S, Batch, BatchStatus, BatchStore, batch_object
from packtrain.client.gateway.door import Door
from packtrain.client.gateway.files_store import FileStore, plain_name
from packtrain.client.gateway.settings import GatewaySettings
from tests.support.memory_transport import AsyncMemoryTransport, MemoryTransport

pytestmark = pytest.mark.unit

ANN, BOB, BOSS = (Caller("ann", "key-a", False), Caller("bob", "key-b", False), Caller(None, "key-c", True))
ADMIN = "boss"
BATCH = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
Client = httpx2.AsyncClient


class Names(OpenAccess):
    """Everybody is who they say, in `Authorization`; without it, nobody in particular."""

    async def caller(self, request: Request) -> Caller:
        return {"ann": ANN, "bob": BOB, ADMIN: BOSS}.get(request.headers.get("authorization", ""), Caller())


def run(folder: Path, test: Callable[[Client], Coroutine[Any, Any, None]], **settings: Any) -> None:
    """Run a test as a client of a gateway whose files are in `folder`."""

    async def main() -> None:
        async with AsyncPacktrain(transport=AsyncMemoryTransport()) as fleet:
            door = Door(fleet, GatewaySettings(**settings), Names(), files=folder)
            transport = httpx2.ASGITransport(app=make_app(door))
            async with httpx2.AsyncClient(transport=transport, base_url="http://gateway") as client:
                await test(client)

    asyncio.run(main())


async def upload(client: Client, content: bytes = b"{}\n", *, name: str = "in.jsonl", by: str = "") -> dict[str, Any]:
    sent = await client.post(
        "/v1/files", data={"purpose": "batch"}, files={"file": (name, content)}, headers={"authorization": by}
    )
    assert sent.status_code == 200, sent.text
    return dict(sent.json())


async def start(client: Client, file_id: str, by: str = "", **changes: Any) -> httpx2.Response:
    return await client.post(
        "/v1/batches", json={**BATCH, "input_file_id": file_id, **changes}, headers={"authorization": by}
    )


def error_of(response: httpx2.Response) -> tuple[int, str, str | None]:
    """Status, code and parameter of an error, which has all of OpenAI's keys."""
    error = response.json()["error"]
    assert set(error) >= {"message", "type", "code", "param"}
    return response.status_code, error["code"], error["param"]


def test_a_file_comes_back_as_it_was_sent_until_it_is_deleted(tmp_path: Path) -> None:
    async def test(client: Client) -> None:
        content = bytes(range(256)) * 5000
        sent = await upload(client, content, name='../../a "b"\r\nX-Evil: 1.jsonl')
        got = await client.get(f"/files/{sent['id']}/content")
        shown = await client.get(f"/v1/files/{sent['id']}")
        gone = await client.delete(f"/v1/files/{sent['id']}")

        assert (sent["object"], sent["bytes"], sent["purpose"]) == ("file", len(content), "batch")
        assert (got.content, shown.json()) == (content, sent)
        assert "x-evil" not in got.headers
        assert "/" not in sent["filename"]
        assert gone.json() == {"id": sent["id"], "object": "file", "deleted": True}
        assert error_of(await client.get(f"/v1/files/{sent['id']}")) == (404, "file_not_found", "file_id")
        assert list((tmp_path / "files").iterdir()) == []

    run(tmp_path, test)


@pytest.mark.parametrize(
    "file_id",
    ["..", "%2e%2e", "..%2f..%2fetc%2fpasswd", "file-" + "g" * 32, "file-" + "0" * 32 + "%0a", "file-../" + "0" * 29],
)
def test_what_is_no_id_of_ours_never_becomes_a_path(tmp_path: Path, file_id: str) -> None:
    async def test(client: Client) -> None:
        for answer in (
            await client.get(f"/v1/files/{file_id}"),
            await client.get(f"/v1/files/{file_id}/content"),
            await client.delete(f"/v1/files/{file_id}"),
            await client.get(f"/v1/batches/{file_id}"),
        ):
            assert answer.status_code in (404, 405)
        assert error_of(await start(client, file_id)) == (404, "file_not_found", "input_file_id")

    run(tmp_path, test)


def test_uploads_that_are_too_large_broken_or_for_something_else_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    form = {"content-type": "multipart/form-data; boundary=x"}
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    purpose = b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'

    async def test(client: Client) -> None:
        async def send(body: bytes, headers: dict[str, str] = form) -> tuple[int, str, str | None]:
            return error_of(await client.post("/v1/files", content=body, headers=headers))

        assert await send(purpose + part + b"x" * 200_000 + b"\r\n--x--\r\n") == (413, "file_too_large", "file")
        assert await send(part + b"x" * 2000 + b"\r\n--x--\r\n") == (413, "file_too_large", "file")
        assert await send(purpose + part + b"never ends") == (400, "invalid_parameter", None)
        assert (await send(b"no form"))[0] == 400
        assert (await send(purpose + b"--x--\r\n"))[1:] == ("invalid_parameter", "file")
        assert (await send(part + b"{}\r\n--x--\r\n"))[1:] == ("invalid_parameter", "purpose")
        assert (await send(purpose + part + b"{}\r\n" + part + b"{}\r\n--x--\r\n"))[1:] == ("invalid_parameter", "file")
        assert (await send(b"{}", {"content-type": "application/json"}))[1:] == ("invalid_parameter", "file")
        big = b'--x\r\nContent-Disposition: form-data; name="note"\r\n\r\n' + b"y" * 70_000 + b"\r\n--x--\r\n"
        assert (await send(big))[0] in (400, 413)
        assert list((tmp_path / "files").iterdir()) == []

    run(tmp_path, test, max_file=1000)


def test_lists_come_in_pages_the_newest_first(tmp_path: Path) -> None:
    async def test(client: Client) -> None:
        ids = [(await upload(client))["id"] for _ in range(5)]
        first = (await client.get("/v1/files", params={"limit": 2})).json()
        rest = (await client.get("/v1/files", params={"after": first["last_id"]})).json()
        oldest = (await client.get("/v1/files", params={"order": "asc", "limit": 1})).json()
        empty = (await client.get("/v1/files", params={"purpose": "batch_output"})).json()

        assert [file["id"] for file in first["data"]] == ids[:2:-1]
        assert (first["first_id"], first["has_more"]) == (ids[4], True)
        assert ([file["id"] for file in rest["data"]], rest["has_more"]) == (ids[2::-1], False)
        assert oldest["first_id"] == ids[0]
        assert (empty["data"], empty["first_id"]) == ([], None)
        assert error_of(await client.get("/v1/files", params={"limit": 0}))[:2] == (400, "invalid_parameter")

        batches = [(await start(client, ids[0])).json()["id"] for _ in range(3)]
        page = (await client.get("/v1/batches", params={"limit": 2})).json()
        assert ([each["id"] for each in page["data"]], page["has_more"]) == (batches[:0:-1], True)

    run(tmp_path, test)


def test_what_another_key_has_is_not_there(tmp_path: Path) -> None:
    async def test(client: Client) -> None:
        mine = await upload(client, by="ann")
        batch = (await start(client, mine["id"], by="ann")).json()
        for who in ("bob", "ann", ADMIN):
            headers = {"authorization": who}
            answers = [
                await client.get(f"/v1/files/{mine['id']}", headers=headers),
                await client.get(f"/v1/files/{mine['id']}/content", headers=headers),
                await client.get(f"/v1/batches/{batch['id']}", headers=headers),
            ]
            lists = [(await client.get(f"/v1/{kind}", headers=headers)).json()["data"] for kind in ("files", "batches")]
            assert [answer.status_code for answer in answers] == [404 if who == "bob" else 200] * 3
            assert [len(found) for found in lists] == ([0, 0] if who == "bob" else [1, 1])

        assert error_of(await start(client, mine["id"], by="bob")) == (404, "file_not_found", "input_file_id")
        cancel = await client.post(f"/v1/batches/{batch['id']}/cancel", headers={"authorization": "bob"})
        assert error_of(cancel) == (404, "batch_not_found", "batch_id")
        assert (await client.delete(f"/v1/files/{mine['id']}", headers={"authorization": "bob"})).status_code == 404
        about = json.loads((tmp_path / "batches" / batch["id"] / "about.json").read_text())
        assert (about["owner"], about["user"]) == ("key-a", "ann")

    run(tmp_path, test)


def test_a_batch_is_what_openai_says_it_is(tmp_path: Path) -> None:
    async def test(client: Client) -> None:
        file = await upload(client)
        made = (await start(client, file["id"], metadata={"a": "b"})).json()

        assert (made["object"], made["status"], made["endpoint"]) == ("batch", "validating", BATCH["endpoint"])
        assert (made["metadata"], made["request_counts"]) == ({"a": "b"}, {"total": 0, "completed": 0, "failed": 0})
        assert made["expires_at"] - made["created_at"] == WINDOW_S
        assert abs(made["created_at"] - time.time()) < 60
        for name in ("errors", "output_file_id", "error_file_id", "in_progress_at", "completed_at", "cancelled_at"):
            assert made[name] is None

    run(tmp_path, test)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("endpoint", "/v1/images"),
        ("completion_window", "1h"),
        ("input_file_id", None),
        ("metadata", {str(n): "" for n in range(17)}),
        ("metadata", {"k" * 65: ""}),
        ("metadata", {"k": 5}),
    ],
)
def test_orders_that_cannot_be_are_refused_by_the_field(tmp_path: Path, field: str, value: Any) -> None:
    async def test(client: Client) -> None:
        file = await upload(client)
        status, code, param = error_of(await start(client, file["id"], **{field: value}))
        assert (status, code, str(param).split(".")[0]) == (400, "invalid_parameter", field)

    run(tmp_path, test)


def test_cancelling_shows_at_once_and_a_batch_that_is_over_is_not_tried_again(tmp_path: Path) -> None:
    async def test(client: Client) -> None:
        batch = (await start(client, (await upload(client))["id"])).json()
        for _ in range(2):
            cancelled = await client.post(f"/v1/batches/{batch['id']}/cancel")
            assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelling")
            assert cancelled.json()["cancelling_at"]

        store = BatchStore(tmp_path)
        store.save(batch["id"], store.progress(batch["id"]).now_is(BatchStatus.CANCELLED, 5))
        again = await client.post(f"/v1/batches/{batch['id']}/cancel")

        assert error_of(again) == (409, "batch_over", "batch_id")
        assert again.headers["x-should-retry"] == "false"
        assert (await client.get(f"/v1/batches/{batch['id']}")).json()["status"] == "cancelled"
        assert store.unfinished() == []

    run(tmp_path, test)


def test_a_batch_keeps_its_input_when_the_file_is_deleted(tmp_path: Path) -> None:
    async def test(client: Client) -> None:
        file = await upload(client, b"rows")
        batch = (await start(client, file["id"])).json()
        await client.delete(f"/v1/files/{file['id']}")

        assert BatchStore(tmp_path).path(batch["id"], "input.jsonl").read_bytes() == b"rows"

    run(tmp_path, test)


def test_one_process_at_a_time_runs_a_batch(tmp_path: Path) -> None:
    async def test(client: Client) -> None:
        batch = (await start(client, (await upload(client))["id"])).json()
        store, other = BatchStore(tmp_path), BatchStore(tmp_path)
        with store.locked(batch["id"]) as is_mine:
            assert (is_mine, other.is_locked(batch["id"])) == (True, True)
        assert not other.is_locked(batch["id"])

    run(tmp_path, test)


def test_the_oldest_batches_run_first_and_not_too_many_at_once() -> None:
    names = [f"b{number}" for number in range(9)]

    assert due(names, {}, {}, 0) == names[:MOST_AT_ONCE]
    assert due(names, {"b0": 1, "b1": 1}, {}, 0) == ["b2", "b3"]
    assert due(names[:2], {}, {"b0": Trouble("", 1, 10.0)}, 5) == ["b1"]
    assert due(names[:2], {}, {"b0": Trouble("", 1, 10.0)}, 10) == ["b0", "b1"]
    assert due(names, dict.fromkeys(names[:MOST_AT_ONCE]), {}, 0) == []


def test_a_batch_that_cannot_go_on_is_tried_again_ever_more_seldom() -> None:
    waits: dict[int, list[float]] = {}
    for code in (AGAIN, 1, -9):
        before, waits[code] = None, []
        for _ in range(10):
            before = trouble(before, code, "a full disk", ran_s=1, now_s=0)
            waits[code].append(before.not_before_s)

    assert waits[AGAIN][:4] == [10, 20, 40, 60]
    assert waits[1] == waits[-9] == [2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    assert trouble(Trouble("", 7, 0), -9, "", ran_s=CALM_S, now_s=5).not_before_s == 7
    assert [trouble(None, code, "", 1, 0).said for code in (-9, 3)] == [
        "its process ended with signal 9", "its process ended with exit code 3",
    ]  # fmt: skip


def _of_sqlite(path: Path, pages: int = 1000) -> sqlite3.Error:
    """How SQLite fails at a file, which may have so many pages."""
    with closing(sqlite3.connect(path)) as db:
        try:
            db.execute(f"PRAGMA max_page_count = {pages}")
            db.execute("CREATE TABLE t (x)")
        except sqlite3.Error as error:
            return error
    raise AssertionError("it did not fail")


def test_what_may_pass_is_waited_for_and_what_will_not_ends_a_batch(tmp_path: Path) -> None:
    (tmp_path / "damaged").write_bytes(b"no database" * 100)
    full = _of_sqlite(tmp_path / "full", pages=1)
    damaged = _of_sqlite(tmp_path / "damaged")
    worded = SetupError(f"cannot write the ledger beside {tmp_path}; go on with the same command")
    worded.__cause__ = damaged
    no_room = OSError(28, "No space left on device", str(tmp_path))

    meanings = {error: meaning_of(error) for error in (full, no_room, BrokerUnavailable(url="x", reason="y"))}
    assert set(meanings.values()) == {Meaning.WAITS}, meanings
    assert {meaning_of(error) for error in (damaged, worded, InvalidParameter("changed"))} == {Meaning.BROKEN}
    assert meaning_of(KeyError("rows")) is Meaning.DEFECT
    for error in (full, damaged, worded, no_room, InvalidParameter(f"{tmp_path} changed"), KeyError(str(tmp_path))):
        assert str(tmp_path) not in said_of(error), "clients learn no path of this machine"


def test_an_expired_batch_ends_though_nothing_works(tmp_path: Path) -> None:
    class Away(MemoryTransport):
        def models(self) -> list[ModelInfo]:
            raise BrokerUnavailable(url="redis://nowhere", reason="it is away")

    batch = _ordered(tmp_path, expires_at=100)
    store = BatchStore(tmp_path)
    for _ in range(MOST_LATE - 1):
        with pytest.raises(BrokerUnavailable):
            BatchRun(batch, store, FileStore(tmp_path), Away(), now=lambda: 101).run()
        shown = batch_object(batch, store.progress(batch.id), None)
        assert (shown["status"], "it is away" in shown["packtrain"]["waits_for"]) == ("validating", True)
    assert BatchRun(batch, store, FileStore(tmp_path), Away(), now=lambda: 101).run()

    shown = batch_object(batch, store.progress(batch.id), None)
    assert (shown["status"], shown["errors"]["data"][0]["code"]) == ("expired", "batch_expired")
    assert "it is away" in shown["errors"]["data"][0]["message"]
    assert "packtrain" not in shown


def test_a_batch_whose_process_fails_for_reasons_that_nobody_foresaw_fails_after_some_tries(tmp_path: Path) -> None:
    class Odd(MemoryTransport):
        def models(self) -> list[ModelInfo]:
            raise ZeroDivisionError

    batch, store = _ordered(tmp_path, expires_at=100), BatchStore(tmp_path)
    for _ in range(MOST_DEFECTS - 1):
        with pytest.raises(ZeroDivisionError):
            BatchRun(batch, store, FileStore(tmp_path), Odd(), now=lambda: 1).run()
    assert BatchRun(batch, store, FileStore(tmp_path), Odd(), now=lambda: 1).run()

    progress = store.progress(batch.id)
    assert (progress.status, progress.faults[0]["code"]) == (BatchStatus.FAILED, "batch_failed")
    assert "ZeroDivisionError" in progress.faults[0]["message"]


def test_what_a_process_left_behind_that_was_killed_at_the_very_end_is_swept(tmp_path: Path) -> None:
    batch, store = _ordered(tmp_path), BatchStore(tmp_path)
    store.save(batch.id, store.progress(batch.id).now_is(BatchStatus.COMPLETED, 5))
    with store.locked(batch.id):
        assert store.unfinished() == []
        store.sweep()
        assert store.path(batch.id, "input.jsonl").exists(), "its process is still at it"
    store.sweep()

    left = {path.name for path in store.path(batch.id, "lock").parent.iterdir()}
    assert left == {"about.json", "progress.json", "lock"}


def _ordered(folder: Path, *, expires_at: int = 0) -> Batch:
    """A batch that nobody has begun."""
    store, files = BatchStore(folder), FileStore(folder)
    (folder / "in.jsonl").write_text(json.dumps({"custom_id": "a"}))
    batch = Batch(
        id=store.new_id(), created_at=1, expires_at=expires_at, endpoint=BATCH["endpoint"], input_file_id="",
        output_file_id=files.new_id(), error_file_id=files.new_id(),
    )  # fmt: skip
    store.create(batch, folder / "in.jsonl")
    return batch


@pytest.mark.parametrize(
    ("name", "kept"),
    [("a.jsonl", "a.jsonl"), ("/etc/passwd", "passwd"), ("..\\..\\x", "x"), ("..", "file"), ("", "file"),
     ("a\r\nb", "ab"), ("x" * 999, "x" * 255), ("ü 漢", "ü 漢")],
)  # fmt: skip
def test_a_name_is_kept_as_far_as_it_is_harmless(name: str, kept: str) -> None:
    assert plain_name(name) == kept


def test_drafts_of_uploads_that_broke_off_are_removed_after_a_day(tmp_path: Path) -> None:
    import os

    store = FileStore(tmp_path)
    old, new = store.draft(), store.draft()
    os.utime(old, (0, 0))
    store.draft()

    assert (old.exists(), new.exists()) == (False, True)
