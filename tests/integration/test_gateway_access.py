"""Who gets into a gateway, as whom, and how far: real gateways before a fleet of scripted models."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from redis import Redis
from typer.testing import CliRunner

from packtrain.broker.api_keys import ApiKeys
from packtrain.broker.connection import connect
from packtrain.broker.errors import InvalidParameter
from packtrain.broker.ids import job_id_for_key
from packtrain.broker.keys import api_spent
from packtrain.broker.server import BrokerServer
from packtrain.client.cli.main import app
from packtrain.client.gateway.keys import FRESH_S
from packtrain.client.native_wire import PREFIX
from tests.support.fleets import Fleet, eventually, scripted_fleet
from tests.support.gateways import Gateway, gateway

pytestmark = pytest.mark.integration

HELLO = {"model": "m1", "prompt": "hello"}
COMPLETIONS = "/v1/completions"


def error_of(response: httpx2.Response, status: int) -> dict[str, Any]:
    """The error object of a refusal, which has all of OpenAI's keys."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert {"message", "type", "param", "code"} <= error.keys()
    return dict(error)


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


# --- with keys ------------------------------------------------------------------------------------------


LIMITS: dict[str, dict[str, Any]] = {
    "anna": {},
    "ben": {},
    "narrow": {"models": ["m2"]},
    "single": {"concurrent": 1},
    "thrifty": {"tokens_per_minute": 60},
    "careful": {"concurrent": 1, "tokens_per_minute": 600},
    "hasty": {"tokens_per_minute": 5000},
    "past": {},
    "haunted": {"models": ["ghost"]},
    "frugal": {"tokens_per_minute": 400, "concurrent": 1},
    "root": {"is_admin": True},
}


class Keyed:
    """A gateway before a fleet that has keys, those of `LIMITS`."""

    def __init__(self, fleet: Fleet, door: Gateway, redis: Redis, api_keys: ApiKeys, secrets: dict[str, str]) -> None:
        self.fleet = fleet
        self.door = door
        self.redis = redis
        self.api_keys = api_keys
        self.secrets = secrets

    def bearer(self, name: str) -> dict[str, str]:
        return bearer(self.secrets[name])

    def get(self, path: str, name: str) -> httpx2.Response:
        return self.door.http.get(path, headers=self.bearer(name))

    def post(self, name: str, body: dict[str, Any], **headers: str) -> httpx2.Response:
        return self.door.post(COMPLETIONS, body, **self.bearer(name), **headers)


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    script = {"n_slots": 4, "n_ctx": 512, "step_ms": 2}
    slow = {"n_slots": 1, "n_ctx": 4096, "step_ms": 20}
    wordy = {**slow, "step_ms": 1}
    models = {"m1": script, "m2": script, "slow": slow, "wordy": wordy, "large": {"required_mib": 900}}
    with scripted_fleet(tmp_path_factory.mktemp("home"), models) as fleet:
        redis = connect(fleet.url, name="test")
        api_keys = ApiKeys(redis)
        secrets = {name: api_keys.create(name, **limits)[1] for name, limits in LIMITS.items()}
        with gateway(fleet.url, tmp_path_factory.mktemp("gateway")) as door:
            yield Keyed(fleet, door, redis, api_keys, secrets)
        redis.close()


def test_nobody_gets_in_without_a_key_and_anybody_may_ask_how_it_is(keyed: Keyed) -> None:
    assert error_of(keyed.door.post(COMPLETIONS, HELLO), 401)["code"] == "invalid_api_key"
    assert error_of(keyed.door.http.get("/v1/models", headers=bearer("pt-wrong")), 401)["code"] == "invalid_api_key"
    assert error_of(keyed.door.http.get("/metrics"), 401)["code"] == "invalid_api_key"
    assert error_of(keyed.door.http.get("/v1/models", headers={"Authorization": "Basic YTpi"}), 401)
    assert keyed.door.http.get("/v1/models", headers={"x-api-key": keyed.secrets["anna"]}).status_code == 200
    assert [keyed.door.http.get(path).status_code for path in ("/health", "/livez", "/readyz")] == [200, 200, 200]


def test_a_key_is_told_of_no_model_that_it_may_not_use(keyed: Keyed) -> None:
    for model in ("m1", "none", "GPT 4"):
        error = error_of(keyed.post("narrow", {"model": model, "prompt": "hello"}), 404)
        assert "m2" in error["message"]
        assert not {"slow", "wordy", "large"} & set(re.findall(r"\w+", error["message"]))


def test_no_list_no_figure_and_no_error_tells_a_key_of_models_that_it_may_not_use(keyed: Keyed) -> None:
    others = {"m1", "slow", "wordy", "large"}

    def told(response: httpx2.Response) -> set[str]:
        return others & set(re.findall(r"[a-z0-9]+", response.text))

    assert keyed.post("anna", HELLO).status_code == 200  # so that it is loaded
    eventually(lambda: told(keyed.get("/api/ps", "root")), "it to be seen as loaded")
    lists = ["/v1/models", "/api/tags", "/api/ps", "/metrics"]
    lists += [f"{PREFIX}/{what}" for what in ("models", "nodes", "instances", "waiting", "jobs", "fleet")]
    for path in lists:
        shown, root = keyed.get(path, "narrow"), keyed.get(path, "root")
        assert (shown.status_code, root.status_code) == (403 if path == "/metrics" else 200, 200)
        assert not told(shown), path
        assert told(root) or path.endswith(("waiting", "jobs")), path
    spec = {"kind": "complete", "model": "ghost", "prompt": "x"}
    for response in (
        keyed.post("haunted", {"model": "ghost", "prompt": "x"}),  # it may use this one, and no node offers it
        keyed.door.post(f"{PREFIX}/jobs", {"spec": spec}, **keyed.bearer("haunted")),
        keyed.door.post("/api/show", {"model": "ghost"}, **keyed.bearer("haunted")),
        keyed.door.post("/tokenize", {"content": "x"}, **keyed.bearer("haunted")),
        keyed.get("/v1/models/ghost", "haunted"),
    ):
        assert 400 <= response.status_code < 500
        assert not told(response), response.text


def test_nobody_takes_the_id_that_the_key_of_another_will_name(keyed: Keyed) -> None:
    spec = {"kind": "complete", "model": "m1", "prompt": "mine", "user": "ben"}
    foreign = job_id_for_key("anna", "monday")

    taken = keyed.door.answer(f"{PREFIX}/jobs", {"spec": spec, "id": foreign}, **keyed.bearer("ben"))
    hers = keyed.post("anna", HELLO, **{"Idempotency-Key": "monday"})
    spied = keyed.door.answer(f"{PREFIX}/jobs", {"spec": spec, "id": foreign}, **keyed.bearer("ben"))

    assert taken["job_id"] != foreign
    assert (hers.status_code, hers.headers["x-packtrain-job"]) == (200, foreign)
    assert (spied["job_id"], spied["is_new"]) == (taken["job_id"], False)
    assert keyed.get(f"{PREFIX}/jobs/{foreign}", "ben").status_code == 404


def test_who_reads_nearly_all_of_an_answer_and_leaves_pays_for_it(keyed: Keyed) -> None:
    body, read = {"model": "wordy", "prompt": "x" * 1000}, 0
    with keyed.door.streaming(COMPLETIONS, body, **keyed.bearer("hasty")) as events:
        while read < 900:
            read += len(event.json["choices"][0]["text"]) if (event := next(events)).data else 0

    spent = api_spent("hasty")
    eventually(lambda: sum(map(int, keyed.redis.hvals(spent))) >= 900, "all of it is charged, not the 506 guessed")


def test_jobs_belong_to_the_key_whatever_user_the_request_names(keyed: Keyed) -> None:
    done = keyed.post("anna", {**HELLO, "user": "ben"})

    assert keyed.fleet.client.job(done.headers["x-packtrain-job"]).status().user == "anna"


def test_the_idempotency_key_of_another_user_is_another_job(keyed: Keyed) -> None:
    asked = {**HELLO, "prompt": "a secret of anna"}

    mine = keyed.post("anna", asked, **{"Idempotency-Key": "k1"})
    again = keyed.post("anna", asked, **{"Idempotency-Key": "k1"})
    theirs = keyed.post("ben", {**HELLO, "prompt": "ben"}, **{"Idempotency-Key": "k1"})

    assert mine.headers["x-packtrain-job"] == again.headers["x-packtrain-job"]
    assert theirs.headers["x-packtrain-job"] != mine.headers["x-packtrain-job"]
    assert theirs.json()["choices"][0]["text"] == "neb"


def test_the_jobs_of_another_key_do_not_exist_and_the_fleet_is_for_administrators(keyed: Keyed) -> None:
    job = keyed.post("anna", HELLO).headers["x-packtrain-job"]
    theirs = f"{PREFIX}/jobs/{job}"

    seen = {name: keyed.get(theirs, name).status_code for name in ("anna", "ben", "root")}
    cancelled = keyed.door.post(f"{theirs}/cancel", {}, **keyed.bearer("ben"))
    loads = {n: keyed.door.post(f"{PREFIX}/models/m1/load", {}, **keyed.bearer(n)) for n in ("ben", "root")}

    assert seen == {"anna": 200, "ben": 404, "root": 200}
    assert cancelled.status_code == 404
    assert {name: response.status_code for name, response in loads.items()} == {"ben": 403, "root": 200}


def test_limits_hold_for_jobs_that_no_request_waits_for(keyed: Keyed) -> None:
    spec = {"kind": "complete", "model": "slow", "prompt": "!long", "params": {"max_tokens": 60}}

    first = keyed.door.post(f"{PREFIX}/jobs", {"spec": spec}, **keyed.bearer("single"))
    second = keyed.door.post(f"{PREFIX}/jobs", {"spec": spec}, **keyed.bearer("single"))

    assert first.status_code == 200, first.text
    assert second.status_code == 429
    eventually(lambda: keyed.post("single", HELLO).status_code == 200, "room once the job has ended")


def test_a_key_with_a_list_of_models_knows_no_others(keyed: Keyed) -> None:
    name = "narrow"

    assert [model["id"] for model in keyed.get("/v1/models", name).json()["data"]] == ["m2"]
    assert keyed.post(name, {**HELLO, "model": "m2"}).status_code == 200
    for model in ("m1", "there-is-none"):
        for refused in (keyed.post(name, {**HELLO, "model": model}), keyed.get(f"/v1/models/{model}", name)):
            error = error_of(refused, 404)
            assert (error["code"], error["param"]) == ("model_not_found", "model")
            assert "it may use: m2" in error["message"]


def test_a_key_may_have_so_many_requests_at_once_and_a_client_that_leaves_makes_room(keyed: Keyed) -> None:
    name = "single"
    long = {"model": "m1", "prompt": "!long"}
    with keyed.door.streaming(COMPLETIONS, long, **keyed.bearer(name)) as events:
        next(events)

        refused = keyed.post(name, HELLO)

        assert error_of(refused, 429)["code"] == "rate_limit_exceeded"
        assert refused.headers["retry-after"] == "1"
    eventually(lambda: keyed.post(name, HELLO).status_code == 200, "room for the next")


def test_a_key_may_use_so_many_tokens_a_minute_and_is_told_when_it_may_again(keyed: Keyed) -> None:
    name = "thrifty"
    asked = {**HELLO, "max_tokens": 20}
    assert keyed.post(name, {**asked, "prompt": "x" * 20}).status_code == 200  # 40 tokens of the scripted model

    refused = keyed.post(name, {**asked, "prompt": "x" * 20})

    error = error_of(refused, 429)
    assert "40 tokens were used" in error["message"]
    assert 50 < int(refused.headers["retry-after"]) <= 60
    assert keyed.post(name, {"model": "m1", "prompt": "x", "max_tokens": 3}).status_code == 200  # as many are left


def test_rows_of_a_batch_count_for_the_tokens_of_its_key_and_wait_where_these_are_used_up(keyed: Keyed) -> None:
    name, rows = "frugal", 20
    body = {"model": "m1", "prompt": "x" * 20, "max_tokens": 40}  # 40 tokens of the scripted model, guessed as 45
    lines = [{"custom_id": f"r{n}", "method": "POST", "url": COMPLETIONS, "body": body} for n in range(rows)]
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    sent = keyed.door.http.post(
        "/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", content)}, headers=keyed.bearer(name)
    )
    asked = {"input_file_id": sent.json()["id"], "endpoint": COMPLETIONS, "completion_window": "24h"}
    batch_id = keyed.door.answer("/v1/batches", asked, **keyed.bearer(name))["id"]

    def look() -> dict[str, Any]:
        return dict(keyed.get(f"/v1/batches/{batch_id}", name).json())

    def waiting() -> dict[str, Any] | None:
        batch = look()
        return batch if "tokens were used" in batch.get("packtrain", {}).get("waits_for", "") else None

    eventually(lambda: look()["request_counts"]["completed"] >= 5, "some rows", 30)
    time.sleep(1)
    waits = eventually(waiting, "the batch to wait", 30)
    assert waits["request_counts"]["completed"] < rows
    assert (waits["status"], waits["errors"]) == ("in_progress", None)
    spent = sum(map(int, keyed.redis.hvals(api_spent(name))))
    assert 200 <= spent <= 300, "rows leave a part of the tokens to requests"
    assert keyed.post(name, {"model": "m1", "prompt": "x", "max_tokens": 3}).status_code == 200

    # Without a limit. The gateway looks at its list of keys once a second, and knows the new one then.
    keyed.secrets[name] = keyed.api_keys.create(name, replace=True)[1]
    done = eventually(lambda: (batch := look()).get("status") == "completed" and batch, "its end", 30)
    assert done["request_counts"] == {"total": rows, "completed": rows, "failed": 0}


def test_a_request_that_was_refused_costs_nothing(keyed: Keyed) -> None:
    name = "careful"
    for _ in range(3):
        assert keyed.post(name, {**HELLO, "model": "none", "max_tokens": 500}).status_code == 404

    assert keyed.post(name, {**HELLO, "max_tokens": 500}).status_code == 200


def test_metrics_tell_of_requests_tokens_and_the_fleet(keyed: Keyed) -> None:
    name = "anna"
    keyed.post(name, {"model": "m2", "prompt": "abc", "user": "someone"})
    keyed.post(name, {"model": "made-up", "prompt": "abc"})
    list(keyed.door.events(COMPLETIONS, {"model": "m2", "prompt": "abc"}, **keyed.bearer(name)))

    said = keyed.get("/metrics", name).text

    figures = dict(line.rsplit(" ", 1) for line in said.splitlines() if not line.startswith("#"))
    by_model = 'method="POST",model="m2",route="/completions",status="200"'
    assert float(figures[f"packtrain_http_requests_total{{{by_model}}}"]) >= 2
    assert float(figures['packtrain_generation_tokens_total{lane="interactive",model="m2"}']) >= 6
    assert float(figures['packtrain_time_to_first_token_seconds_count{lane="interactive",model="m2"}']) >= 2
    assert figures['packtrain_num_requests_waiting{lane="bulk",model="m1"}'] == "0.0"
    assert figures['packtrain_instances{model="m2",state="ready"}'] == "1.0"
    assert (figures["packtrain_nodes"], figures["packtrain_streams_open"]) == ("1.0", "0.0")
    assert "made-up" not in said
    assert "packtrain_user_jobs_total" not in said  # what others used is for administrators
    used = dict(line.rsplit(" ", 1) for line in keyed.get("/metrics", "root").text.splitlines())
    assert float(used['packtrain_user_jobs_total{model="m2",user="anna"}']) >= 2


def test_a_revoked_key_is_refused_within_seconds(keyed: Keyed) -> None:
    name = "past"
    keyed.api_keys.revoke("past")

    eventually(lambda: keyed.post(name, HELLO).status_code == 401, "the revoked key is refused", FRESH_S + 2)


def test_a_request_that_would_wait_longer_than_it_says_is_refused_with_when_to_come_back(keyed: Keyed) -> None:
    asked = {"model": "slow", "prompt": "abc", "max_wait": 0.7}
    with keyed.door.streaming(COMPLETIONS, {"model": "slow", "prompt": "!long"}, **keyed.bearer("anna")) as events:
        next(event for event in events if not event.comment)  # its only slot is taken

        refused = keyed.post("anna", asked)
        by_header = keyed.post("anna", {**HELLO, "model": "slow"}, **{"X-Packtrain-Max-Wait": "0.3"})

        assert error_of(refused, 503)["code"] == "would_wait"
        assert 1 <= int(refused.headers["retry-after"]) <= 120
        assert error_of(by_header, 503)["code"] == "would_wait"
        assert keyed.fleet.client.waiting() == {}  # they were cancelled
    eventually(lambda: keyed.post("anna", asked).status_code == 200, "a request that begins in time is answered")


def test_a_request_with_a_key_that_is_refused_leaves_no_job_unless_it_met_one(keyed: Keyed) -> None:
    asked = {"model": "slow", "prompt": "abc", "max_wait": 0.3}
    with keyed.door.streaming(COMPLETIONS, {"model": "slow", "prompt": "!long"}, **keyed.bearer("anna")) as events:
        next(event for event in events if not event.comment)  # its only slot is taken

        first = keyed.post("anna", asked, **{"Idempotency-Key": "patient"})
        assert error_of(first, 503)["code"] == "would_wait"
        assert keyed.fleet.client.waiting() == {}

        spec = {"kind": "complete", "model": "slow", "prompt": "abc"}
        waits = {"spec": {**spec, "stream": False}, "idempotency_key": "met"}
        job_id = keyed.door.answer(f"{PREFIX}/jobs", waits, **keyed.bearer("anna"))["job_id"]
        met = keyed.post("anna", asked, **{"Idempotency-Key": "met"})
        assert error_of(met, 503)["code"] == "would_wait"
        assert keyed.get(f"{PREFIX}/jobs/{job_id}", "anna").json()["state"] == "QUEUED"

    def comes_back() -> bool:
        return keyed.post("anna", asked, **{"Idempotency-Key": "patient"}).status_code == 200

    eventually(comes_back, "the same key again is answered once there is room")


def test_a_model_whose_load_takes_longer_than_that_is_not_waited_for(keyed: Keyed) -> None:
    refused = keyed.post("anna", {"model": "large", "prompt": "abc", "max_wait": 0.5})

    error = error_of(refused, 503)
    assert error["code"] == "would_wait"
    assert "is not loaded" in error["message"]
    assert int(refused.headers["retry-after"]) >= 2


def test_the_command_line_makes_shows_and_ends_keys(keyed: Keyed) -> None:
    def packtrain(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["keys", *arguments], env={"PACKTRAIN_URL": keyed.fleet.url})

    made = packtrain("create", "carl", "--models", "m1,m2", "--concurrent", "3", "--tokens-per-minute", "9", "--admin")
    listed = packtrain("list")
    ended = packtrain("revoke", "carl", "--json")
    gone = packtrain("revoke", "carl")

    assert made.stdout.startswith("pt-")
    assert "nothing shows again" in made.stderr
    assert made.stdout.strip() not in listed.stdout
    assert next(line for line in listed.stdout.splitlines() if "carl" in line).split()[1:6] == [
        "m1,", "m2", "3", "9", "yes"
    ]  # fmt: skip
    assert '"revoked": true' in ended.stdout
    assert isinstance(gone.exception, InvalidParameter)
    assert "no key 'carl'" in str(gone.exception)


# --- without keys ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keyless(broker: BrokerServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway(broker.url, tmp_path_factory.mktemp("gateway")) as door:
        yield door


def test_on_loopback_any_key_and_none_is_taken_while_there_are_none(keyless: Gateway) -> None:
    assert keyless.http.get("/v1/models").status_code == 200
    assert keyless.http.get("/v1/models", headers=bearer("sk-whatever")).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost.evil.example"}, 403),
        ({"Host": "evil.example"}, 403),
        ({"Host": "evil.example:8080", "Origin": "http://evil.example:8080"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Origin": "http://localhost:3000"}, 200),
        ({"Origin": "http://127.0.0.1:8080"}, 200),
        ({"Origin": "vscode-webview://abc"}, 200),
        ({"Host": "localhost:8080"}, 200),
        ({"Host": "host.docker.internal:8080"}, 200),
        ({"Host": "192.168.1.5"}, 200),
    ],
)
def test_pages_of_web_sites_do_not_get_in_where_no_key_is_asked_for(
    keyless: Gateway, headers: dict[str, str], status: int
) -> None:
    response = keyless.http.get("/v1/models", headers=headers)

    assert response.status_code == status
    if status == 403:
        assert error_of(response, 403)["code"] == "origin_not_allowed"


def test_beyond_loopback_a_gateway_does_not_start_without_a_key(broker: BrokerServer, redis: Redis) -> None:
    env = {"PACKTRAIN_URL": broker.url, "PACKTRAIN_HTTP_HOST": "0.0.0.0", "PACKTRAIN_HTTP_PORT": "0"}
    argv = [sys.executable, "-m", "packtrain.client.gateway.gateway_main"]

    ended = subprocess.run(argv, env={**os.environ, **env}, capture_output=True, text=True, check=False, timeout=30)

    assert ended.returncode == 1
    assert "packtrain keys create NAME" in ended.stderr


def test_beyond_loopback_nobody_gets_in_once_the_last_key_is_revoked(
    broker: BrokerServer, redis: Redis, tmp_path: Path
) -> None:
    api_keys = ApiKeys(redis)
    _, secret = api_keys.create("anna")
    with gateway(broker.url, tmp_path, PACKTRAIN_HTTP_HOST="0.0.0.0") as door:
        assert door.http.get("/v1/models", headers=bearer(secret)).status_code == 200
        api_keys.revoke("anna")

        def refused() -> bool:
            return door.http.get("/v1/models", headers=bearer(secret)).status_code == 401

        eventually(refused, "it is closed", FRESH_S + 2)
        assert "there is no API key" in error_of(door.http.get("/v1/models"), 401)["message"]
        assert door.http.get("/livez").status_code == 200
